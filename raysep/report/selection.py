"""Is the best layer really the best, and what is its g after correction for selection bias?

L layers, T trials, S splits of the images into halves a and b (`separability/halves.py`). A maximum over
layers on the images that chose it is biased upwards (the winner's curse). So the layer is chosen on one
half of each split and scored on the other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.config.registry import METRICS
from raysep.scoring.intervals import Z, interval, span_of

Floats = NDArray[np.floating[Any]]
LEVEL = 0.95


@dataclass(frozen=True)
class Selection:
    """What the images say about the layers of one curve.

    Attributes:
        se: (L,) standard error over images of the mean over trials.
        p_best: (L,) how often each layer is the best one when the images are drawn again; sums to 1.
        tied: positions of the layers that can't be told from the best at 95 %.
        corrected: g of the chosen layer, on images that didn't choose it.
        corrected_interval: 95 % over images.
        loss: what the last layer is worse by than the chosen one, after correction for selection bias.
        loss_interval: 95 % over images.
        span: (L,) range of each score over the halves.
    """

    se: Floats
    p_best: Floats
    tied: list[int]
    corrected: float
    corrected_interval: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]
    span: Floats


def select(metric: str, values: Floats, halves: Floats, se: Floats, N: int, last: int = -1) -> Selection:
    """Compare the layers of one curve.

    Args:
        metric: its name.
        values: (T, L) scores on all images.
        halves: (T, L, S, 2) scores on halves of them; the same halves for all layers of a trial.
        se: (T, L) standard error of each score over images.
        N: images.
        last: position of the layer that counts as the last one.
    """
    mean, on_halves = values.mean(axis=0), halves.mean(axis=0)
    deviations = deviations_of(halves, se)
    best = int(mean.argmax())
    corrected = min(1.0, max(METRICS[metric].low, corrected_g(mean, on_halves)))
    spread = deviations.std(axis=1)
    span = np.array([span_of(metric, values) for values in on_halves])
    loss = corrected - float(mean[last])
    loss_se = float((deviations[best] - deviations[last]).std())
    return Selection(
        se=spread,
        p_best=p_best(mean, deviations),
        tied=tied(mean, deviations),
        corrected=corrected,
        corrected_interval=interval(metric, corrected, float(spread[best]), N, float(span[best])),
        loss=loss,
        loss_interval=(loss - Z * loss_se, loss + Z * loss_se),
        span=span,
    )


def deviations_of(halves: Floats, se: Floats) -> Floats:
    """How far the scores would be from what they are, had other images been drawn.

    The difference between the halves of a split says in which direction layers err together, the standard
    error says how far.

    Args:
        halves: (T, L, S, 2).
        se: (T, L).

    Returns:
        (L, 2 S) deviations of the mean over trials: each split's in both directions, so that their mean is 0.
    """
    difference = (halves[..., 0] - halves[..., 1]) / 2
    size = np.sqrt((difference**2).mean(axis=2))
    # A standard error that could not be estimated is no certainty: then the halves themselves say how far.
    scale = np.where((se > 0) & (size > 0), se / np.where(size > 0, size, 1), 1.0)
    scaled = difference * scale[..., None]
    mean = scaled.mean(axis=0)
    return np.concatenate([mean, -mean], axis=1)


def corrected_g(mean: Floats, on_halves: Floats) -> float:
    """g without the winner's curse: choose on one half, score on the other, mean over all splits.

    A half has fewer images, which some scores depend on (fewer neighbours, coarser clusters), so what a layer
    scores on the other half is shifted by what it has more on all images than on halves.

    Args:
        mean: (L,) scores on all images, mean over trials.
        on_halves: (L, S, 2), mean over trials.
    """
    level = mean - on_halves.mean(axis=(1, 2))
    splits = np.arange(on_halves.shape[1])
    found = []
    for chooser, judge in ((0, 1), (1, 0)):
        chosen = on_halves[:, :, chooser].argmax(axis=0)
        found.append(on_halves[chosen, splits, judge] + level[chosen])
    return float(np.mean(found))


def p_best(mean: Floats, deviations: Floats) -> Floats:
    """(L,) the share of draws of the images in which each layer is the best one. Arguments as for `tied`."""
    winners = (mean[:, None] + deviations).argmax(axis=0)
    return np.bincount(winners, minlength=len(mean)) / len(winners)


def tied(mean: Floats, deviations: Floats) -> list[int]:
    """The layers that can't be told from the best: the true best is among them with 95 % confidence.

    For each layer, the largest standardised lead of any other layer over it is held against how large
    such a lead gets by chance (multiple comparisons with the best: Hsu 1984, doi:10.1214/aos/1176346732,
    with the joint distribution taken from the halves).

    Args:
        mean: (L,) scores.
        deviations: (L, M) as `deviations_of` gives them.
    """
    kept = []
    for layer in range(len(mean)):
        leads, chance = mean - mean[layer], deviations - deviations[layer]
        size = chance.std(axis=1)
        others = size > 0
        # A layer that never deviates differently is told apart by any difference.
        if (leads[~others] > 0).any():
            continue
        if not others.any():
            kept.append(layer)
            continue
        bound = np.quantile((chance[others] / size[others, None]).max(axis=0), LEVEL)
        if (leads[others] / size[others]).max() <= bound:
            kept.append(layer)
    return kept
