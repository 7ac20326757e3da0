"""Standard errors and 95 % confidence intervals of scores, over images.

N images, S splits into halves a and b (`split_half.py`), and d = (a - b) / 2, m = (a + b) / 2 of their
scores.

- `smooth_se`, for smooth scores, which no single image changes much: var(d) - var(m), which equals -cov(a, b), and is
  unbiased for the variance of the mean over halves (Wang and Lindsay 2014, Statistica Sinica 24:1117, for
  U-statistics).
- `nonsmooth_se`, for scores that jump when single images are left out (nearest neighbour, k-means in another local
  optimum): var(d), minus a part of var(m) for clusterings (`JUMP_SHARE`). Jumps of a and b are independent, so that
  var(d) and var(m) each get half of the jump variance; with twice the images at most half of the jump variance remains,
  as jumps are rarer.
- `neighbor_se`, for purities of many neighbours: the smaller of `smooth_se` and a jackknife.
- `few_shot_se`, for few-shot accuracies: a jackknife over the draws of labelled images.

At chance level scores are degenerate statistics (Hoeffding 1948, doi:10.1214/aoms/1177730196): no single image moves
them, and their variance falls as 1/N^2 instead of 1/N. Halves then have four times the variance of the full sample
instead of twice; the estimates above allow for that.

The variance over k-means starts and over training seeds is not included; `starts_sd` reports the former for protocol
`paper`, which scores a single start. `jobs/benchmarks/calibration.py` measures coverage and width of the intervals.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.config.registry import METRICS
from raysep.scoring.few_shot import FewShot
from raysep.scoring.split_half import HalfValues

# The 97.5 % quantile of the normal distribution.
Z = 1.959964
# Upper bound of the interval width, in standard errors.
WIDEST = 6.0
# The share of var(m) to subtract, as all images have rarer jumps than halves, from `jobs/benchmarks/calibration.py`.
# More would narrow the intervals of `nmi`, but lower their coverage where k-means has two local optima.
JUMP_SHARE = {"nmi": 0.1, "ami": 0.1, "ari": 0.36}
# Standard errors below this are 0.
ROUNDING = 1e-9
Interval = tuple[float, float]


def smooth_se(values: HalfValues) -> float:
    """Standard error of a smooth score.

    The estimated variance is at least var(d) / 2, as for a degenerate statistic (see above), where var(d) - var(m) may
    be negative.

    Args:
        values: (S, 2) the score on the halves of each split.
    """
    var_d, var_m = _variances(values)
    return math.sqrt(max(var_d - var_m, var_d / 2))


def nonsmooth_se(values: HalfValues, value: float = 1.0, chance: float = 0.0, jump_share: float = 0.0) -> float:
    """Standard error of a score that jumps when single images are left out.

    Args:
        values: as for `smooth_se`.
        value, chance: the score on all images and its chance level. The nearer they are, the more of var(m) is noise
            that falls as 1/N^2.
        jump_share: the share of var(m) to subtract, as in `JUMP_SHARE`.
    """
    var_d, var_m = _variances(values)
    near = at_chance(value, chance, math.sqrt(var_d))
    return math.sqrt(var_d - (near + (1 - near) * jump_share) * min(var_m, var_d / 2))


def neighbor_se(
    values: HalfValues,
    hits: NDArray[Any],
    k: NDArray[np.integer[Any]],
    y: NDArray[np.integer[Any]],
    neighbors: NDArray[np.integer[Any]],
    queries: NDArray[np.integer[Any]] | None = None,
) -> float:
    """Standard error of a purity of many neighbours: the smaller of `smooth_se` and a jackknife.

    `smooth_se` is accurate at chance level and too large for well separated classes, since the halves reuse the
    neighbourhoods of all images. The jackknife (Efron and Stein 1981, doi:10.1214/aos/1176345462) is accurate for those
    and too large at chance level. Leaving out an image removes its own purity, and in each neighbourhood that contains
    it, the k-th neighbour counts again in its place.

    Args:
        values: (S, 2) the score on the halves of each split.
        hits: (Q, at least max k) whether a neighbour has the image's label, from `ties.hits`.
        k: (Q,) number of neighbours of each image that count; images with 0 are left out.
        y: (N,) labels. Class sizes are fixed, so that differences between classes add no variance.
        neighbors: (Q, at least max k) positions.
        queries: (Q,) positions of the query images; unset: all.
    """
    positions = np.arange(len(y)) if queries is None else queries
    counted = k > 0
    positions, k, width = positions[counted], k[counted], int(k.max())
    within_k = np.arange(width) < k[:, None]
    hits = np.where(within_k, hits[counted, :width], 0).astype(np.float32)
    purity = hits.sum(axis=1) / k
    furthest = hits[np.arange(len(k)), k - 1]
    changes = np.where(within_k, (hits - furthest[:, None]) / k[:, None], 0)
    influence = np.bincount(neighbors[counted, :width].ravel(), weights=changes.ravel(), minlength=len(y))
    influence[positions] += purity - purity.mean()
    jackknife = math.sqrt(_within_classes(influence / len(positions), y))
    return min(smooth_se(values), jackknife)


def few_shot_se(result: FewShot, y: NDArray[np.integer[Any]], chance: float) -> float:
    """Standard error of a few-shot accuracy over images and draws: a jackknife (Efron and Stein 1981).

    The leave-one-out accuracy of an image is the mean accuracy on the other images, over the draws where it is
    unlabelled. The noise that few draws cause in these means is subtracted; the variance of the mean over draws is
    added, unless the draws are exhaustive. At chance level the jackknife doubles the variance; this is corrected.

    Where nearly all images of a class are labelled, hardly any remain for the jackknife to classify. Then the variance
    is at least that of a proportion of the images plus that of the draws.

    Args:
        result: correctness of the classifiers of R draws.
        y: (N,) labels.
        chance: the chance level of the accuracy.
    """
    R, accuracies = len(result.right), result.accuracies
    free = ~result.labelled
    counts = np.maximum(free.sum(axis=0), 1)
    # einsum casts booleans in chunks; a matrix product would first copy all of them to floats.
    leave_one_out = np.einsum("r,rn->n", accuracies, free) / counts
    queries, rest = result.queries, np.maximum(free[:, result.queries].sum(axis=1) - 1, 1)
    total = np.einsum("r,rq->q", result.right.sum(axis=1, dtype=np.float64) / rest, free[:, queries])
    leave_one_out[queries] = (total - np.einsum("r,rq->q", 1 / rest, result.right)) / counts[queries]
    draw_variance = 0.0 if result.exact else float(accuracies.var())
    noise = float((draw_variance / counts * (1 - counts / R)).sum())
    # Classified and label-only images are centred separately. Images labelled in all draws have no leave-one-out value.
    _, index, sizes = np.unique(y, return_inverse=True, return_counts=True)
    group = 2 * index
    group[queries] += 1
    any_free = free.any(axis=0)
    shrink = 1 - 1 / np.bincount(group[any_free])[group[any_free]]
    variance = max(0.0, _within_classes(leave_one_out[any_free] * shrink, group[any_free]) - noise) + draw_variance / R
    value = float(accuracies.mean())
    variance *= 1 - at_chance(value, chance, math.sqrt(variance)) / 2
    shots = int(result.labelled[0].sum()) // len(sizes)
    if sizes.min() < max(2 * shots, shots + 3):
        variance = max(variance, value * (1 - value) / len(queries) + float(accuracies.var()) / R)
    return math.sqrt(variance)


def at_chance(value: float, chance: float, se: float) -> float:
    """Closeness of a score to its chance level: 1 at chance, 0.14 at two standard errors from it, 0 far away.

    >>> at_chance(0.5, 0.5, 0.1), round(at_chance(0.7, 0.5, 0.1), 2), at_chance(0.7, 0.5, 0.0)
    (1.0, 0.14, 0.0)
    """
    return math.exp(-(((value - chance) / se) ** 2) / 2) if se > 0 else float(value == chance)


def interval(metric: str, value: float, se: float, N: int, span: float = math.inf) -> Interval:
    """The 95 % confidence interval of a score, clipped to the metric's range.

    Proportions (means over images of values in [0, 1]) get a Wilson interval (Wilson 1927,
    doi:10.1080/01621459.1927.10502953): their variance shrinks towards 0 and 1. Variance beyond that of a proportion of
    N images is taken as constant in the value. Clusterings get the score plus or minus 1.96 standard errors.

    With a standard error of 0, a proportion of 0 or 1 gets the interval of a proportion of N images; other values, such
    as the score of a constant layer, get an interval of zero width.

    Args:
        metric: name of the metric.
        value: the score.
        se: its standard error.
        N: number of images.
        span: the range of the score over the halves, if known. It limits the width for clusterings. The interval of a
            proportion may be as wide as the interval of a proportion of N images, as halves take few values near 0 and
            1.
    """
    low, clustering = METRICS[metric].low, METRICS[metric].clustering
    proportion, error = (value - low) / (1 - low), se / (1 - low)
    variance = proportion * (1 - proportion)
    wilson = _compatible(proportion, N, 0.0)
    if error < ROUNDING:
        ends = wilson if proportion == 1 or (proportion == 0 and not clustering) else (proportion, proportion)
    elif clustering:
        ends = proportion - Z * error, proportion + Z * error
    else:
        ends = _compatible(proportion, max(N, variance / error**2), max(0.0, error**2 - variance / N))
    below, above = (min(1.0, max(low, low + (1 - low) * end)) for end in ends)
    below, above = min(below, value), max(above, value)
    min_width = 0.0 if clustering else wilson[1] - wilson[0]
    max_width = min(WIDEST * se, max(span, min_width))
    if error >= ROUNDING and above - below > max_width:
        shrink = max_width / (above - below)
        below, above = value - shrink * (value - below), value + shrink * (above - value)
    return below, above


def span_of(metric: str, values: HalfValues) -> float:
    """The range of a score over its halves, for `interval`; infinite for the probe, whose halves share fits."""
    return math.inf if METRICS[metric].shared_fits else float(np.ptp(values))


def _compatible(proportion: float, n: float, constant: float) -> Interval:
    """The interval of values t with |proportion - t| <= Z * sqrt(t * (1 - t) / n + constant)."""
    centre = (proportion + Z**2 / (2 * n)) / (1 + Z**2 / n)
    square = (proportion**2 - Z**2 * constant) / (1 + Z**2 / n)
    half = math.sqrt(max(0.0, centre**2 - square))
    return centre - half, centre + half


def _variances(values: HalfValues) -> tuple[float, float]:
    """Variances of d and m (see the module) over splits."""
    a, b = values[:, 0], values[:, 1]
    return float(((a - b) / 2).var(ddof=1)), float(((a + b) / 2).var(ddof=1))


def _within_classes(influence: NDArray[np.floating[Any]], y: NDArray[np.integer[Any]]) -> float:
    """The variance of the sum of images' influences, stratified by class."""
    _, index, sizes = np.unique(y, return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=influence) / sizes
    squares = np.bincount(index, weights=(influence - means[index]) ** 2)
    return float((squares * sizes / np.maximum(sizes - 1, 1)).sum())
