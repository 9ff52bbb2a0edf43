"""Train a T5 on BIG-bench reasoning tasks with Hindsight Instruction Relabeling:  python train.py --task logical_deduction

The recipe of a run, from top to bottom: settings, questions, model and method, the loop over iterations, evaluation.
`python train.py --help` lists the settings. With torchrun, the same command runs on many processes.
"""

if __name__ == "__main__":  # before the imports, which take a second
    from support.signals import prepare_program

    prepare_program()

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import torch

import hir
from baselines import grpo, imitation, ppo
from bigbench_tasks import Example, expand, generate, load, split
from feedback import judge
from model_t5 import T5, Tokenizer, load_checkpoint, save_checkpoint
from support import ask, exits, explain, own_feedback, processes, task_files, task_list
from support.errors import InputError
from support.hub import model_width
from support.learner import Iteration, Learner
from support.machine import MachineSettings, choose_device, describe, place
from support.own_feedback import with_feedback
from support.replay import ReplaySet
from support.run_directory import check_run, directory_of, given_settings, open_run, readable, restore, save_iteration
from support.seeds import derived_seed
from support.settings import FlagParser, as_flags, as_values, build, setting
from support.tables import before_and_after, opening, progress_header, progress_line, say, time_left

# --- Settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunConfig:
    """Model, data and output of a run; the hyperparameters are in hir.Settings."""

    task: str = setting("logical_deduction", "a task, a family such as logical_deduction, several with commas, or all")
    method: str = setting("hir", "how to train; none only evaluates", ("hir", "sft", "farl", "ppo", "grpo", "none"))
    checkpoint: str = setting("checkpoints/t5-mini", "a directory, or a hub name such as google/flan-t5-base")
    tokenizer: str = setting("", "a directory or hub name that has the spiece.model, if the checkpoint does not")
    data: str = setting("generated", "generated, official (downloaded), a task file, or a directory of task files")
    option_order: str = setting("shuffled", "the order of the options in task files", ("shuffled", "official"))
    iterations: int = setting(30, "rounds of sampling and training (N of Algorithm 1)")
    questions: int = setting(0, "training questions per task and iteration; 0: the full training split")
    test_size: int = setting(0, "test questions per task; 0: the full test split, or 200 generated ones")
    interim_test_size: int = setting(0, "how many of these to ask between the first and the last evaluation; 0: all")
    validation: bool = setting(False, "evaluate on questions of the training part instead of the test part")
    feedback: str = setting("", "FILE.py:FUNCTION, your own judge of outputs (docs/feedback.md)")
    answers: str = setting("letters", "form of the targets of --method sft", ("letters", "text", "steps"))
    out: str = setting("", "directory of the run; by default in runs/, named after task, method, checkpoint and seed")
    resume: bool = setting(False, "continue after the last complete iteration of the run in --out, with its settings")
    seed: int = setting(0, "seed of all random numbers")
    list: bool = setting(False, "list all tasks in the data, each with its first question, and exit")
    explain: bool = setting(False, "walk through one iteration of HIR on up to four questions; no files are written")
    ask: bool = setting(False, "answer what is typed or piped in; --checkpoint A,B: before and after training")


# Table 7 was made for FLAN-T5. A model of two million parameters needs gentler values: one epoch, a smaller learning
# rate that decays, and no label smoothing, which with 2,048 tokens gives much of the probability to non-answers. It
# writes a chain of thought, so Eq. 4 compares answers alone.
SMALL_MODEL = {
    "iterations": 4, "questions": 100, "learning_rate": 4e-4, "warmup_steps": 10, "final_learning_rate": 0.1,
    "train_epochs": 1, "interim_test_size": 50, "label_smoothing": 0.0, "alpha": 0.5, "sub_output": "answer",
    "replay": "all", "max_new_tokens": 112, "grpo_learning_rate": 3e-4, "grpo_epochs": 2, "ppo_learning_rate": 3e-4,
    "ppo_value_learning_rate": 3e-4, "ppo_kl_coef": 0.01, "ppo_epochs": 2,
}  # fmt: skip
TITLES = ("run", "method (names and values of Table 7)", "PPO", "GRPO", "machine")


@dataclass(frozen=True)
class AllSettings:
    """All settings, parsed from the command line. The fields `ppo` and `grpo` hold what only these methods have."""

    run: RunConfig
    method: hir.Settings
    ppo: ppo.PPOSettings
    grpo: grpo.GRPOSettings
    machine: MachineSettings


def parse_arguments(argv: list[str]) -> AllSettings:
    """The settings of a run: the flags given, else, for a small model, SMALL_MODEL, else the values of Table 7."""
    epilog = f"Small models, such as those in checkpoints/, have other defaults: {' '.join(as_flags(SMALL_MODEL))}"
    groups = dict(zip(TITLES, [f.type for f in fields(AllSettings)], strict=True))
    parser = FlagParser(groups, description=__doc__.split("\n")[0], epilog=epilog)
    given = given_settings(parser, argv)
    width = model_width(given.get("checkpoint", RunConfig.checkpoint))
    defaults = SMALL_MODEL if width and width <= 256 else {}
    settings = AllSettings(*build(groups.values(), defaults | given))
    run, method, machine = settings.run, settings.method, settings.machine
    if method.contrastive == "batch" and (machine.micro_batch_size or processes.launched()):
        raise InputError("--contrastive batch needs the complete batch: leave out --micro-batch-size and torchrun")
    if run.method in ("ppo", "grpo") and method.sampling_temperature == 0:
        raise InputError(f"--sampling-temperature is 0; --method {run.method} needs randomly drawn outputs")
    if machine.shard_model and (machine.compile or run.method == "ppo" or not processes.launched()):
        raise InputError("--shard-model needs torchrun, and cannot be combined with --compile or --method ppo")
    return settings


# --- Questions --------------------------------------------------------------------------------------------------------


def held_out_questions(run: RunConfig, tasks: list[str]) -> dict[str, list[Example]]:
    """The held-out questions of each task: the same ones for every seed and method."""
    if run.data == "generated":
        part, seed = ("train", -1) if run.validation else ("test", 0)  # an iteration's seed is never negative
        return {task: generate(task, run.test_size or 200, seed, part) for task in tasks}
    held_out = {task: split(load(task, run.data, run.option_order))[not run.validation] for task in tasks}
    return {task: examples[: run.test_size or None] for task, examples in held_out.items()}


def training_questions(run: RunConfig, tasks: list[str], iteration: int) -> list[Example]:
    """The questions of an iteration: freshly generated, or drawn from the training split of the task files."""
    seed, examples = derived_seed(run.seed, iteration, "questions"), []
    for task in tasks:
        if run.data == "generated":
            examples += generate(task, run.questions or 800, seed)
        else:
            pool = split(load(task, run.data, run.option_order))[0]
            examples += random.Random(seed).sample(pool, min(run.questions or len(pool), len(pool)))
    return random.Random(seed).sample(examples, len(examples))


# --- Model and method -------------------------------------------------------------------------------------------------


def load_model(run: RunConfig, machine: MachineSettings) -> tuple[T5, Tokenizer]:
    """The checkpoint's model, on the device of this process, and tokenizer."""
    device, dtype = choose_device(machine)
    processes.join(device)
    with processes.first_alone():
        model, tokenizer = load_checkpoint(run.checkpoint, run.tokenizer or None)
    return place(model, machine, device, dtype), tokenizer


Method = Callable[[Learner, Any, Callable[[int], list[Example]], hir.Settings, Iterable[int], int], Iterator[Iteration]]


def rebuild_sample(fields: dict) -> hir.Sample:
    """A sample from its fields in state.pt."""
    return hir.Sample(**fields | {"example": Example(**fields["example"])})


def build_method(s: AllSettings, model: T5, tokenizer: Tokenizer) -> tuple[Learner, Method | None, Any]:
    """The learner, the method that trains it, and the method's own state: replay set or critic."""
    rates = {"ppo": s.ppo.ppo_learning_rate, "grpo": s.grpo.grpo_learning_rate}
    settings = replace(s.method, learning_rate=rates.get(s.run.method, s.method.learning_rate))
    learner, state = Learner(model, tokenizer, s.machine, settings), None
    if s.run.method in ("hir", "farl"):
        state = ReplaySet(settings.replay, s.machine.replay_size, rebuild_sample)
    if s.run.method == "ppo":
        state = ppo.PPO(learner, s.ppo)
    methods: dict[str, Method] = {
        "hir": hir.hindsight_instruction_relabeling,
        "farl": imitation.final_answer_rl,
        "sft": partial(imitation.fine_tuning, answers=s.run.answers),
        "ppo": ppo.proximal_policy_optimization,
        "grpo": partial(grpo.group_relative_policy_optimization, own=s.grpo),
    }
    return learner, methods.get(s.run.method), state


# --- The loop ---------------------------------------------------------------------------------------------------------


@with_feedback
def train(s: AllSettings) -> dict:
    """A complete run. Returns the last line of metrics.jsonl."""
    run, begin = s.run, time.perf_counter()
    tasks, out = expand(run.task, run.data), directory_of(run)
    config = {"run": as_values(run, s.machine), "settings": as_values(s.method, getattr(s, run.method, s.method))}
    config["files"] = task_files.sums(tasks, run.data) | own_feedback.sums(run.feedback)
    # Bad input is reported before any long work and before anything is written.
    check_run(out, config, run.resume)
    tests, questions = held_out_questions(run, tasks), lru_cache(1)(partial(training_questions, run, tasks))
    num_questions = len(questions(1)) if run.method != "none" else 0
    task_list.check_questions(run, tests, num_questions)
    model, tokenizer = load_model(run, s.machine)
    _lock = open_run(out, config, run.resume)  # held until train() returns
    learner, method, method_state = build_method(s, model, tokenizer)
    states = learner.states() | ({"method": method_state} if method_state else {})
    lines = restore(out, states)  # of metrics.jsonl
    say(opening(run, config["settings"], describe(model), num_questions, tests))
    last = run.iterations if method else 0
    say(f"ready after {time.perf_counter() - begin:.1f} s; writing to {out}\n\n{progress_header(len(lines) <= last)}")

    if method:
        iterations = method(learner, method_state, questions, s.method, range(max(1, len(lines)), last + 1), run.seed)
    for iteration in range(len(lines), last + 1):
        line, examples = {"iteration": iteration, "sampled": 0, "right_share": None, "losses": {}, "seconds": {}}, []
        if iteration > 0:  # iteration 0 is the model before training
            learner.start_iteration(progress=(iteration - 1) / max(1, last - 1))
            torch.manual_seed(derived_seed(run.seed, iteration, processes.rank(), "dropout"))
            measured, examples = train_iteration(learner, iterations)
            line |= measured | {"sampled": lines[-1]["sampled"] + measured["sampled"]}
        interim = run.interim_test_size if 0 < iteration < last else 0
        shares, answers, line["seconds"]["evaluation"] = evaluate(s, model, tokenizer, tests, interim)
        lines.append(line | {"tasks": shares})
        say(progress_line(lines[-1]))
        if iteration == 0 < last:
            say(time_left(run, config["settings"], num_questions, lines[0]))
        save_model = partial(save_checkpoint, out / "model", model, tokenizer)
        samples = readable(examples, iteration, tokenizer.decode)
        save_iteration(out, states if method else {}, save_model, lines, samples, answers)
    say(f"\n{before_and_after(lines[0], lines[-1])}")
    return lines[-1]


def train_iteration(learner: Learner, iterations: Iterator[Iteration]) -> tuple[dict, list]:
    """The next iteration of a method: what metrics.jsonl says about it, and what was trained on."""
    begin = time.perf_counter()
    result = next(iterations)
    steps, (losses, training) = len(learner.steps), learner.finish_iteration()
    seconds = {"sampling": round(time.perf_counter() - begin - training, 3), "training": round(training, 3)}
    line: dict = {"sampled": len(result.samples), "steps": steps, "losses": losses, "seconds": seconds}
    for name, verdict in (("right_share", "right"), ("malformed_share", "malformed")):
        if result.samples:
            line[name] = sum(s.verdict == verdict for s in result.samples) / len(result.samples)
    return line | result.measured, result.examples


# --- Evaluation -------------------------------------------------------------------------------------------------------


def evaluate(
    s: AllSettings, model: T5, tokenizer: Tokenizer, tests: dict[str, list[Example]], size: int = 0
) -> tuple[dict[str, dict[str, float]], list[dict], float]:
    """Greedy answers to the first `size` test questions of each task (0: to all) under both instructions.

    Returns the shares by task, every answer with its verdict, and the seconds that this took.

    Under CORRECT: `correct`, `malformed_correct`. Under WRONG: `wrong` (still right), `obeyed` (an answer, and
    wrong) and `malformed` (no answer), which add up to 1.
    """
    begin, tests = time.perf_counter(), {task: examples[: size or None] for task, examples in tests.items()}
    examples = [example for task in tests.values() for example in task]
    shares: dict[str, dict[str, float]] = {task: {"n": len(tests[task])} for task in tests}
    keys = {
        hir.CORRECT: {"correct": "right", "malformed_correct": "malformed"},
        hir.WRONG: {"wrong": "right", "obeyed": "wrong", "malformed": "malformed"},
    }
    answers = []
    for instruction, names in keys.items():
        prompts = [hir.prompt(instruction, example.question) for example in examples]
        length, batch_size = s.method.max_new_tokens, s.machine.sampling_batch_size
        outputs = hir.sample(model, tokenizer, prompts, 1, 0.0, length, batch_size=batch_size)
        verdicts = [judge(output, example) for (output,), example in zip(outputs, examples, strict=True)]
        for task in tests:
            of_task = [v for v, example in zip(verdicts, examples, strict=True) if example.task == task]
            shares[task] |= {name: of_task.count(verdict) / max(1, len(of_task)) for name, verdict in names.items()}
        answers += [
            {"task": e.task, "instruction": instruction, "question": e.question, "targets": e.targets,
             "answer": output, "verdict": verdict}
            for e, (output,), verdict in zip(examples, outputs, verdicts, strict=True)
        ]  # fmt: skip
    return shares, answers, round(time.perf_counter() - begin, 3)


# --- The command ------------------------------------------------------------------------------------------------------


@with_feedback
def explain_or_ask(s: AllSettings) -> None:
    """--explain and --ask, on training questions of the first task, at the full learning rate."""
    examples = training_questions(s.run, expand(s.run.task, s.run.data)[:1], iteration=1)
    names = s.run.checkpoint.split(",") if s.run.ask else [s.run.checkpoint]
    models = [load_model(replace(s.run, checkpoint=name), s.machine) for name in names]
    learners = [Learner(*model, s.machine, replace(s.method, warmup_steps=0)) for model in models]
    (ask.ask if s.run.ask else explain.explain)(learners, examples, s.method, s.run)


def main(argv: list[str] | None = None) -> int:
    """The command. Its exit codes are those of support/exits.py."""
    argv = sys.argv[1:] if argv is None else argv

    def command() -> None:
        settings = parse_arguments(argv)
        run = settings.run
        (task_list.main if run.list else explain_or_ask if run.explain or run.ask else train)(settings)

    return exits.run(command, argv)


if __name__ == "__main__":
    sys.exit(main())
