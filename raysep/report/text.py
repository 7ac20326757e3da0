"""The results in sentences."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from raysep.config.names import LEAST_HALVED
from raysep.models.layers import OWN, label
from raysep.report.schema import Choice, Findings, Interval, ModelSummary
from raysep.scoring.split_half import can_be_halved

# Lower chance levels are not mentioned: nobody takes them for a score.
SHOWN_CHANCE = 0.01
# Up to this many models p is exact, over all permutations: the asymptotic formula is wrong for few.
EXACT_MODELS = 6


def headline(
    model: str,
    metric: str,
    best: Choice | None,
    layers: int,
    warnings: Sequence[str],
    several_poolings: bool = False,
    protocol: str = "default",
    not_compared: str = "",
) -> str:
    """The result of one model in a few sentences.

    Args:
        best: the best layer; None if no layer could be scored.
        layers: number of layers.
        warnings: about the best layer.
        several_poolings: whether layers have several poolings, so that the name must tell which.
        protocol: protocol of the scores; the paper's uses a single k-means start.
        not_compared: reason why the layers were not compared.
    """
    if best is None:
        return f"{model}: no layer could be scored."
    where = label(best.name, best.same_as)
    if several_poolings and best.pooling != OWN:
        where += f", {best.pooling} pooled"
    text = f"{model}: layer {best.layer} of 0 to {layers - 1} ({where}), with {metric} {best.g:.3f}"
    if best.shuffled is not None and best.shuffled >= SHOWN_CHANCE:
        text += f" where chance gives {best.shuffled:.3f}"
    if best.corrected_g is not None:
        text += f", or {best.corrected_g:.3f} after correction for selection bias"
        if best.corrected_interval is not None:
            text += f" ({_range(best.corrected_interval)})"
    else:
        text += _in_brackets(best.interval)
    text += _against_last(best) + _ties(best, not_compared)
    if protocol == "paper" and best.starts_sd:
        text += f" These intervals leave out the variance over k-means starts: standard deviation {best.starts_sd:.3f}."
    if warnings:
        text += f" Warnings about this layer: {'; '.join(warnings)}."
    return text


def findings(models: Sequence[ModelSummary], metric: str) -> Findings:
    """The paper's two findings: the rank correlation of accuracy and g over models, and the depth of the best layer."""
    pairs = [
        (model.seen_accuracy, model.best.g)
        for model in models
        if model.seen_accuracy is not None and model.best is not None
    ]
    correlation = p_value = None
    sentences = []
    accuracies, gs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    # With equal accuracies or equal g there are no ranks to correlate.
    if len(pairs) >= 3 and len(set(accuracies)) > 1 and len(set(gs)) > 1:
        correlation, p_value = rank_correlation(accuracies, gs)
        sentences.append(
            f"Over {len(pairs)} models, accuracy on seen classes and g ({metric}) have a rank correlation of "
            f"{correlation:+.2f} (p = {p_value:.2f}): {_verdict(correlation, p_value)}"
        )
    else:
        sentences.append(f"models with an accuracy: {len(pairs)}; three are needed to correlate accuracy with g.")
    scored = [model for model in models if model.best is not None]
    for model in scored:
        assert model.best is not None
        sentences.append(f"{model.model}: the best layer is at depth {model.best.depth:.2f}{_against_last(model.best)}")
    middle = [model for model in scored if model.best and model.best.layer != model.best.last_layer]
    sure = [m for m in middle if m.best and m.best.loss_interval and m.best.loss_interval[0] > 0]
    if scored:
        sentences.append(
            f"In {len(middle)} of {len(scored)} models the deepest layer is not the best one"
            + (f", in {len(sure)} of them significantly (95 % interval)." if middle else ".")
        )
    return Findings(
        accuracy_g_correlation=correlation, accuracy_g_p_value=p_value, models=len(pairs), sentences=sentences
    )


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation and its two-sided p-value, exact (over all permutations of y) for few values.

    >>> rank_correlation([1, 2, 3], [4, 5, 6])
    (1.0, 0.3333333333333333)
    """
    result = spearmanr(x, y)
    if len(x) > EXACT_MODELS:
        return float(result.statistic), float(result.pvalue)
    permuted = [spearmanr(x, order).statistic for order in itertools.permutations(y)]
    as_extreme = [bool(abs(other) >= abs(result.statistic) - 1e-9) for other in permuted]
    return float(result.statistic), sum(as_extreme) / len(as_extreme)


def _verdict(correlation: float, p_value: float) -> str:
    if p_value > 0.05:
        return "not significant at 5 %."
    if correlation > 0:
        return "higher accuracy comes with better generalization here."
    return "higher accuracy comes with worse generalization here."


def _against_last(best: Choice) -> str:
    if best.layer == best.last_layer:
        return "; it is the last one."
    if best.loss is not None and best.loss <= 0:
        return "; the last layer is no worse."
    if best.loss is not None:
        return f"; the last layer is worse by {best.loss:.3f}{_in_brackets(best.loss_interval)}."
    if best.last_g is not None:
        return f"; the last layer has {best.last_g:.3f}."
    return "; the last layer has no score."


def _ties(best: Choice, not_compared: str) -> str:
    if best.tied_layers is None:
        return f" Layers were not compared: {not_compared or 'a layer lacks split-half scores in some trial'}."
    others = [layer for layer in best.tied_layers if layer != best.layer]
    if not others:
        return " No other layer is tied with it at 95 %."
    return f" Tied with it at 95 %: layer{'s' if len(others) > 1 else ''} {_runs(others)}."


def why_not_compared(metric: str, sizes: Mapping[str, int], resamples: int) -> str:
    """Why layers can't be compared by this metric, given class sizes and `resamples`; empty if they can.

    Args:
        sizes: number of images by class.
        resamples: `score.resamples`.
    """
    if not resamples:
        return "score.resamples is 0"
    counts = np.array(list(sizes.values()))
    if not can_be_halved(counts):
        small = {name: count for name, count in sizes.items() if count < LEAST_HALVED}
        return (
            f"split halves need two classes with at least {LEAST_HALVED} images, and an average of {LEAST_HALVED} "
            "per class; "
            f"{class_counts(small)}"
        )
    shots = int(metric.rpartition("_")[2]) if metric.startswith("few_shot") else 0
    small = {name: count for name, count in sizes.items() if count < 2 * shots}
    if small:
        return f"{metric} on split halves needs {2 * shots} images of each class; {class_counts(small)}"
    return ""


def class_counts(sizes: Mapping[str, int]) -> str:
    """Image counts of the three smallest classes, and the number of the others.

    >>> class_counts({"b": 3, "a": 2, "c": 4, "d": 5})
    'a has 2, b has 3, c has 4, and 1 more class'
    """
    ordered = sorted(sizes.items(), key=lambda item: (item[1], item[0]))
    parts = [f"{name} has {count}" for name, count in ordered[:3]]
    more = len(ordered) - 3
    return ", ".join([*parts, *([f"and {more} more class{'es' if more > 1 else ''}"] if more > 0 else [])])


def _runs(layers: Sequence[int]) -> str:
    """Layer numbers, with runs of three or more as `8 to 10`.

    >>> _runs([1, 2, 4, 5, 6])
    '1, 2, 4 to 6'
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _range(interval: Interval) -> str:
    return f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}"


def _in_brackets(interval: Interval | None) -> str:
    return "" if interval is None else f" ({_range(interval)})"
