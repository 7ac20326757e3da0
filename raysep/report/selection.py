"""Selection of the best layer: layers tied with it, and its score g corrected for selection bias.

L layers, T trials, S random splits of the images into halves a and b (`scoring/split_half.py`). A maximum over
layers is biased upwards on the images that select the layer (the winner's curse). So one half of each split
selects the layer, and the other scores it.
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
    """The comparison of the layers of one curve.

    Attributes:
        se: (L,) standard error over images of the mean over trials.
        p_best: (L,) probability of each layer to be the best under resampling of the images; sums to 1.
        tied: positions of the layers that are not significantly worse than the best at 95 %.
        corrected: g of the selected layer, on images that didn't select it.
        corrected_interval: 95 % over images.
        loss: `corrected` minus the score of the last layer.
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
        values: (T, L) scores on all images.
        halves: (T, L, S, 2) scores on split halves; all layers of a trial share the splits.
        se: (T, L) standard error of each score over images.
        N: number of images.
        last: position of the last layer; layers of another pooling may follow it in the curve.
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
    """Sampling deviations of the scores over images, drawn jointly for all layers.

    Differences between the halves of each split give the correlation between layers; the standard errors give the
    scale.

    Args:
        halves: (T, L, S, 2) scores on split halves.
        se: (T, L) standard errors.

    Returns:
        (L, 2 S) deviations of the mean over trials: each split gives one of either sign, so that their mean is 0.
    """
    difference = (halves[..., 0] - halves[..., 1]) / 2
    size = np.sqrt((difference**2).mean(axis=2))
    # A standard error of 0 could not be estimated: then the half differences keep their own scale.
    scale = np.where((se > 0) & (size > 0), se / np.where(size > 0, size, 1), 1.0)
    scaled = difference * scale[..., None]
    mean = scaled.mean(axis=0)
    return np.concatenate([mean, -mean], axis=1)


def corrected_g(mean: Floats, on_halves: Floats) -> float:
    """g without selection bias: one half selects the layer, the other scores it; mean over all splits.

    Some scores depend on the number of images (fewer neighbours, coarser clusters), so the score on a half is shifted
    by the layer's mean difference between all images and halves.

    Args:
        mean: (L,) scores on all images, mean over trials.
        on_halves: (L, S, 2), mean over trials.
    """
    shift = mean - on_halves.mean(axis=(1, 2))
    splits = np.arange(on_halves.shape[1])
    scores = []
    for selecting, scoring in ((0, 1), (1, 0)):
        selected = on_halves[:, :, selecting].argmax(axis=0)
        scores.append(on_halves[selected, splits, scoring] + shift[selected])
    return float(np.mean(scores))


def p_best(mean: Floats, deviations: Floats) -> Floats:
    """(L,) share of the deviations under which each layer is the best. Arguments as for `tied`."""
    winners = (mean[:, None] + deviations).argmax(axis=0)
    return np.bincount(winners, minlength=len(mean)) / len(winners)


def tied(mean: Floats, deviations: Floats) -> list[int]:
    """Positions of the layers that are not significantly worse than the best: a 95 % confidence set of the best layer.

    For each layer, the largest standardised lead of any other layer over it is compared with the 95 % quantile
    of such leads under chance (multiple comparisons with the best: Hsu 1984, doi:10.1214/aos/1176346732,
    with the joint distribution estimated from the halves).

    Args:
        mean: (L,) scores.
        deviations: (L, M) from `deviations_of`.
    """
    layers = []
    for layer in range(len(mean)):
        leads, chance = mean - mean[layer], deviations - deviations[layer]
        size = chance.std(axis=1)
        others = size > 0
        # Against a layer with the same deviations any difference is significant.
        if (leads[~others] > 0).any():
            continue
        if not others.any():
            layers.append(layer)
            continue
        bound = np.quantile((chance[others] / size[others, None]).max(axis=0), LEVEL)
        if (leads[others] / size[others]).max() <= bound:
            layers.append(layer)
    return layers
