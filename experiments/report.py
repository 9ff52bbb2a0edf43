"""Tables and pictures of runs:  python -m experiments.report [RUN ...]

Given directories of runs, it prints a table that compares them, and draws their learning curves.

Without any, it draws the paper's tables and pictures, results/tables.md and results/*.png, from results/runs/. --run
first makes the runs that are missing there, --jobs at a time, in runs/report/; stopped at any moment, the same command
resumes. --only names runs by a pattern such as '*-ppo-*'; searches of hyperparameters ('search-*') are made only then.
"""

import argparse
import fnmatch
import itertools
import statistics
import sys
from functools import cache
from pathlib import Path

import train
from bigbench_tasks import TASKS, expand
from experiments import results as of
from experiments.results import Estimate, Results, measured
from support import REPOSITORY
from support.errors import InputError
from support.files import write_file
from support.settings import flag
from support.tables import percent

# --- The runs ---------------------------------------------------------------------------------------------------------

METHODS = {"sft": "fine-tuning", "ppo": "PPO", "farl": "FARL", "hir": "HIR"}
COLUMNS = {"none": "before", **METHODS}
SEEDS = (0, 1, 2)
# Every method draws the same number of outputs for the same number of questions.
BUDGET = "--iterations 5 --questions 100 --online-samples 4 --test-size 200"
ABLATED = ("logical_deduction_three_objects", "tracking_shuffled_objects_three_objects")  # the tasks of Tables 3 and 4
WITH_SEEDS = (*ABLATED, "object_counting", "reasoning_about_colored_objects")  # the others are run with the first seed
FAMILIES = ("logical_deduction", "tracking_shuffled_objects", "object_counting")  # run with the defaults of train.py
SIZES = ("t5-nano", "t5-mini")
VARIANTS = (  # label, method, what differs, the paper's figures in its Table 4
    ("full method", "hir", "", ("91.7", "100.0")),
    ("without sub-output sampling", "hir", "--sub-output none", ("75.0", "100.0")),
    ("the same, as many gradient steps as the full method", "hir", "--sub-output none --train-epochs 3", (None, None)),
    ("without entropy", "hir", "--beta 0", (None, None)),
    ("with the paper's label smoothing", "hir", "--label-smoothing 0.2", (None, None)),
    ("without the contrastive term", "hir", "--alpha 0", (None, None)),
    ("fine-tuning, one epoch", "sft", "", (None, None)),
    ("fine-tuning, eight epochs", "sft", "--train-epochs 8", (None, None)),
    ("FARL, one epoch", "farl", "", (None, None)),
    ("FARL, eight epochs", "farl", "--train-epochs 8", (None, None)),
)
OFFICIAL = "--method none --data official --test-size 200"
# Only the file teaches letters, as the bundled models answer in words; so this is fine-tuning.
LEAK = (
    "--data official --method sft --answers letters --questions 0 --iterations 3 --learning-rate 1e-3 "
    "--final-learning-rate 1"
)
ORDERS = ("official", "shuffled")
# Hyperparameters are searched by the share of right samples: these answer training questions, no test question.
SEARCH_TASK = "tracking_shuffled_objects_three_objects"
PPO_GRID = {"--ppo-learning-rate": "1e-4 3e-4 1e-3", "--ppo-epochs": "2 4", "--ppo-kl-coef": "0.01 0.1"}


def name_of(task: str, method: str, seed: int = 0, size: str = "t5-mini", flags: str = "") -> str:
    """The name of a run: of its file in results/runs/ and of its directory in runs/report/."""
    words = (word.strip("-") for word in flags.split())
    return "-".join([task, method, *words, *([size] if size else []), f"seed{seed}"])


def names_of(task: str, method: str, size: str = "t5-mini", flags: str = "") -> list[str]:
    """The names of a run with all its seeds."""
    seeds = SEEDS if task in WITH_SEEDS or task not in TASKS else SEEDS[:1]
    return [name_of(task, method, seed, size, flags) for seed in seeds]


def planned_runs(runs: Path) -> dict[str, list[str]]:
    """Name -> arguments of train.py, of all that tables and pictures show. `runs` is where trained models are."""
    compared = [*itertools.product(TASKS, METHODS, ["t5-mini"], [""])]
    compared += [(task, method, "t5-mini", flags) for task in ABLATED for _, method, flags, _ in VARIANTS]
    compared += itertools.product(ABLATED, METHODS, SIZES, [""])
    plan = {}
    for family in FAMILIES:
        for seed, name in enumerate(names_of(family, "default", size="")):
            plan[name] = f"--task {family} --seed {seed}"
    for task, method, size, flags in compared:
        # The bundled models reason before they write an option out; an official answer is its letter.
        own = "--answers steps" if method == "sft" else ""
        for seed, name in enumerate(names_of(task, method, size, flags)):
            where = f"--task {task} --method {method} --seed {seed} --checkpoint checkpoints/{size}"
            plan[name] = f"{where} {own} {BUDGET} {flags}"
    for values in itertools.product(*map(str.split, PPO_GRID.values())):
        flags = " ".join(map(" ".join, zip(PPO_GRID, values, strict=True)))
        plan["-".join(("search-ppo", *values))] = f"--task {SEARCH_TASK} --method ppo {BUDGET} --test-size 1 {flags}"
    plan = {name: arguments.split() for name, arguments in plan.items()}
    return plan | _runs_on_official_questions(runs)


def _runs_on_official_questions(runs: Path) -> dict[str, list[str]]:
    plan = {}
    for task in TASKS:
        plan[f"{task}-official-before"] = before = f"--task {task} {OFFICIAL}".split()
        plan[f"{task}-official-after"] = [*before, "--checkpoint", str(runs / name_of(task, "hir") / "model")]
    for order, other in (ORDERS, ORDERS[::-1]):
        for seed, name in enumerate(names_of("leak", order, size="")):
            where = f"--task date_understanding --seed {seed} --option-order"
            plan[name] = f"{where} {order} {LEAK}".split()
            after = f"{where} {other} {OFFICIAL} --checkpoint".split()
            plan[f"{name}-other-order"] = [*after, str(runs / name / "model")]
    return plan


# --- Tables: from results to title, text, header and rows -------------------------------------------------------------

Table = tuple[str, str, list[str], list[list[object]]]
SHARES = ("correct", "wrong", "obeyed", "malformed")
SHARES_ADD_UP = (
    "Asked for a wrong answer, an output is still right, obeys with a well-formed wrong answer, or is malformed."
)


def of_method(results: Results, task: str, method: str, key: str = "correct", size: str = "t5-mini") -> Estimate | None:
    """A cell of Table 2 or 3. "none" is the model before training: iteration 0 of any run, and the same in all."""
    if method != "none":
        return measured(results, names_of(task, method, size), key)
    found = [name for other in METHODS for name in names_of(task, other, size) if name in results]
    before = [results[name].value(line=0) for name in found]
    if before and max(before) - min(before) > 0.02:
        raise InputError(f"the runs of {task} on {size} began from different models; remove the older ones.")
    return measured(results, found[:1], key, line=0)


def before_and_after(results: Results, places: dict[str, tuple[tuple, tuple]]) -> tuple[list[str], list[list[object]]]:
    """Header and rows of a table: task -> before and after, each names, line and task as `measured` takes them.

    Columns that no run has recorded are left out.
    """
    columns = {"task": list(places)}
    for key, when in itertools.product(SHARES, (0, 1)):
        title = {"correct": "", "wrong": "wrong instruction, "}.get(key, f"{key}, ") + ("before", "after")[when]
        columns[title] = [measured(results, at[when][0], key, *at[when][1:]) for at in places.values()]
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    return list(columns), list(map(list, zip(*columns.values(), strict=True)))


def default_table(results: Results) -> Table:
    """What `python train.py --task FAMILY` does with its defaults."""
    names = {task: names_of(family, "default", size="") for family in FAMILIES for task in expand(family)}
    places = {task: ((seeds[:1], 0, task), (seeds, -1, task)) for task, seeds in names.items()}
    text = f"`python train.py --task FAMILY --seed SEED`, {len(SEEDS)} seeds: % of the test questions. {SHARES_ADD_UP}"
    return "The default runs", text, *before_and_after(results, places)


def official_table(results: Results) -> Table:
    """What training on generated questions does to official ones."""
    places = {task: (([f"{task}-official-before"],), ([f"{task}-official-after"],)) for task in TASKS}
    text = (
        "Official BIG-bench questions (at most 200 of the authors' test split, options shuffled), which no bundled model "
        "was trained on, before and after HIR on generated ones (the runs of Table 2, seed 0)."
    )
    return "Official questions", text, *before_and_after(results, places)


@cache
def chance(task: str) -> str | None:
    """The accuracy in % of picking an option blindly; None where there are no options."""
    [examples] = train.held_out_questions(train.RunConfig(), [task]).values()
    shares = [len(e.targets) / len(e.options) for e in examples if e.options]
    return percent(statistics.mean(shares)) if shares else None


def table_2(results: Results) -> Table:
    """All tasks, all methods, and the averages."""
    cells = {task: [of_method(results, task, method) for method in COLUMNS] for task in TASKS}
    rows = [[task, chance(task), *row] for task, row in cells.items()]
    rows.append(["average", None, *map(of.average, zip(*cells.values(), strict=True))])
    text = (
        f"Test accuracy in %. {', '.join(WITH_SEEDS)}: {len(SEEDS)} seeds, the others one. Every method but fine-tuning "
        f"draws the same number of outputs (`{BUDGET}`). Chance is an option picked blindly."
    )
    return "Table 2: all tasks", text, ["task", "chance", *COLUMNS.values()], rows


def claims_table(results: Results) -> Table:
    """What the paper says of Table 2."""
    rows: list[list] = []
    for method, paper in (("ppo", "11.2"), ("farl", "32.6")):
        ours, theirs = (of.average([of_method(results, task, m) for task in TASKS]) for m in ("hir", method))
        rows.append([f"HIR over {METHODS[method]}, average (Sec. 1)", paper, of.lead(ours, [theirs])])
    for size, paper in (("five", "41.2"), ("seven", "29.2")):
        task = f"tracking_shuffled_objects_{size}_objects"
        ours, *others = (of_method(results, task, method) for method in ("hir", "ppo", "farl"))
        rows.append([f"HIR over the better of PPO and FARL, {task} (Sec. 6.1)", paper, of.lead(ours, others)])
    return "What the paper says of Table 2", "In points; its models are FLAN-T5's.", ["", "paper", "here"], rows


def wrong_table(results: Results) -> Table:
    """The three shares when a wrong answer is asked for."""
    shares = itertools.product(TASKS, zip(SHARES[1:], ("right", "obeyed", "malformed"), strict=True))
    rows = [[task, share, *(of_method(results, task, m, key) for m in COLUMNS)] for task, (key, share) in shares]
    header, rows = ["task", "share", *COLUMNS.values()], [row for row in rows if any(row[2:])]
    return "Under the wrong instruction", f"% of the test questions. {SHARES_ADD_UP}", header, rows


def table_3(results: Results) -> Table:
    """Two sizes of the model."""
    sizes = itertools.product(ABLATED, SIZES)
    rows = [[task, size, *(of_method(results, task, m, size=size) for m in COLUMNS)] for task, size in sizes]
    header = ["task", "model", *COLUMNS.values()]
    return "Table 3: two sizes", f"Test accuracy in %, {len(SEEDS)} seeds.", header, rows


def table_4(results: Results) -> Table:
    """What each part of the method contributes, and what more gradient steps do for the others."""
    rows: list[list] = []
    for label, method, flags, figures in VARIANTS:
        rows.append([label])
        for task, figure in zip(ABLATED, figures, strict=True):
            names = names_of(task, method, flags=flags)
            rows[-1] += [measured(results, names), measured(results, names, "wrong"), figure]
    text = (
        f"Test accuracy in %, {len(SEEDS)} seeds. The bundled models train without label smoothing, so that ablation is "
        "turned round. An epoch is about 20 gradient steps for HIR, which learns several parts of every output, 2 for "
        "fine-tuning and 3 to 6 for FARL."
    )
    header = ["", *(f"{task}{what}" for task in ABLATED for what in ("", ", wrong instruction", ", paper"))]
    return "Table 4: ablations, and as many gradient steps", text, header, rows


def leak_table(results: Results) -> Table:
    """Date Understanding with the official order of options and with shuffled ones."""
    official, shuffled = (names_of("leak", order, size="") for order in ORDERS)
    official_on_shuffled, shuffled_on_official = ([f"{n}-other-order" for n in ns] for ns in (official, shuffled))
    rows = [
        ["nothing", *(measured(results, names[:1], line=0) for names in (official, shuffled))],
        ["official order", measured(results, official), measured(results, official_on_shuffled)],
        ["shuffled options", measured(results, shuffled_on_official), measured(results, shuffled)],
    ]
    text = (
        "Fine-tuning on the letters of Date Understanding, whose file lists the right option first in 364 of 369 "
        f"examples (`--task date_understanding {LEAK}`): test accuracy in %, {len(SEEDS)} seeds."
    )
    header = ["trained on", "tested in the official order", "tested on shuffled options"]
    return "The leak in Date Understanding", text, header, rows


def search_table(results: Results) -> Table:
    """The searches, best first: the settings that differ between their runs, and the share of right samples."""
    found = [results[name] for name in fnmatch.filter(results, "search-*")]
    settings = [result.config["run"] | result.config["settings"] for result in found]
    names = dict.fromkeys(name for values in settings for name in values if name != "out")
    varied = [name for name in names if len({values.get(name) for values in settings}) > 1]
    right = [statistics.mean(line["right_share"] for line in result.lines[-3:]) for result in found]
    ranked = sorted(zip(right, settings, strict=True), key=lambda pair: -pair[0])
    rows = [[*(values.get(name) for name in varied), percent(share)] for share, values in ranked]
    text = f"Right samples in %, mean of the last three iterations, on {SEARCH_TASK}."
    return "Searches of hyperparameters", text, [*(f"`{flag(name)}`" for name in varied), "right"], rows


TABLES = (default_table, table_2, claims_table, wrong_table, official_table, table_3, table_4, leak_table, search_table)


def markdown(title: str, text: str, header: list[str], rows: list[list[object]]) -> str:
    """A section with a table; what was not measured is a dash."""
    cells = [header, ["---"] * len(header), *([("–" if c is None else str(c)) for c in row] for row in rows)]
    return f"## {title}\n\n{text}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


# --- The command ------------------------------------------------------------------------------------------------------


def draw_comparison(results: Results, directory: Path) -> None:
    """Write tables.md and the pictures."""
    head = "# Results\n\nMade by `python -m experiments.report` from `runs/`. Intervals are of 95 %.\n"
    tables = [markdown(*table(results)) for table in TABLES]
    write_file(directory / "tables.md", "\n".join([head, *of.remarks(results), *tables]).encode())
    found = {t: {m: [results[n] for n in names_of(t, m) if n in results] for m in METHODS} for t in TASKS}
    for over, name in (("sampled", "methods.png"), ("seconds", "methods_seconds.png")):
        panels = {t: {METHODS[m]: [of.curve(r, over=over) for r in found[t][m]] for m in METHODS} for t in TASKS}
        of.draw_curves(directory / name, panels, over)
    bars = {}
    for task in (task for task, methods in found.items() if any(methods.values())):
        cells = {m: [of_method(results, task, m, key) for key in SHARES] for m in COLUMNS}
        bars[task] = {COLUMNS[m]: [cell and cell.mean for cell in row] for m, row in cells.items() if row[0]}
    of.draw_shares(directory / "wrong_instruction.png", bars)
    if default := results.get(name_of(FAMILIES[0], "default", size="")):
        panels = of.panels_of({"": default}, "sampled", list(SHARES))
        of.draw_curves(directory / "curve.png", panels, "sampled", columns=2)


def report_runs(paths: list[Path], over: str, picture: Path | None) -> None:
    """The table and the picture of some runs."""
    stems = [path.resolve().stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else map(str, paths)
    runs = {name: of.read_result(path) for name, path in zip(names, paths, strict=True)}
    picture = picture or (paths[0] if paths[0].is_dir() else paths[0].parent) / "curves.png"
    of.draw_curves(picture, of.panels_of(runs, over), over)
    print(f"{of.table_of(runs)}\n\nlearning curves: {picture}")


def report_comparison(given: argparse.Namespace) -> None:
    """The paper's tables and pictures, after the missing runs are made if that is asked for."""
    directory, wanted, failed = given.results / "runs", planned_runs(given.runs), []
    results = of.load_results(directory, wanted)
    chosen = fnmatch.filter(wanted, given.only) if given.only else [n for n in wanted if not n.startswith("search-")]
    missing = {name: wanted[name] for name in chosen if name not in results or results[name].difference}
    print(f"{len(missing)} runs to make")
    if given.run:
        failed = of.make_runs(missing, given.runs, directory, max(1, given.jobs))
        results = of.load_results(directory, wanted)
    print("\n".join(of.remarks(results)))
    draw_comparison(results, given.results)
    if failed:
        raise InputError(f"{len(failed)} runs failed, as each said above; the tables lack {', '.join(failed)}.")


def main(argv: list[str] | None = None) -> int:
    """The command. What is wrong is one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.split("\n")[0])
    parser.add_argument("own", nargs="*", type=Path, metavar="RUN", help="directories of runs to compare")
    parser.add_argument("--over", choices=of.AXES, default="iteration", help="what the curves of RUNs are drawn over")
    parser.add_argument("--picture", type=Path, help="the picture of RUNs (default: curves.png in the first of them)")
    parser.add_argument("--run", action="store_true", help="make the missing runs of the comparison")
    parser.add_argument("--only", default="", help="a pattern of names: the runs to make (default: all but search-*)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; if several, each on one core")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "report", help="where runs are made")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results", help="what is read and written")
    given = parser.parse_args(argv)
    try:
        report_runs(given.own, given.over, given.picture) if given.own else report_comparison(given)
    except InputError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
