"""The pictures of report.py: plain numbers in, one PNG each out. The data are prepared there."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, so it needs no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# One colour per method in all pictures, told apart by readers with any colour vision (Okabe and Ito, 2008).
COLORS = {"before": "#999999", "fine-tuning": "#000000", "PPO": "#0072B2", "FARL": "#009E73", "HIR": "#D55E00"}
TASK_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
STYLE = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.titlesize": 9,
}
Curve = tuple[list[float], list[float]]  # outputs sampled, accuracies


def learning_curves(path: Path, panels: dict[str, dict[str, list[Curve]]], ends: dict[str, float]) -> None:
    """Accuracy over sampled outputs: a panel per task, a colour per method, a thin line per seed and a thick one, their mean.

    ends: task -> accuracy at the end of fine-tuning, which samples nothing and is a dashed line.
    """
    with plt.rc_context(STYLE):
        figure, axes = _panels(len(panels))
        for axis, (task, methods) in zip(axes, panels.items(), strict=False):
            for method, curves in methods.items():
                for sampled, shares in curves:
                    axis.plot(sampled, _percent(shares), color=COLORS[method], alpha=0.35, linewidth=0.8)
                mean = [sum(values) / len(values) for values in zip(*(shares for _, shares in curves), strict=False)]
                axis.plot(curves[0][0][: len(mean)], _percent(mean), color=COLORS[method], linewidth=2, label=method)
            if task in ends:
                axis.axhline(
                    100 * ends[task], color=COLORS["fine-tuning"], linestyle="--", label="fine-tuning, at its end"
                )
            _dress(axis, task, "outputs sampled", "test accuracy, %")
        _finish(figure, axes, path)


def instruction_pairs(path: Path, panels: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Accuracy under both instructions: a panel per task, a row per method, from `wrong` (hollow) to `correct` (filled)."""
    with plt.rc_context(STYLE):
        figure, axes = _panels(len(panels), height=1.7)
        for axis, (task, methods) in zip(axes, panels.items(), strict=False):
            for row, (method, (correct, wrong)) in enumerate(reversed(methods.items())):
                axis.plot([100 * wrong, 100 * correct], [row, row], color=COLORS[method], linewidth=2, alpha=0.5)
                axis.plot(100 * wrong, row, "o", markerfacecolor="white", color=COLORS[method], markersize=7)
                axis.plot(100 * correct, row, "o", color=COLORS[method], markersize=7)
            _dress(axis, task, "test accuracy, %", "")
            axis.set_yticks(range(len(methods)), list(reversed(methods)))
            axis.set_ylim(-0.5, len(methods) - 0.5)
            axis.set_xlim(-3, 103)
            axis.grid(axis="y", visible=False)
        shown = [
            axes[0].plot([], [], "o", color="#555555", label="asked for the correct answer")[0],
            axes[0].plot([], [], "o", color="#555555", markerfacecolor="white", label="asked for a wrong answer")[0],
        ]
        _finish(figure, axes, path, shown)


def one_run(path: Path, title: str, curves: dict[str, tuple[Curve, Curve]]) -> None:
    """The course of one run: for each task the accuracy under the correct (solid) and the wrong instruction (dotted)."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for (task, (correct, wrong)), color in zip(curves.items(), TASK_COLORS, strict=False):
            axis.plot(
                correct[0], _percent(correct[1]), color=color, linewidth=2, marker="o", markersize=3, label=_words(task)
            )
            axis.plot(wrong[0], _percent(wrong[1]), color=color, linewidth=1.5, linestyle=":")
        axis.plot([], [], color="#555555", linestyle=":", label="the same, asked for a wrong answer")
        _dress(axis, "", "outputs sampled", "test accuracy, %")
        axis.set_title(title, loc="left", family="monospace")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)


def _panels(count: int, height: float = 2.4) -> tuple[plt.Figure, list[Axes]]:
    columns = 2 if count > 1 else 1
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.9 * columns, height * rows + 0.4), layout="constrained", squeeze=False
    )
    axes = list(axes.flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def _dress(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(_words(title), loc="left")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if y:
        axis.set_ylim(0, 102)


def _finish(figure: plt.Figure, axes: list[Axes], path: Path, shown: list | None = None) -> None:
    """One legend for all panels, above them."""
    by_label = {handle.get_label(): handle for axis in axes for handle in axis.get_legend_handles_labels()[0]}
    handles = shown or list(by_label.values())
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    figure.savefig(path)
    plt.close(figure)


def _percent(shares: list[float]) -> list[float]:
    return [100 * share for share in shares]


def _words(name: str) -> str:
    return name.replace("_", " ")
