"""What can go wrong with a run, done to it: kills, full disks, lost processes, bad numbers."""

import contextlib
import copy
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils._pytree import tree_leaves

import hir
import train
from bigbench_tasks import generate
from model_t5 import T5, T5Config, Tokenizer, load_checkpoint, save_checkpoint
from support import REPOSITORY
from support.files import read_lines, replacing, write_file
from support.learner import Learner
from support.machine import MachineSettings
from support.replay import ReplaySet
from tests.conftest import SPIECE, THOROUGH, record

ITERATIONS = 4


def write_model(directory, dropout=0.0, **how):
    torch.manual_seed(0)
    sizes = {"vocab_size": 2048, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    config = T5Config(dropout_rate=dropout, tie_word_embeddings=False, **sizes | how)
    save_checkpoint(directory, T5(config), Tokenizer(SPIECE, 0))
    return directory


# --- Runs in processes ------------------------------------------------------------------------------------------------


def command(checkpoint, out, *more):
    flags = (
        "--task object_counting --questions 6 --test-size 4 --train-epochs 2 --ppo-epochs 2 --max-new-tokens 3 "
        f"--warmup-steps 0 --train-batch-size 8 --iterations {ITERATIONS} --device cpu --dtype float32"
    )
    return [*map(str, [REPOSITORY / "train.py", "--checkpoint", checkpoint, *flags.split(), "--out", out, *more])]


def start(arguments, processes=1, env=None, **how):
    """A Python program in a process, or in those of torchrun, with these variables added to its environment."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes > 1 else []), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how,
    )  # fmt: skip


def finish(process, code=0):
    """The end of a process: its exit code, and what it said to stderr."""
    _, errors = process.communicate(timeout=280)
    assert process.returncode == code, errors
    return errors


def sentence(errors):
    """The one sentence with which the command ended."""
    (line,) = (line for line in errors.splitlines() if line.startswith("train.py: "))
    assert errors.count("Traceback") == errors.count("in main\n    run(args)\n")  # torchrun has one of its own
    return line


def refusal(arguments, capsys, code=2):
    """What the command says to a directory or settings that it does not take, without a process of its own."""
    assert train.main(arguments[1:]) == code
    return sentence(capsys.readouterr().err)


def metrics(out):
    return read_lines(out / "metrics.jsonl")


def saved_lines(out):
    return torch.load(out / "state.pt", weights_only=True)["lines"]


def wait_for(condition, process):
    """Wait until something holds; False if the process ends before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def being_written(out, name="*"):
    return list(out.rglob(f".{name}.????????"))


def differences(out, whole):
    """What two runs have left behind that is not the same to the bit; only the seconds may differ."""
    states = [torch.load(directory / "state.pt", weights_only=True) for directory in (out, whole)]
    for state in states:
        for line in state["lines"]:
            del line["seconds"]
    tensors = [[t.numpy().tobytes() for t in find_tensors(state)] for state in states]
    assert len(tensors[0]) > 100 and not being_written(out)
    found = ["tensors of state.pt"] * (tensors[0] != tensors[1]) + ["state.pt"] * (repr(states[0]) != repr(states[1]))
    lines = [[line | {"seconds": 0} for line in metrics(directory)] for directory in (out, whole)]
    found += ["metrics.jsonl"] * (lines[0] != lines[1])
    names = ("model/model.safetensors", "model/config.json", "model/spiece.model", "samples.jsonl")
    return found + [name for name in names if (out / name).read_bytes() != (whole / name).read_bytes()]


def find_tensors(value):
    return [leaf for leaf in tree_leaves(value) if torch.is_tensor(leaf)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small checkpoint with dropout, so that a run needs its random numbers."""
    return write_model(tmp_path_factory.mktemp("model") / "small", dropout=0.1)


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """By method, a run that nothing has disturbed, and how many seconds it took."""

    @functools.cache
    def run(method):
        out, begin = tmp_path_factory.mktemp("whole") / method, time.monotonic()
        finish(start(command(model, out, "--method", method)))
        assert len(metrics(out)) == ITERATIONS + 1
        return out, time.monotonic() - begin

    return run


# Runs train.py, and kills itself before the given one of the calls with which files are written and renamed.
KILLER = """
import os, runpy, signal, sys
left = int(sys.argv.pop(1))
def counted(real):
    def call(*arguments):
        global left
        left -= 1
        return real(*arguments) if left else os.kill(os.getpid(), signal.SIGKILL)
    return call
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def is_killed(arguments, rng, saving, seconds):
    """Run, and kill -9 at a random moment: within the saving of files, or at any time. Had it not ended before?"""
    # A file that is saved makes three calls: its fsync, its renaming, and the fsync of its directory, when it is whole.
    call = 3 * rng.randrange(15) + rng.choice((1, 2))
    process = start(["-c", KILLER, str(call), *arguments] if saving else arguments)
    if not saving:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, seconds))
        process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("method", "kills"), [("hir", 20), ("ppo", 5)] if THOROUGH else [("hir", 2)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(model, undisturbed, tmp_path, method, kills):
    """kill -9 at random moments, every other one among those in which files are saved; four at most, then to the end."""
    (whole, seconds), rng, killed, results = undisturbed(method), random.Random(kills), [], []
    while len(killed) < kills:
        out = tmp_path / str(len(results))
        for _ in range(4):
            arguments = command(model, out, "--method", method, "--resume")
            if len(killed) == kills or not is_killed(arguments, rng, len(killed) % 2, seconds):
                break
            half_written = [path.name.split(".")[1] for path in being_written(out)]
            killed.append({"lines_of_metrics": len(metrics(out)), "half_written": half_written})
        finish(start(arguments))
        results.append(differences(out, whole))
        shutil.rmtree(out)
    about = {"iterations": ITERATIONS, "kills": len(killed), "runs": len(results)}
    about |= {"runs_that_differ": sum(map(bool, results)), "moments": killed}
    record(f"kill -9 of --method {method}, resumed, compared to the bit with a run that was not stopped", **about)
    assert not any(results), results
    assert any(moment["half_written"] for moment in killed)


def test_a_full_disk_costs_one_iteration(model, undisturbed, tmp_path):
    """A limit on the size of files strikes where the disk is full: while state.pt, the largest of them, is written."""
    whole, _ = undisturbed("hir")
    size = (whole / "state.pt").stat().st_size - 1000
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    line = sentence(finish(start(command(model, tmp_path), **limited), code=2))
    assert "could not be saved (File too large)" in line and "--resume" in line
    assert not being_written(tmp_path)
    assert 0 < len(saved_lines(tmp_path)) < ITERATIONS + 1
    finish(start(command(model, tmp_path, "--resume")))
    assert not differences(tmp_path, whole)


def test_a_run_is_stopped_and_what_is_going_on_or_has_other_settings_is_left_alone(model, tmp_path, capsys):
    arguments = command(model, tmp_path, "--iterations", 10_000)
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, and what schedulers send
        resumed = [*arguments, "--resume"] if number == signal.SIGTERM else arguments
        before = len(metrics(tmp_path))
        heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
        running = start(resumed, **heed)
        assert wait_for(lambda before=before: len(metrics(tmp_path)) > before + 1, running)
        assert f"in use by process {running.pid};" in refusal([*arguments, "--resume"], capsys)
        running.send_signal(number)
        assert sentence(finish(running, code=130)).endswith(f"python {' '.join(arguments)} --resume")
        assert len(saved_lines(tmp_path)) == len(metrics(tmp_path))
        assert not being_written(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = refusal([*arguments, "--resume", "--alpha", "3", "--seed", "4"], capsys)
    assert "--seed 0, not 4; --alpha 0.5, not 3.0" in other
    assert "add --resume" in refusal(arguments, capsys)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# Several questions, of which each process gets some; and steps so small that what rounding does to Adam moves no sample.
SHARED_WORK = ["--train-batch-size", 32, "--learning-rate", 1e-4]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A checkpoint without dropout, of which each process would draw its own, and the run of one process with it."""
    directory = tmp_path_factory.mktemp("alone")
    checkpoint = write_model(directory / "small")
    finish(start(command(checkpoint, directory / "run", *SHARED_WORK)))
    return checkpoint, directory / "run"


def kill_one(job, victim, out, lines):
    """kill -9 to one of the processes of torchrun, when there are so many lines of metrics; the others must say so."""
    assert wait_for(lambda: len(metrics(out)) >= lines, job)
    workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(workers[victim]), signal.SIGKILL)
    said = sentence(finish(job, code=1))
    assert "--resume" in said and ("another process of this run has ended" in said or "stopped" in said)
    assert len(metrics(out)) < ITERATIONS + 1


# How many processes begin, with which flags; which one is killed, None for none; how many go on, with which flags.
SPLIT = ["--shard-model", "--gradient-checkpointing"]
JOBS = [(2, SPLIT, 0, 2, [])]
if THOROUGH:
    JOBS += [(2, [], None, 2, []), (2, [], 1, 1, []), (2, [], 0, 3, SPLIT)]


@pytest.mark.parametrize(("processes", "flags", "victim", "then", "other_flags"), JOBS)
def test_many_processes_train_as_one_and_outlive_the_death_of_one(
    alone, tmp_path, processes, flags, victim, then, other_flags
):
    (checkpoint, one), out = alone, tmp_path / "many"
    arguments = command(checkpoint, out, *SHARED_WORK, "--micro-batch-size", 2)
    job = start([*arguments, *flags], processes)
    if victim is None:
        finish(job)
    else:
        kill_one(job, victim, out, ITERATIONS - 1)
        finish(start([*arguments, "--resume", *other_flags], then))
    pairs = list(zip(metrics(one), metrics(out), strict=True))
    apart = [abs(a["losses"][name] - b["losses"][name]) for a, b in pairs for name in a["losses"]]
    weights = [load_checkpoint(directory / "model")[0].state_dict() for directory in (one, out)]
    weights_apart = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    first = " ".join([f"{processes} processes", *flags])
    after = "" if victim is None else " ".join([f", process {victim} killed, resumed by {then}", *other_flags])
    about = {"iterations": ITERATIONS, "largest_difference_of_a_loss": max(apart), "of_a_weight": weights_apart}
    record(f"{first}{after}, against one process, float32", **about)
    assert max(apart) < 1e-5 and weights_apart < 1e-4
    assert all(a["tasks"] == b["tasks"] and a.get("right_share") == b.get("right_share") for a, b in pairs)
    assert (one / "samples.jsonl").read_bytes() == (out / "samples.jsonl").read_bytes()


def test_what_a_killed_process_left_is_cleared_away_and_what_is_being_written_is_not(tmp_path):
    target = tmp_path / "state.pt"
    (tmp_path / ".state.pt.abcdefgh").write_bytes(b"left")
    with replacing(target) as file:
        file.write(b"first")
        write_file(target, b"second")
        assert len(being_written(tmp_path, "state.pt")) == 1
    assert target.read_bytes() == b"first" and [path.name for path in tmp_path.iterdir()] == ["state.pt"]


# --- Numbers that go wrong --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load_checkpoint(write_model(tmp_path_factory.mktemp("small")))


def train_on(small, monkeypatch, examples, output, **settings):
    """An iteration in which every question is answered with this output, None for the right one.

    Returns the losses, and all tensors of the weights and the optimizer; the model stays as it was.
    """
    model, tokenizer = copy.deepcopy(small[0]), small[1]
    values = hir.Settings(**{"train_epochs": 1, "train_batch_size": 1, "learning_rate": 1e-3} | settings)
    texts = [example.targets[0] if output is None else output for example in examples]
    answered = zip(examples, texts, strict=True)
    samples = [hir.make_sample(example, tuple(tokenizer.encode(text)), tokenizer) for example, text in answered]
    monkeypatch.setattr(hir, "sample_online", lambda *_: samples)
    learner = Learner(model, tokenizer, MachineSettings(), values)
    replay = ReplaySet("all", 1000, tuple)
    list(hir.hindsight_instruction_relabeling(learner, replay, lambda _: examples, values, [1], 0))
    losses, _ = learner.finish_iteration()
    return losses, find_tensors(model.state_dict()), find_tensors(learner.optimizer.state_dict())


def spoil(monkeypatch, question, how):
    """Make the loss of every batch with this question, or only its gradient, something that is not finite."""
    honest = hir.loss_terms

    def spoiled(model, tokenizer, groups, settings):
        terms = honest(model, tokenizer, groups, settings)
        if question in {group[0].question for group in groups}:
            terms["supervised"].register_hook(lambda gradient: gradient * float("nan"))
            terms["supervised"] = terms["supervised"] * (1.0 if how == "gradient" else float(how))
        return terms

    monkeypatch.setattr(hir, "loss_terms", spoiled)


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_a_step_whose_numbers_are_not_finite_is_left_out_and_shown(small, monkeypatch, capsys, how):
    examples = generate("object_counting", 5, seed=0)
    spoil(monkeypatch, examples[2].question, how)
    whole = {"sub_output": "none"}
    losses, weights, kept = train_on(small, monkeypatch, examples, "0 zebra", **whole)
    shown = capsys.readouterr().err
    assert [e for e in examples if repr(e.question) in shown] == [examples[2]]
    assert losses.pop("steps_left_out") == 1 and all(0 < abs(value) < 100 for value in losses.values())
    assert all(tensor.isfinite().all() for tensor in weights + kept)
    assert not all(map(torch.equal, find_tensors(small[0].state_dict()), weights))
    with pytest.raises(FloatingPointError, match="not finite"):  # nothing is left to learn from
        train_on(small, monkeypatch, [examples[2]], "0 zebra", **whole)
    with pytest.raises(FloatingPointError, match="10 gradients"):
        train_on(small, monkeypatch, examples, "0 zebra", **whole, train_epochs=20)


def test_weights_that_grow_beyond_all_numbers_are_not_saved(model, tmp_path, capsys):
    assert "--learning-rate" in refusal(command(model, tmp_path, "--learning-rate", 1e38), capsys, code=1)
    assert len(saved_lines(tmp_path)) == len(metrics(tmp_path)) == 1
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in find_tensors(state))


@pytest.mark.parametrize("output", [None, "0 zebra", ""], ids=["all right", "all wrong", "all empty"])
@pytest.mark.parametrize("questions", [0, 1, 6])
@pytest.mark.parametrize("contrastive", ["instructions", "batch"])
@pytest.mark.parametrize("sub_output", ["encoder", "decoder", "answer"])
def test_training_takes_any_samples(small, monkeypatch, output, questions, contrastive, sub_output):
    how = {"train_batch_size": 10_000, "contrastive": contrastive, "sub_output": sub_output}
    examples = generate("word_sorting", questions, seed=0)
    losses, weights, _ = train_on(small, monkeypatch, examples, output, **how)
    assert bool(losses) == bool(examples) and all(abs(value) < 100 for value in losses.values())
    assert all(tensor.isfinite().all() for tensor in weights)


# --- Without what POSIX alone has -------------------------------------------------------------------------------------


def test_runs_without_fcntl(model, tmp_path):
    """Where there are no file locks, as on Windows, the run does without them."""
    blocked = "import runpy, sys; sys.modules['fcntl'] = None; sys.path.insert(0, '.'); sys.argv = sys.argv[1:]; "
    blocked += "from support.files import lock; assert lock(sys.stdin) is None; "
    run = ["-c", blocked + "runpy.run_path(sys.argv[0], run_name='__main__')"]
    finish(start([*run, *command(model, tmp_path / "run", "--iterations", 1)], cwd=REPOSITORY))
    assert len(metrics(tmp_path / "run")) == 2
