"""Tables and plots of runs:  python -m experiments.report [RUN ...]

Given run directories, it prints a table that compares them, and plots their learning curves.

Without any, it makes the paper's tables and plots, results/tables.md and results/*.png, from results/runs/. --run first
makes the missing runs, --jobs at a time, in runs/report/, with the settings found by experiments.search, and says how
long that will take; if interrupted, the same command resumes. --only selects runs by a pattern such as '*-ppo-*'.
"""

import argparse
import fnmatch
import itertools
import statistics
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import train
from bigbench_tasks import TASKS, expand
from experiments import results as of
from experiments import search
from experiments.results import Estimate, Results, estimate
from support import REPOSITORY
from support.errors import InputError
from support.files import write_file
from support.tables import percent

# --- The runs ---------------------------------------------------------------------------------------------------------

METHODS = {"sft": "fine-tuning", "farl": "FARL", "ppo": "PPO", "grpo": "GRPO", "hir": "HIR"}
COLUMNS = {"none": "before", **METHODS}
SEEDS = (0, 1, 2)
FOUR = (  # the tasks of Tables 3 and 4; the paper has the first two in its own
    "logical_deduction_three_objects", "tracking_shuffled_objects_three_objects",
    "object_counting", "reasoning_about_colored_objects",
)  # fmt: skip
FAMILIES = ("logical_deduction", "tracking_shuffled_objects", "object_counting")  # run with the defaults of train.py
SIZES = ("t5-nano", "t5-mini")
OWN = "HIR as in Table 2"
VARIANTS = {  # of HIR, in Table 4: what differs
    **{f"sub-outputs: {kind}": f"--sub-output {kind}" for kind in ("answer", "encoder", "decoder", "none")},
    "sub-outputs: encoder, in larger batches": "--sub-output encoder --train-batch-size 128",  # so in as many steps
    "sub-outputs: decoder, in larger batches": "--sub-output decoder --train-batch-size 192",
    **{f"replay: {which}": f"--replay {which}" for which in ("all", "last")},
    "Eq. 4 over the batch": "--contrastive batch",
    "without the contrastive term": "--alpha 0",
    "without the entropy term": "--beta 0",
    "with the paper's label smoothing": "--label-smoothing 0.2",
}
TRAILING = (  # the tasks on which HIR ends more than a point behind FARL
    "logical_deduction_five_objects", "logical_deduction_seven_objects", "object_counting", "geometric_shapes",
    "penguins_in_a_table", "word_sorting",
)  # fmt: skip
CHANGES = ("--alpha 0", "--replay all")  # made to HIR on these, to see why
NO_CRITIC = "--ppo-value-learning-rate 0"  # its values stay 0: REINFORCE with PPO's clip and whitened rewards
# Data reuse: 16 iterations at a constant learning rate, evaluated after so many outputs, with so many passes over them.
OUTPUTS, PASSES = (100, 400, 800, 1600), (1, 4, 10)
REUSE_METHODS, REUSE_TASKS, REUSE_SEEDS = ("farl", "grpo", "hir"), (FOUR[0], FOUR[3]), SEEDS[:2]
LEARNERS = "--iterations 16 --final-learning-rate 1"
OFFICIAL = "--method none --data official --test-size 200 --max-new-tokens 112"
# The bundled models answer in words; only fine-tuning on the file teaches them letters.
LEAK = "--data official --method sft --answers letters --questions 0 --iterations 3 --learning-rate 1e-3"
LEAK += " --final-learning-rate 1"
ORDERS = ("official", "shuffled")


def name_of(task: str, method: str, seed: int = 0, size: str = "t5-mini", flags: str = "") -> str:
    """The name of a run: of its file in results/runs/ and of its directory in runs/report/."""
    words = (word.strip("-") for word in flags.split())
    return "-".join([task, method, *words, *([size] if size else []), f"seed{seed}"])


def names_of(task: str, method: str, size: str = "t5-mini", flags: str = "") -> list[str]:
    """The names of a run with all its seeds."""
    return [name_of(task, method, seed, size, flags) for seed in (REUSE_SEEDS if LEARNERS in flags else SEEDS)]


def variant(flags: str) -> str:
    """The flags by which a run of HIR differs from Table 2's; empty if that has them already."""
    return "" if f"{flags} " in f"{search.best_flags().get('hir', '')} " else flags


def reuse(method: str, epochs: int) -> str:
    """The flags of a run with this many passes over its outputs."""
    return f"{LEARNERS} --{'grpo' if method == 'grpo' else 'train'}-epochs {epochs}"


def planned_runs(runs: Path) -> dict[str, list[str]]:
    """Name -> arguments of train.py, for every run that tables and plots show. `runs`: where trained models are."""
    compared = [*itertools.product(TASKS, METHODS, ["t5-mini"], [""]), *itertools.product(FOUR, METHODS, SIZES, [""])]
    compared += itertools.product(FOUR, ["hir"], ["t5-mini"], map(variant, VARIANTS.values()))
    compared += itertools.product(TRAILING, ["hir"], ["t5-mini"], map(variant, CHANGES))
    compared += [(task, "ppo", "t5-mini", NO_CRITIC) for task in FOUR]
    reused = itertools.product(REUSE_TASKS, REUSE_METHODS, PASSES)
    compared += [(task, method, "t5-mini", reuse(method, passes)) for task, method, passes in reused]
    settings, plan = search.best_flags(), {}
    for family in FAMILIES:
        for seed, name in enumerate(names_of(family, "default", size="")):
            plan[name] = f"--task {family} --seed {seed}"
    for task, method, size, flags in compared:
        for seed, name in enumerate(names_of(task, method, size, flags)):
            where = f"--task {task} --method {method} --seed {seed} --checkpoint checkpoints/{size}"
            plan[name] = f"{where} {search.BUDGET} {settings.get(method, '')} {flags}"
    plan = {name: arguments.split() for name, arguments in plan.items()}
    trained = {}
    for order, other in (ORDERS, ORDERS[::-1]):
        for seed, name in enumerate(names_of("leak", order, size="")):
            where = f"--task date_understanding --seed {seed} --option-order"
            plan[name] = f"{where} {order} {LEAK}".split()
            after = f"{where} {other} {OFFICIAL} --checkpoint".split()
            trained[f"{name}-other-order"] = [*after, str(runs / name / "model")]
    return plan | trained  # last, as these evaluate models of the others


# --- Tables: from results to title, text, header and rows -------------------------------------------------------------

Table = tuple[str, str, list[str], list[list[object]]]
SHARES = tuple(of.VERDICTS)
SHARES_ADD_UP = (
    "Asked for a wrong answer, an output is still right, obeys with a well-formed wrong answer, or is malformed."
)
PROTOCOL = f"`{search.BUDGET}`, each method with the settings that the search found, {len(SEEDS)} seeds"


def of_method(results: Results, task: str, method: str, key: str = "correct", size: str = "t5-mini") -> Estimate | None:
    """A cell of Table 2 or 3. "none" is the model before training: iteration 0, which is the same in all runs."""
    if method != "none":
        return estimate(results, names_of(task, method, size), key)
    found = [name for other in METHODS for name in names_of(task, other, size) if name in results]
    before = [results[name].value(line=0) for name in found]
    if before and max(before) - min(before) > 0.02:
        raise InputError(f"the runs of {task} on {size} began from different models; remove the older ones.")
    return estimate(results, found[:1], key, line=0)


def default_table(results: Results) -> Table:
    """What `python train.py --task FAMILY` does with its defaults."""
    titles, rows = {"correct": "", "wrong": "wrong instruction, "}, []
    header = [titles.get(key, f"{key}, ") + when for key in SHARES for when in ("before", "after")]
    for family in FAMILIES:
        names = names_of(family, "default", size="")
        places = list(itertools.product(SHARES, ((names[:1], 0), (names, -1))))  # before, after
        for task in expand(family):
            rows.append([task, *(estimate(results, runs, key, line, task) for key, (runs, line) in places)])
    text = f"`python train.py --task FAMILY --seed SEED`, {len(SEEDS)} seeds: % of the test questions. {SHARES_ADD_UP}"
    return "The default runs", text, ["task", *header], rows


@cache
def chance(task: str) -> str | None:
    """The accuracy in % of picking an option blindly; None where there are no options."""
    [examples] = train.held_out_questions(train.RunConfig(), [task]).values()
    shares = [len(e.targets) / len(e.options) for e in examples if e.options]
    return percent(statistics.mean(shares)) if shares else None


def search_table(results: Results) -> Table:
    """All trials of the search, each method's best first."""
    found = [(METHODS[m], *trial) for m in METHODS for trial in search.ranking(search.RESULTS, m)]
    rows = [[method, f"`{flags}`", *map(percent, shares)] for method, *shares, flags in found]
    text = f"`python -m experiments.search`: {search.TRIALS} trials a method on {' and '.join(search.TASKS)}, in %, on "
    text += "questions of the training part. What counts is the mean of the accuracies after each iteration."
    return "The search", text, ["method", "settings", "mean over iterations", "at the end", "malformed"], rows


def average_row(
    results: Results, tasks: Iterable[str], size: str = "t5-mini", key: str = "correct"
) -> list[Estimate | str | None]:
    """The means over tasks: before training, and of each method."""
    before = [of_method(results, task, "none", key, size) for task in tasks]
    means = of.bootstrap({m: [names_of(task, m, size) for task in tasks] for m in METHODS}, results, key)
    return [percent(statistics.mean(e.mean for e in before)) if all(before) else None, *map(means.get, METHODS)]


def table_2(results: Results) -> Table:
    """All tasks, all methods, and the averages."""
    rows = [[task, chance(task), *(of_method(results, task, m) for m in COLUMNS)] for task in TASKS]
    rows.append(["average", None, *average_row(results, TASKS)])
    text = f"Right, in % of the test questions ({PROTOCOL}). Chance is an option picked blindly."
    return "Table 2: all tasks", text, ["task", "chance", *COLUMNS.values()], rows


def ranking_table(results: Results) -> Table:
    """The methods over all tasks: how good, how soon, at what cost, and whether they obey the other instruction."""
    names = {m: [names_of(task, m) for task in TASKS] for m in METHODS}
    averages, leads = of.bootstrap(names, results), of.bootstrap(names, results, minus="hir")
    ranks, obeyed = of.bootstrap_ranks(names, results), of.bootstrap(names, results, "obeyed")
    rows = []
    for m, of_tasks in names.items():
        found = [results[name] for seeds in of_tasks for name in seeds if name in results]
        curves = [[r.value(line=i) for i in range(1, len(r.lines))] for r in found]
        first = percent(statistics.mean(shares[0] for shares in curves)) if curves else None
        mean = percent(statistics.mean(map(statistics.mean, curves))) if curves else None
        costs = [round(statistics.mean(map(cost, found))) if found else None for cost in (of.steps, of.seconds_of_work)]
        behind = leads.get(m) if m != "hir" else None
        rows.append([METHODS[m], averages.get(m), behind, ranks.get(m), first, mean, obeyed.get(m), *costs])
    text = "Means over all tasks and seeds; intervals by a bootstrap over questions and seeds, "
    text += "the same ones for all methods. Seconds are those of sampling and training on one core."
    header = ["method", "right at the end", "minus HIR", "rank", "after one iteration", "mean over iterations"]
    header += ["obeys when asked for a wrong answer", "gradient steps", "seconds"]
    return "Ranking", text, header, rows


def wrong_table(results: Results) -> Table:
    """The three shares when a wrong answer is asked for."""
    shares = itertools.product(TASKS, zip(SHARES[1:], ("right", "obeyed", "malformed"), strict=True))
    rows = [[task, share, *(of_method(results, task, m, key) for m in COLUMNS)] for task, (key, share) in shares]
    header, rows = ["task", "share", *COLUMNS.values()], [row for row in rows if any(row[2:])]
    return "Under the wrong instruction", f"% of the test questions. {SHARES_ADD_UP}", header, rows


def claims_table(results: Results) -> Table:
    """What the paper says of Table 2."""
    rows: list[list] = []
    for method, paper in (("ppo", "11.2"), ("farl", "32.6")):
        lead = of.bootstrap({m: [names_of(t, m) for t in TASKS] for m in ("hir", method)}, results, minus=method)
        rows.append([f"HIR over {METHODS[method]}, average (Sec. 1)", paper, lead.get("hir")])
    for (size, paper), method in itertools.product((("five", "41.2"), ("seven", "29.2")), ("ppo", "farl")):
        task = f"tracking_shuffled_objects_{size}_objects"
        lead = of.bootstrap({m: [names_of(task, m)] for m in ("hir", method)}, results, minus=method)
        rows.append([f"HIR over {METHODS[method]}, {task} (Sec. 6.1)", paper, lead.get("hir")])
    text = "In points, paired over questions and seeds; the paper's models are FLAN-T5's, and it takes the better of the two."
    return "What the paper says of Table 2", text, ["", "paper", "here"], rows


def table_3(results: Results) -> Table:
    """Two sizes of the model."""
    sizes = itertools.product(FOUR, SIZES)
    rows = [[task, size, *(of_method(results, task, m, size=size) for m in COLUMNS)] for task, size in sizes]
    averages = itertools.product({"average": "correct", "obeyed": "obeyed"}.items(), SIZES)
    rows += [[label, size, *average_row(results, FOUR, size, key)] for (label, key), size in averages]
    text = f"Right, in % ({PROTOCOL}). Last, averages of the four tasks: right, and obeyed under the wrong instruction."
    return "Table 3: two sizes", text, ["task", "model", *COLUMNS.values()], rows


def table_4(results: Results) -> Table:
    """What each part of the method contributes. Variants that HIR's own settings already are have no row."""
    differing = {label: flags for label, flags in VARIANTS.items() if variant(flags)}
    names = {
        label: [names_of(task, "hir", flags=flags) for task in FOUR] for label, flags in ({OWN: ""} | differing).items()
    }
    averages, *others = (of.bootstrap(names, results, key) for key in SHARES)
    leads = of.bootstrap(names, results, minus=OWN)
    rows: list[list] = []
    for label, of_tasks in names.items():
        found = [results[name] for seeds in of_tasks for name in seeds if name in results]
        rows.append([label, round(statistics.mean(map(of.steps, found))) if found else None])
        rows[-1] += [estimate(results, seeds) for seeds in of_tasks]
        rows[-1] += [averages.get(label), None if label == OWN else leads.get(label)]
        rows[-1] += [shares.get(label) for shares in others]
    text = f"Right, in % ({PROTOCOL}); what differs is said. Last, the averages of the four tasks. {SHARES_ADD_UP}"
    header = ["", "gradient steps", *FOUR, "average", "minus HIR", "wrong instruction: right", "obeyed", "malformed"]
    return "Table 4: ablations", text, header, rows


def change_table(results: Results) -> Table:
    """HIR with one setting changed, on the tasks where it trails, beside FARL: what does the second instruction cost?"""
    runs = {"FARL": ("farl", ""), "HIR": ("hir", ""), **{f"`{flags}`": ("hir", variant(flags)) for flags in CHANGES}}
    names = {label: [names_of(task, m, flags=flags) for task in TRAILING] for label, (m, flags) in runs.items()}
    rows = [[task, *(estimate(results, names[label][i]) for label in runs)] for i, task in enumerate(TRAILING)]
    leads = of.bootstrap(names, results, minus="HIR") | {"HIR": None}
    averages = {"average": of.bootstrap(names, results), "minus HIR": leads}
    averages |= {key: of.bootstrap(names, results, key) for key in ("obeyed", "malformed")}
    rows += [[title, *map(found.get, runs)] for title, found in averages.items()]
    text = f"Right at the end, in % ({PROTOCOL}); HIR also with one setting changed. Last, averages over these tasks: right, "
    text += "and obeyed and malformed under the wrong instruction."
    return "Where HIR trails: one thing changed", text, ["task", *runs], rows


def critic_table(results: Results) -> Table:
    """How much of the returns PPO's critic explains, and what PPO is without it."""
    rows: list[list] = []
    for task in TASKS:
        found = [results[name] for name in names_of(task, "ppo") if name in results]
        explained = [r.value("explained_variance", i) for r in found for i in range(3, len(r.lines))]
        share = f"{statistics.mean(explained):.2f}" if explained else None
        without = estimate(results, names_of(task, "ppo", flags=NO_CRITIC))
        rows.append([task, share, of_method(results, task, "ppo"), without])
    text = "The share of the variance of returns that the critic explains before it is trained on them, the mean from "
    text += "the third iteration on and over seeds; and right at the end, in %, with the critic and without "
    text += f"(`{NO_CRITIC}`)."
    return "PPO's critic", text, ["task", "explained variance", "with the critic", "without"], rows


def efficiency_table(results: Results) -> Table:
    """The effect of more passes over the same outputs."""
    rows: list[list] = []
    for method, epochs in itertools.product(REUSE_METHODS, PASSES):
        names = [name for task in REUSE_TASKS for name in names_of(task, method, flags=reuse(method, epochs))]
        found = [results[name] for name in names if name in results]
        rows.append([METHODS[method], epochs])
        for outputs in OUTPUTS:
            at = [next((i for i, line in enumerate(r.lines) if line["sampled"] == outputs), None) for r in found]
            shares = [r.value(line=i) for r, i in zip(found, at, strict=True) if i is not None]
            rows[-1].append(percent(statistics.mean(shares)) if len(shares) == len(names) else None)
        rows[-1].append(round(statistics.mean(map(of.steps, found))) if found else None)
    text = f"Right, in %, the mean of {' and '.join(REUSE_TASKS)} and {len(REUSE_SEEDS)} seeds, "
    text += f"after so many sampled outputs (`{LEARNERS}`)."
    header = ["method", "passes over the outputs", *(f"{n:,} outputs" for n in OUTPUTS), "gradient steps"]
    return "Data efficiency", text, header, rows


def leak_table(results: Results) -> Table:
    """Date Understanding with the official order of options and with shuffled ones."""
    official, shuffled = (names_of("leak", order, size="") for order in ORDERS)
    official_on_shuffled, shuffled_on_official = ([f"{n}-other-order" for n in ns] for ns in (official, shuffled))
    rows = [
        ["nothing", *(estimate(results, names[:1], line=0) for names in (official, shuffled))],
        ["official order", estimate(results, official), estimate(results, official_on_shuffled)],
        ["shuffled options", estimate(results, shuffled_on_official), estimate(results, shuffled)],
    ]
    text = "Fine-tuning on the letters of Date Understanding, whose file lists the right option first in 364 of 369 "
    text += f"examples (`--task date_understanding {LEAK}`): test accuracy in %, {len(SEEDS)} seeds."
    header = ["trained on", "tested in the official order", "tested on shuffled options"]
    return "The leak in Date Understanding", text, header, rows


TABLES = (
    default_table, search_table, table_2, ranking_table, wrong_table, claims_table, table_3, table_4, change_table,
    critic_table, efficiency_table, leak_table,
)  # fmt: skip


def markdown(title: str, text: str, header: list[str], rows: list[list[object]]) -> str:
    """A section with a table; a dash means not measured."""
    cells = [header, ["---"] * len(header), *([("–" if c is None else str(c)) for c in row] for row in rows)]
    return f"## {title}\n\n{text}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


# --- The command ------------------------------------------------------------------------------------------------------


def draw_comparison(results: Results, directory: Path) -> None:
    """Write tables.md and the plots."""
    head = "# Results\n\nMade by `python -m experiments.report` from `runs/`. Intervals are of 95 %.\n"
    tables = [markdown(*table(results)) for table in TABLES]
    write_file(directory / "tables.md", "\n".join([head, *of.remarks(results), *tables]).encode())
    found = {t: {m: [results[n] for n in names_of(t, m) if n in results] for m in METHODS} for t in TASKS}
    for over, name in (("sampled", "methods.png"), ("seconds", "methods_seconds.png")):
        panels = {t: {METHODS[m]: [of.curve(r, over=over) for r in found[t][m]] for m in METHODS} for t in TASKS}
        of.draw_curves(directory / name, panels, over)
    panels = {
        f"{task}, {passes} pass{'es' * (passes > 1)}": {
            METHODS[m]: [of.curve(results[n]) for n in names_of(task, m, flags=reuse(m, passes)) if n in results]
            for m in REUSE_METHODS
        }
        for task, passes in itertools.product(REUSE_TASKS, PASSES)
    }
    of.draw_curves(directory / "efficiency.png", panels, "sampled")
    bars = {}
    for task in (task for task, methods in found.items() if any(methods.values())):
        cells = {m: [of_method(results, task, m, key) for key in SHARES] for m in COLUMNS}
        bars[task] = {COLUMNS[m]: [cell and cell.mean for cell in row] for m, row in cells.items() if row[0]}
    of.draw_shares(directory / "wrong_instruction.png", bars)
    if default := results.get(name_of(FAMILIES[0], "default", size="")):
        panels = of.panels_of({"": default}, "sampled", list(SHARES))
        of.draw_curves(directory / "curve.png", panels, "sampled", columns=2)


def report_runs(paths: list[Path], over: str, picture: Path | None) -> None:
    """Print a table of some runs and plot their learning curves."""
    stems = [path.resolve().stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else map(str, paths)
    runs = {name: of.read_result(path) for name, path in zip(names, paths, strict=True)}
    picture = picture or (paths[0] if paths[0].is_dir() else paths[0].parent) / "curves.png"
    of.draw_curves(picture, of.panels_of(runs, over), over)
    print(f"{of.table_of(runs)}\n\nlearning curves: {picture}")


def report_comparison(given: argparse.Namespace) -> None:
    """Make the paper's tables and plots, with --run after making the missing runs."""
    directory, wanted, failed = given.results / "runs", planned_runs(given.runs), []
    results = of.load_results(directory, wanted)
    chosen = fnmatch.filter(wanted, given.only or "*")
    missing = {name: wanted[name] for name in chosen if name not in results or results[name].difference}
    each = statistics.mean([result.seconds()[-1] for result in results.values()] or [60]) + 5  # to start
    print(f"{len(missing)} runs to make, about {len(missing) * each / 60 / given.jobs:.0f} min", flush=True)
    if given.run:
        failed = of.make_runs(missing, given.runs, directory, max(1, given.jobs))
        results = of.load_results(directory, wanted)
    print("\n".join(of.remarks(results)))
    draw_comparison(results, given.results)
    if failed:
        raise InputError(f"{len(failed)} runs failed, with the errors above; the tables lack {', '.join(failed)}.")


def main(argv: list[str] | None = None) -> int:
    """The command. An error is one sentence on stderr, with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.split("\n")[0])
    parser.add_argument("own", nargs="*", type=Path, metavar="RUN", help="directories of runs to compare")
    parser.add_argument("--over", choices=of.AXES, default="iteration", help="the horizontal axis of the RUNs' curves")
    parser.add_argument("--picture", type=Path, help="file for the RUNs' plot (default: curves.png in the first RUN)")
    parser.add_argument("--run", action="store_true", help="make the missing runs of the comparison")
    parser.add_argument("--only", default="", help="make only the runs whose names match this pattern")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; if several, each on one core")
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "report", help="directory for making runs")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results", help="directory to read and write")
    given = parser.parse_args(argv)
    try:
        report_runs(given.own, given.over, given.picture) if given.own else report_comparison(given)
    except InputError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
