"""Figures of one model's layers, as PNG bytes."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from raysep.report.plotting import GREY, PALETTE, SEEN, UNSEEN, finish, panels, plain, png
from raysep.report.schema import Curve, LayerScore, ModelSummary, find_curve
from raysep.report.tables import paper_metrics


def curves(model: ModelSummary, protocol: str) -> bytes | None:
    """Score g_i against layer i at the last step, a panel per metric, a line per split; None before it is scored.

    Bands are 95 % intervals over images, bars one population standard deviation over trials. Baselines:
    shuffled labels, the untrained network, raw pixels. A cross marks a layer with warnings.
    """
    shown = [curve for curve in model.curves if (curve.protocol, curve.step) == (protocol, model.step)]
    metrics = list(dict.fromkeys(curve.metric for curve in shown))
    if not metrics:
        return None
    figure, axes = panels(len(metrics))
    for ax, metric in zip(axes, metrics, strict=False):
        for split, colour in zip(model.classes, _split_colours(model), strict=True):
            curve = model.curve(protocol, metric, split, model.step)
            if curve is not None:
                _line(ax, curve, colour, split, model)
        _baselines(ax, model, protocol, metric)
        _title(ax, metric)
    finish(figure, axes, len(metrics))
    figure.suptitle(
        f"{model.model}: separability of each layer at step {model.step} (protocol {protocol})", fontsize=11
    )
    return png(figure)


def steps(model: ModelSummary, protocol: str) -> bytes | None:
    """Score g_i of the unseen classes against layer i, a line per step; None for a single step."""
    metrics = paper_metrics(model, protocol)
    if len(model.steps) < 2 or not metrics:
        return None
    figure, axes = panels(len(metrics))
    colours = mpl.colormaps["viridis_r"]
    for ax, metric in zip(axes, metrics, strict=False):
        for position, step in enumerate(model.steps):
            curve = model.curve(protocol, metric, "unseen", step)
            if curve is not None:
                colour = mpl.colors.to_hex(colours(0.1 + 0.85 * position / (len(model.steps) - 1)))
                _line(ax, curve, colour, f"step {step}", model)
        _baselines(ax, model, protocol, metric)
        _title(ax, metric)
    finish(figure, axes, len(metrics))
    figure.suptitle(f"{model.model}: unseen classes, over training (protocol {protocol})", fontsize=11)
    return png(figure)


def _line(ax: Axes, curve: Curve, colour: str, label: str, model: ModelSummary) -> None:
    """Draw one curve, a line per pooling."""
    poolings = curve.poolings
    for pooling, style in zip(poolings, ("-", "--", ":", "-."), strict=False):
        known = [layer for layer in curve.pooled(pooling) if layer.mean is not None]
        x = [_position(layer, curve) for layer in known]
        y = [layer.mean or 0.0 for layer in known]
        name = label if len(poolings) == 1 else f"{label}, {pooling}"
        errors = [layer.sd or 0.0 for layer in known]
        ax.errorbar(x, y, yerr=errors, color=colour, marker="o", ms=3.5, lw=1.5, ls=style, label=name)
        if known and all(layer.interval for layer in known):
            bands = [layer.interval or (0.0, 0.0) for layer in known]
            ax.fill_between(x, [b[0] for b in bands], [b[1] for b in bands], color=colour, alpha=0.18, lw=0)
        warned = [i for i, layer in enumerate(known) if model.warnings(layer.layer, curve.split, curve.step)]
        ax.plot([x[i] for i in warned], [y[i] for i in warned], "x", color="black", ms=7, mew=1.2, zorder=5)
        for position, value, layer in zip(x, y, known, strict=True):
            if curve.choice is not None and layer.layer == curve.choice.layer:
                ax.plot([position], [value], "o", ms=9, mfc="none", mec=colour, clip_on=False)


def _baselines(ax: Axes, model: ModelSummary, protocol: str, metric: str) -> None:
    trained = model.curve(protocol, metric, "unseen", model.step)
    if trained is not None:
        _grey_line(ax, trained, "shuffled", ":", "shuffled labels")
    for baseline in model.baselines:
        curve = find_curve(baseline.curves, protocol, metric, "unseen", 0)
        if curve is None or curve.choice is None:
            continue
        if baseline.kind == "pixels":
            ax.axhline(curve.choice.g, color="#009E73", lw=1.0, ls="-.", label="raw pixels")
        else:
            _grey_line(ax, curve, "mean", "--", "untrained")


def _grey_line(ax: Axes, curve: Curve, field: str, style: str, label: str) -> None:
    """Draw a baseline, a line per pooling, with one legend entry."""
    for pooling in curve.poolings:
        known = [layer for layer in curve.pooled(pooling) if getattr(layer, field) is not None]
        x, y = [_position(layer, curve) for layer in known], [getattr(layer, field) for layer in known]
        ax.plot(x, y, style, color=GREY, lw=1.2, label=label if pooling == curve.poolings[0] else None)


def _position(layer: LayerScore, curve: Curve) -> int:
    """x coordinate of a layer: the poolings of one feature map share it."""
    return sorted({other.depth for other in curve.layers}).index(layer.depth)


def _split_colours(model: ModelSummary) -> list[str]:
    others = iter(PALETTE[2:] * len(model.classes))
    return [{"unseen": UNSEEN, "seen": SEEN}.get(split) or next(others) for split in model.classes]


def _title(ax: Axes, metric: str) -> None:
    ax.set_title(metric, fontsize=10)
    ax.set_xlabel("layer", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    plain(ax)
