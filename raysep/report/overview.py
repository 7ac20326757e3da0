"""Figures of whole models: compared with each other, over training, few-shot."""

from matplotlib import pyplot as plt

from raysep.report.plotting import GREY, PALETTE, cycle, finish, panels, plain, png
from raysep.report.schema import Curve, ModelSummary, Summary
from raysep.report.tables import TABLE_METRICS, paper_metrics

FEW_SHOT = "few_shot_"


def training(model: ModelSummary, protocol: str) -> bytes | None:
    """Accuracy on seen classes and g (highest g_i) on unseen ones against the training step; None for a single step."""
    metrics = paper_metrics(model, protocol)
    if len(model.steps) < 2 or not metrics:
        return None
    figure, ax = plt.subplots(figsize=(5.6, 3.8))
    known = [(step, value) for step, value in sorted(model.accuracy_by_step.items()) if value is not None]
    if known:
        ax.plot([s for s, _ in known], [v for _, v in known], "-s", color=GREY, ms=4, label="seen accuracy")
    for metric, colour in zip(metrics, PALETTE, strict=False):
        choices = [
            (step, curve.choice)
            for step in model.steps
            if (curve := model.curve(protocol, metric, "unseen", step)) and curve.choice
        ]
        ax.errorbar(
            [step for step, _ in choices],
            [choice.g for _, choice in choices],
            yerr=[choice.g_sd or 0.0 for _, choice in choices],
            fmt="-o",
            color=colour,
            ms=4,
            label=f"g, {metric}",
        )
        for step, choice in choices:
            ax.annotate(
                str(choice.layer), (step, choice.g), textcoords="offset points", xytext=(4, 4), fontsize=7, color=colour
            )
    ax.set_xlabel("training step")
    ax.set_ylim(bottom=0)
    ax.set_title(f"{model.model}: accuracy and g over training; numbers name the best layers", fontsize=10)
    ax.legend(frameon=False, fontsize=9)
    plain(ax)
    return png(figure)


def compared(summary: Summary, split: str) -> bytes | None:
    """g_i of the layers over relative depth, a line per model, bars: SD over trials. None for a single model."""
    protocol = summary.headline_protocol
    curves = [curve for model in summary.models for curve in model.curves if curve.split == split]
    metrics = [metric for metric in TABLE_METRICS if any(curve.metric == metric for curve in curves)]
    if len(summary.models) < 2 or not metrics:
        return None
    figure, axes = panels(len(metrics))
    for ax, metric in zip(axes, metrics, strict=False):
        for model, colour in zip(summary.models, cycle(len(summary.models)), strict=True):
            curve = model.curve(protocol, metric, split, model.step)
            # With several poolings, only that of the best layer.
            known = [
                layer
                for layer in (curve.pooled(_pooling(curve)) if curve and curve.choice else [])
                if layer.mean is not None
            ]
            ax.errorbar(
                [layer.depth for layer in known],
                [layer.mean or 0.0 for layer in known],
                yerr=[layer.sd or 0.0 for layer in known],
                fmt="-o",
                color=colour,
                ms=3.5,
                lw=1.5,
                label=model.model,
            )
        ax.set_title(metric, fontsize=10)
        ax.set_xlabel("relative depth", fontsize=9)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        plain(ax)
    finish(figure, axes, len(metrics))
    figure.suptitle(f"{split} classes: separability over depth (protocol {protocol})", fontsize=11)
    return png(figure)


def _pooling(curve: Curve) -> str:
    """The pooling of the best layer; the first one if that is behind the last block."""
    best = curve.choice.pooling if curve.choice is not None else ""
    return best if best in curve.poolings else curve.poolings[0]


def accuracy_against_g(summary: Summary) -> bytes | None:
    """g (highest g_i) against seen accuracy, a line per model through its training steps; None without accuracies."""
    figure, ax = plt.subplots(figsize=(5.6, 4.2))
    drawn = False
    for model, colour in zip(summary.models, cycle(len(summary.models)), strict=True):
        points = [
            (accuracy, curve.choice.g, step)
            for step, accuracy in sorted(model.accuracy_by_step.items())
            if accuracy is not None
            and (curve := model.curve(summary.headline_protocol, summary.headline_metric, "unseen", step))
            and curve.choice
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
    plain(ax)
    return png(figure)


def few_shot(model: ModelSummary, protocol: str) -> bytes | None:
    """Few-shot accuracy on unseen classes against the labelled images per class, for the best and the last layer.

    Bands are 95 % intervals over images. None for fewer than two few-shot metrics.
    """
    curves = {
        int(curve.metric.removeprefix(FEW_SHOT)): curve
        for curve in model.curves
        if curve.metric.startswith(FEW_SHOT)
        and (curve.protocol, curve.split, curve.step) == (protocol, "unseen", model.step)
        and curve.choice is not None
    }
    if len(curves) < 2:
        return None
    figure, ax = plt.subplots(figsize=(5.6, 3.8))
    for name, colour in (("best layer", PALETTE[1]), ("last layer", PALETTE[0])):
        points = []
        for shots, curve in sorted(curves.items()):
            assert curve.choice is not None
            wanted = curve.choice.layer if name == "best layer" else curve.choice.last_layer
            layer = next(layer for layer in curve.layers if layer.layer == wanted)
            if layer.mean is not None:
                points.append((shots, layer.mean, layer.interval or (layer.mean, layer.mean), layer.layer))
        ax.plot([p[0] for p in points], [p[1] for p in points], "-o", color=colour, ms=4, label=name)
        low, high = [p[2][0] for p in points], [p[2][1] for p in points]
        ax.fill_between([p[0] for p in points], low, high, color=colour, alpha=0.18, lw=0)
        for shots, value, _, number in points if name == "best layer" else []:
            ax.annotate(
                str(number), (shots, value), textcoords="offset points", xytext=(0, 6), fontsize=7, color=colour
            )
    chance = [(shots, curve.layers[0].shuffled) for shots, curve in sorted(curves.items()) if curve.layers[0].shuffled]
    ax.plot([shots for shots, _ in chance], [value for _, value in chance], ":", color=GREY, label="shuffled labels")
    ax.set_xscale("log")
    ax.set_xticks(sorted(curves), [str(shots) for shots in sorted(curves)])
    ax.minorticks_off()
    ax.set_xlabel("labelled images per class")
    ax.set_ylim(bottom=0)
    ax.set_title(f"{model.model}: nearest class mean on unseen classes; numbers are layers", fontsize=10)
    ax.legend(frameon=False, fontsize=9)
    plain(ax)
    return png(figure)
