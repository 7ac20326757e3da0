"""Shared by all figures: colours, panels, axes, PNG bytes."""

import io
from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito 2008).
UNSEEN, SEEN, GREY = "#D55E00", "#0072B2", "#777777"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
COLUMNS = 3
DPI = 130


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of at least `count` panels, row by row."""
    rows, columns = -(-count // COLUMNS), min(COLUMNS, count)
    figure, axes = plt.subplots(rows, columns, figsize=(3.9 * columns, 2.9 * rows + 0.6), squeeze=False)
    return figure, list(axes.flat)


def finish(figure: Figure, axes: Sequence[Axes], used: int) -> None:
    """Hide unused panels, and add one legend below all panels."""
    for ax in axes[used:]:
        ax.axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="lower center", ncol=min(5, len(labels)), frameon=False, fontsize=9)


def plain(ax: Axes) -> None:
    """Remove the frame of some axes, and add a light grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#eeeeee")
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)


def cycle(count: int) -> Sequence[str]:
    """`count` colours of the palette, repeated if it has fewer."""
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes. Closes the figure."""
    content = io.BytesIO()
    # Room for the legend below the panels.
    figure.tight_layout(rect=(0, 0.6 / figure.get_figheight() if figure.legends else 0, 1, 1))
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return content.getvalue()
