"""A run from the outside: one's own feedback, names, --resume by the directory alone, messages, and ends of all kinds."""

import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import feedback
import hir
import train
from bigbench_tasks import Example
from model_t5 import load_checkpoint
from support import REPOSITORY, tables
from support.files import read_lines
from support.run_directory import directory_of
from support.signals import STOP_SIGNALS
from tests.test_reliability import start, write_model

SIZES = "--task object_counting --iterations 1 --questions 6 --test-size 4 --train-epochs 1 --max-new-tokens 8"
SMALL = [*SIZES.split(), "--ppo-epochs", "1", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "small"))


def said(arguments, capsys, code=2):
    """The one sentence with which the command ends."""
    assert train.main(list(map(str, arguments))) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: ")
    return line


# --- One's own feedback -----------------------------------------------------------------------------------------------

EVEN = """
from feedback import judge

def even(output, example):
    if judge(output, example) == "right":  # the usual verdict
        return "right"
    return len(output) % 2 == 0 if output else "malformed"

def odd(output, example):
    return not even(output, example)
"""


def even(output, example):
    """What EVEN says, in other words; an untrained model is never right."""
    return "malformed" if not output else "wrong" if len(output) % 2 else "right"


def test_own_feedback_judges_whole_outputs_in_training_and_evaluation(model, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(EVEN)
    own = ["--feedback", f"{tmp_path}/mine.py:even"]
    arguments = [*SMALL, "--checkpoint", model, "--out", tmp_path / "run", "--sub-output", "encoder"]
    assert train.main(list(map(str, [*arguments, *own]))) == 0
    answers = read_lines(tmp_path / "run" / "answers.jsonl")
    assert len(answers) == 8 and all(a["verdict"] == even(a["answer"], None) for a in answers)
    (line,) = read_lines(tmp_path / "run" / "metrics.jsonl")[1:]
    assert 0 < line["right_share"] < 1  # of the built-in feedback, none would be
    whole = [s for s in read_lines(tmp_path / "run" / "samples.jsonl")[::2] if s["given"] == ""]
    assert len({s["instruction"] for s in whole}) == 2
    for s in whole:
        assert (s["instruction"] == hir.CORRECT) == (even(s["output"], None) == "right")
    other = said([*arguments, "--feedback", f"{tmp_path}/mine.py:odd", "--resume"], capsys)
    assert "was started with --feedback" in other and "mine.py:even, not" in other
    example = Example("?", ("5",))
    assert feedback.judge("The answer is 5", example) == "right"  # it ends with the run
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "# edited")
    assert "--feedback: the file has changed since" in said([*arguments, *own, "--resume"], capsys)


def test_own_feedback_is_not_asked_about_parts(monkeypatch):
    """A part keeps the verdict on its output, and all of a wrong output is learned, since all of it was judged."""
    _, tokenizer = load_checkpoint(REPOSITORY / "checkpoints" / "t5-mini")
    example = Example("?", ("one two three four five six",), task="word_sorting")
    tokens = tuple(tokenizer.encode("It is long. So the answer is one two three four six five"))
    asked = []
    own = lambda output, _: asked.append(output) or "wrong"  # noqa: E731

    def relabeled(sub_output):
        sample = hir.make_sample(example, tokens, tokenizer)
        drawn = [hir.relabel([sample], tokenizer, hir.Settings(sub_output=sub_output), rng) for rng in rngs()]
        return [e for examples in drawn for e in examples]

    def rngs():
        return map(hir.random.Random, range(200))

    assert any(e.instruction == hir.CORRECT for e in relabeled("encoder"))
    assert all(0 < e.start == e.compared for e in relabeled("answer"))
    with feedback.own_feedback.judged_by(own):
        assert all(e.instruction == hir.WRONG for e in relabeled("encoder"))
        assert all(e.start == e.compared == 0 for e in relabeled("answer"))
    assert set(asked) == {tokenizer.decode(tokens)}


BAD = {
    "def f(output, example): return None": "returned None for the output ''; it takes an output and its example, and must",
    "def f(output, example): return 0.5": "returned 0.5 for",
    "def f(output, example): return 'good'": "returned 'good' for",
    "def f(output, example):\n    return output.split()[0]": "raised IndexError: list index out of range in line 2 for",
    "def f(output): return True": "raised TypeError: f() takes 1 positional argument but 2 were given for",
    "def f(output, example) return True": "cannot be imported (SyntaxError: expected ':'",
    "import nothing_of_that_name": "cannot be imported (ModuleNotFoundError",
    "import sys; sys.exit(3)": "cannot be imported (SystemExit: 3)",
    "def ff(output, example): return True": "has no function f: did you mean ff?",
    "f = 3": "has no function f",
}


@pytest.mark.parametrize("code", BAD)
def test_feedback_that_does_not_work_is_refused_before_the_run(code, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(code)
    line = said(["--feedback", f"{tmp_path}/mine.py:f", "--out", tmp_path / "run"], capsys)
    assert f"--feedback {tmp_path}/mine.py:f" in line and BAD[code] in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["mine.py", "mine.py:", "nowhere.py:f", "mine:f", ":f", "mine.py:f()"])
def test_feedback_that_is_not_there_is_refused(where, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def f(output, example): return True")
    Path("mine").write_text("def f(output, example): return True")
    assert f"--feedback {where}: " in said(["--feedback", where], capsys)


# --- Directories ------------------------------------------------------------------------------------------------------


def test_default_directories_are_readable_and_no_two_alike(tmp_path, monkeypatch):
    def name(**how):
        return directory_of(train.RunConfig(**how)).name

    assert name() == "logical_deduction-hir-t5-mini-generated-seed0"
    assert name(checkpoint="google/flan-t5-base") == "logical_deduction-hir-google-flan-t5-base-generated-seed0"
    monkeypatch.chdir(tmp_path)
    for path in ("a/model", "b/model", "a/tasks", "b/tasks"):
        Path(path).mkdir(parents=True)
    names = [name(checkpoint=path) for path in ("a/model", "b/model")]
    names += [name(data=path) for path in ("a/tasks", "b/tasks")]
    assert len(set(names)) == 4 and name(data=str(tmp_path / "a" / "tasks")) == names[2]
    assert names[0].startswith("logical_deduction-hir-model-") and names[0].endswith("-generated-seed0")
    monkeypatch.setattr("support.run_directory.REPOSITORY", tmp_path)
    for path in ("runs/first/model", "runs/first/tasks", "checkpoints/own"):
        Path(path).mkdir(parents=True)
    named = {"runs/first/model": "first", "runs/first": "first", "checkpoints/own": "own", "a/model": "a"}
    assert all(name(checkpoint=path) == f"logical_deduction-hir-{named[path]}-generated-seed0" for path in named)
    assert name(data="a/tasks") == "logical_deduction-hir-checkpoints-t5-mini-a-tasks-seed0"


def test_a_directory_is_enough_to_resume(model, tmp_path, capsys):
    chosen = ["--alpha", "0.25", "--method", "hir", "--sub-output", "none", "--no-validation", "--seed", str(2**63 - 1)]
    arguments = [*SMALL, "--checkpoint", model, *chosen]
    runs = [str(tmp_path / name) for name in ("whole", "cut")]
    assert train.main([*arguments, "--out", runs[0], "--iterations", "2"]) == 0
    assert train.main([*arguments, "--out", runs[1]]) == 0
    assert train.main(["--resume", "--out", runs[1], "--iterations", "2"]) == 0
    for name in ("model/model.safetensors", "samples.jsonl", "answers.jsonl"):
        assert Path(runs[1], name).read_bytes() == Path(runs[0], name).read_bytes(), name
    capsys.readouterr()
    other = said(["--resume", "--out", runs[1], "--alpha", "0.25", "--seed", "4"], capsys)
    assert f"{runs[1]} was started with --seed {2**63 - 1}, not 4; choose another --out." in other


def test_a_run_that_only_evaluates_keeps_its_answers_and_no_model(model, tmp_path, capsys):
    arguments = [*SMALL, "--checkpoint", model, "--method", "none", "--out", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert there == {".lock", "config.json", "metrics.jsonl", "answers.jsonl"}
    answers = (tmp_path / "run" / "answers.jsonl").read_bytes()
    assert answers.count(b"\n") == 8 and train.main(["--resume", "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "answers.jsonl").read_bytes() == answers


# --- Messages ---------------------------------------------------------------------------------------------------------

MISTAKES = {
    "--quetsions 2": "there is no --quetsions: did you mean --questions?",
    "--train_epochs=3": "there is no --train_epochs: did you mean --train-epochs?",
    "--frobnicate": "there is no --frobnicate; settings are written as in --task a,b",
    "logical_deduction": "there is no logical_deduction; settings are written as in --task a,b",
    "--iteration 3": "there is no --iteration: did you mean --iterations?",
    "--method hri": "argument --method: invalid choice: 'hri' (choose from",
    "--seed 1e3": "argument --seed: invalid int value: '1e3'",
    f"--seed {10**400}": "it must be a number from 0 to 9223372036854775807",
    f"--iterations {2**63}": "--iterations is 9223372036854775808; it must be a number from 0 to 9223372036854775807",
    "--seed -1": "--seed is -1; it must be a number of at least 0",
    "--label-smoothing 2": "--label-smoothing is 2.0; it must be a number from 0 to 1",
    "--alpha inf": "--alpha is inf; it must be a number of at least 0",
    "--ppo-clip nan": "--ppo-clip is nan; it must be a number",
    "--ppo-lambda 1.5": "--ppo-lambda is 1.5; it must be a number from 0 to 1",
    "--method ppo --sampling-temperature 0": "--sampling-temperature is 0; --method ppo needs",
    "--dtype float16": "--dtype is float16; it must be auto, bfloat16 or float32 (T5's activations overflow float16)",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda arguments: arguments[:30])
def test_wrong_arguments_get_one_sentence(arguments, capsys):
    assert MISTAKES[arguments] in said(arguments.split(), capsys)


class NoFloat64(TorchDispatchMode):
    """Apple's GPU has no float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        made = [x.dtype for x in tree_leaves(result) if torch.is_tensor(x)]
        assert torch.float64 not in made and kwargs.get("dtype") != torch.float64, function
        self.calls = getattr(self, "calls", 0) + 1
        return result


@pytest.mark.parametrize("method", ["hir", "sft", "farl", "ppo", "grpo", "none"])
def test_every_method_keeps_to_80_columns_and_needs_no_float64(tmp_path, capsys, method):
    model = str(write_model(tmp_path / "model", dropout=0.1))
    out = tmp_path / "a_directory_with_a_long_name" / ("of_words-" * 8)
    with NoFloat64() as mode:
        assert train.main([*SMALL, "--checkpoint", model, "--method", method, "--out", str(out)]) == 0
    assert mode.calls > 1000
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80 and str(out) not in line] == []
    assert any(str(out) in line for line in lines)  # a path is not broken
    rows = [line.split() for line in lines if line[:3] in ("  0", "  1")]
    assert len(rows) == 1 + (method != "none")
    # An untrained model is never right, so FARL has nothing to learn from.
    losses = {"hir": 3, "sft": 1, "farl": 0, "ppo": 3, "grpo": 3, "none": 0}[method]
    assert len(rows[-1]) == 6 + losses + 1  # iteration, four shares, samples; losses; seconds


def test_rows_and_tables_of_many_shares_have_80_columns():
    shares = dict.fromkeys(("correct", "wrong", "obeyed", "malformed", "malformed_correct"), 1.0)
    tasks = {"a_task_whose_name_is_longer_than_those_of_bigbench_itself": {"n": 1, **shares}}
    losses = {"supervised": 10.123, "contrastive": 0.693, "entropy": -1.234}
    line = {"iteration": 999, "tasks": tasks, "right_share": 1.0, "losses": losses, "seconds": {"training": 9999.0}}
    for text in (tables.progress_header(), tables.progress_line(line), tables.before_and_after(line, dict(line))):
        assert max(map(len, text.splitlines())) <= 80, text
    assert "\n1 question: too few to tell; even 100.0 stands for 21 to 100 %" in tables.before_and_after(line, line)
    line["tasks"] = {"word_sorting": {"n": 200, **shares}}
    assert "\n200 questions: 95 % intervals reach 7 points" in tables.before_and_after(line, line)


def test_sample_wants_a_list_of_prompts():
    with pytest.raises(TypeError, match="must be a list of texts"):
        hir.sample(*load_checkpoint(REPOSITORY / "checkpoints" / "t5-nano"), "text")


# --- Ends -------------------------------------------------------------------------------------------------------------


def test_ctrl_c_during_imports_leaves_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)")
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = start([REPOSITORY / "train.py"], env={"PYTHONPATH": str(tmp_path)}, **heed)
    _, errors = process.communicate(timeout=60)
    assert errors == "train.py: stopped before it began\n"
    assert process.returncode == -signal.SIGINT  # which shells show as 130


def test_output_may_end_in_a_closed_pipe(model, tmp_path):
    run = [*SMALL, "--checkpoint", model, "--out", tmp_path / "run", "--iterations", "1000"]
    process = start([REPOSITORY / "train.py", *run])
    assert process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=120)) == ("", 141)


def test_a_terminal_without_unicode_is_no_obstacle(tmp_path):
    checkpoint = write_model(tmp_path / "modèle")
    arguments = [REPOSITORY / "train.py", *SMALL, "--checkpoint", checkpoint, "--out", tmp_path / "run"]
    output, errors = (process := start(arguments, env={"PYTHONIOENCODING": "ascii"})).communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "mod?le" in output and (tmp_path / "run" / "state.pt").exists()


def test_main_runs_in_a_thread_and_leaves_signals_as_they_were(model, tmp_path, capsys):
    """As in a notebook."""
    before, codes = [signal.getsignal(number) for number in STOP_SIGNALS], []
    arguments = [*SMALL, "--checkpoint", model]
    run = lambda: codes.append(train.main([*arguments, "--out", str(tmp_path / "thread")]))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert codes == [0] and train.main([*arguments, "--out", str(tmp_path / "main")]) == 0
    states = [read_lines(tmp_path / name / "answers.jsonl") for name in ("thread", "main")]
    assert states[0] == states[1]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_an_interrupted_notebook_goes_on_and_is_told_how_to_resume(model, tmp_path, capsys, monkeypatch, request):
    monkeypatch.setattr(train, "evaluate", lambda *_: signal.raise_signal(signal.SIGINT))
    # A program in the background of a shell has SIGINT ignored, and then so have the tests.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    arguments = [*SMALL, "--checkpoint", model, "--out", str(tmp_path / "run")]
    line = said(arguments, capsys, code=130)
    assert line.endswith(f"python train.py {' '.join(arguments)} --resume")
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
