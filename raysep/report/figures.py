"""The figures of a report, as PNG bytes."""

import io
from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raysep.report.summary import Curve, ModelSummary, Summary

# Colour-blind safe (Okabe and Ito 2008).
UNSEEN, SEEN, GREY = "#D55E00", "#0072B2", "#999999"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
COLUMNS = 3
DPI = 130


def curves(model: ModelSummary, protocol: str) -> bytes:
    """g_i against the layer at the last step: a panel for each metric, a line each for unseen and seen.

    Bars are one population standard deviation over trials.
    """
    metrics = list(dict.fromkeys(curve.metric for curve in model.curves if curve.protocol == protocol))
    rows = -(-len(metrics) // COLUMNS)
    figure, axes = plt.subplots(
        rows,
        min(COLUMNS, len(metrics)),
        figsize=(3.7 * min(COLUMNS, len(metrics)), 2.7 * rows),
        squeeze=False,
    )
    for ax, metric in zip(axes.flat, metrics, strict=False):
        for split, colour in (("seen", SEEN), ("unseen", UNSEEN)):
            found = [
                curve
                for curve in model.curves
                if (curve.protocol, curve.metric, curve.split, curve.step) == (protocol, metric, split, model.step)
            ]
            if found:
                _line(ax, found[0], colour, split)
        ax.set_title(metric, fontsize=10)
        ax.set_xlabel("layer", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        _plain(ax)
    for ax in list(axes.flat)[len(metrics) :]:
        ax.axis("off")
    axes.flat[0].legend(frameon=False, fontsize=9)
    figure.suptitle(
        f"{model.model}: separability of each layer at step {model.step} (protocol {protocol})", fontsize=11
    )
    return _png(figure)


def accuracy_against_g(summary: Summary) -> bytes | None:
    """Seen accuracy against g, a line for each model through its steps; None without accuracies."""
    figure, ax = plt.subplots(figsize=(5.6, 4.2))
    drawn = False
    for model, colour in zip(summary.models, _cycle(len(summary.models)), strict=True):
        points = [
            (accuracy, best.mean or 0.0, step)
            for step, accuracy in sorted(model.accuracy_by_step.items())
            if accuracy is not None
            and (curve := model.curve(summary.headline_protocol, summary.headline_metric, "unseen", step))
            and (best := curve.best())
        ]
        if not points:
            continue
        drawn = True
        ax.plot([p[0] for p in points], [p[1] for p in points], "-o", color=colour, label=model.model, ms=4)
        for accuracy, g, step in points:
            ax.annotate(str(step), (accuracy, g), textcoords="offset points", xytext=(4, 4), fontsize=7, color=GREY)
    if not drawn:
        plt.close(figure)
        return None
    ax.set_xlabel("accuracy on seen classes (held-out images)")
    ax.set_ylabel(f"g on unseen classes ({summary.headline_metric})")
    ax.set_ylim(bottom=0)
    ax.set_title("Accuracy against generalization; numbers are training steps", fontsize=10)
    ax.legend(frameon=False, fontsize=9)
    _plain(ax)
    return _png(figure)


def _line(ax: Axes, curve: Curve, colour: str, label: str) -> None:
    known = [layer for layer in curve.layers if layer.mean is not None]
    x = [layer.layer for layer in known]
    y = [layer.mean or 0.0 for layer in known]
    ax.errorbar(x, y, yerr=[layer.sd or 0.0 for layer in known], color=colour, marker="o", ms=3.5, lw=1.5, label=label)
    best = curve.best()
    if best is not None:
        ax.plot([best.layer], [best.mean or 0.0], "o", ms=9, mfc="none", mec=colour, clip_on=False)


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#eeeeee")
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)


def _cycle(count: int) -> Sequence[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.tight_layout()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return content.getvalue()
