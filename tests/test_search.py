"""The search: equal numbers of trials, on no test question, made once; malformed answers rule a trial of HIR out."""

import pytest

import train
from experiments import search
from support.files import read_lines


def test_trials_are_as_many_for_every_method_and_train_py_takes_them():
    for method in search.GRIDS:
        flags = search.trials(method)
        assert len(set(flags)) == search.TRIALS and flags == search.trials(method)
        for chosen in flags:
            settings = train.parse_arguments(f"--method {method} {search.BUDGET} {search.ASKED} {chosen}".split())
            assert settings.run.validation


def test_validation_asks_no_test_question():
    run = train.RunConfig(validation=True)
    for task in search.TASKS:
        (validation,), (test,) = (train.held_out_questions(r, [task]).values() for r in (run, train.RunConfig()))
        assert len(validation) == len(test) == 200
        assert not {e.question for e in validation} & {e.question for e in test}


def test_runs_are_made_once_and_the_best_trial_is_found(tmp_path, monkeypatch, capsys):
    best = {method: search.trials(method)[3] for method in search.GRIDS}
    noise = search.trials("hir")[5]  # most often right, but asked for a wrong answer it gives none

    def made(runs, jobs, run):
        method, flags, task = run
        correct = 1.0 if flags == noise else 0.9 if flags == best[method] else 0.5
        shares = {"curve": correct, "correct": correct, "malformed": 0.2 * (flags == noise and task == search.TASKS[1])}
        return {"method": method, "flags": flags, "task": task, "seconds": 30} | shares

    monkeypatch.setattr(search, "make_run", made)
    arguments = ["--results", str(tmp_path / "search.jsonl")]
    assert search.main(arguments) == 0
    number = len(search.GRIDS) * search.TRIALS * len(search.TASKS)
    found = capsys.readouterr().out
    assert f"{number} runs to make" in found and all(f" 90.0 %  {flags}\n" in found for flags in best.values())
    assert len(read_lines(tmp_path / "search.jsonl")) == number
    monkeypatch.setattr(search, "make_run", lambda *_: pytest.fail("a run was made again"))
    assert search.main(arguments) == 0 and "0 runs to make" in capsys.readouterr().out
