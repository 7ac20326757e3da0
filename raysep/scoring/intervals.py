"""How sure a score is: standard errors and 95 % intervals over images.

N images, S splits of them into halves a and b (`halves.py`), with d = (a - b) / 2 and m = (a + b) / 2 of each split.

- `smooth_se`, for scores that each image changes a little: var(d) - var(m), which is -cov(a, b), and unbiased for
  the variance of the mean over halves, whatever the score (Wang and Lindsay 2014, Statistica Sinica 24:1117, for
  U-statistics).
- `jumping_se`, for scores that jump when single images are left out (the nearest neighbour, k-means that settles
  elsewhere): var(d), less a part of var(m) for clusterings (`RARER`). Jumps of a and b are independent, so that half of
  their variance is in d and half in m; twice the images would leave half of it at most, as they jump less often.
- `neighbor_se`, for purities of many neighbours: the smaller of `smooth_se` and a jackknife.
- `few_shot_se`, for few-shot accuracies: a jackknife over the draws of labelled images.

At chance level scores are degenerate statistics (Hoeffding 1948, doi:10.1214/aoms/1177730196): no single image moves
them, and their variance falls with the square of N instead of N. Halves then have four times the variance of the whole
and not twice; the estimates above allow for that.

What another k-means start on the same images or another training seed would give is not in here and kept apart; under
protocol `paper`, whose score is that of a single start, `starts_sd` says what that leaves out.
`jobs/benchmarks/calibration.py` measures how often the intervals hold the true value, and how wide they are.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.config.registry import METRICS
from raysep.scoring.few_shot import FewShot
from raysep.scoring.split_half import HalfValues

# Standard errors on either side of a 95 % interval.
Z = 1.959964
# No interval is wider than so many standard errors: beyond, a standard error says less than a width.
WIDEST = 6.0
# The share of var(m) that jumps of clusterings of all images don't have, measured by `jobs/benchmarks/calibration.py`:
# more would make intervals of `nmi` narrower, and hold the truth less often where k-means has two answers.
RARER = {"nmi": 0.1, "ami": 0.1, "ari": 0.36}
# A standard error below this is none.
ROUNDING = 1e-9
Interval = tuple[float, float]


def smooth_se(values: HalfValues) -> float:
    """Standard error of a score that every image changes a little.

    Not less than var(d) / 2, which is what a degenerate statistic has: -cov(a, b) may come out negative there.

    Args:
        values: (S, 2) the score on the halves of each split.
    """
    of_d, of_m = _variances(values)
    return math.sqrt(max(of_d - of_m, of_d / 2))


def jumping_se(values: HalfValues, value: float = 1.0, chance: float = 0.0, rarer: float = 0.0) -> float:
    """Standard error of a score that jumps when single images are left out.

    Args:
        values: as for `smooth_se`.
        value, chance: the score on all images, and what chance gives: the nearer they are, the more of var(m) is
            noise that falls with the square of N.
        rarer: the share of var(m) that jumps of all images don't have, as they are rarer than those of half of them.
    """
    of_d, of_m = _variances(values)
    near = at_chance(value, chance, math.sqrt(of_d))
    return math.sqrt(of_d - (near + (1 - near) * rarer) * min(of_m, of_d / 2))


def neighbor_se(
    values: HalfValues,
    hits: NDArray[Any],
    k: NDArray[np.integer[Any]],
    y: NDArray[np.integer[Any]],
    neighbors: NDArray[np.integer[Any]],
    queries: NDArray[np.integer[Any]] | None = None,
) -> float:
    """Standard error of a purity of many neighbours: the smaller of two estimates, which err upwards in turn.

    `smooth_se` is right at chance level and too large for well separated classes, since the halves have the
    neighbourhoods of all images. A jackknife (Efron and Stein 1981, doi:10.1214/aos/1176345462) is right there and too
    large at chance level. An image that is left out takes its own purity with it, and in each neighbourhood that it
    was in the last one of the k counts twice instead.

    Args:
        values: (S, 2) the score on the halves of each split.
        hits: (Q, at least max k) whether a neighbour has the image's label, as `ties.hits` gives it.
        k: (Q,) how many neighbours of each image count; images with 0 are left out.
        y: (N,) labels: class sizes are fixed, so that what classes differ by is no error.
        neighbors: (Q, at least max k) positions.
        queries: (Q,) positions of the images; unset: all.
    """
    asked = np.arange(len(y)) if queries is None else queries
    counted = k > 0
    asked, k, width = asked[counted], k[counted], int(k.max())
    wanted = np.arange(width) < k[:, None]
    hits = np.where(wanted, hits[counted, :width], 0).astype(np.float32)
    purity = hits.sum(axis=1) / k
    furthest = hits[np.arange(len(k)), k - 1]
    lost = np.where(wanted, (hits - furthest[:, None]) / k[:, None], 0)
    influence = np.bincount(neighbors[counted, :width].ravel(), weights=lost.ravel(), minlength=len(y))
    influence[asked] += purity - purity.mean()
    jackknife = math.sqrt(_within_classes(influence / len(asked), y))
    return min(smooth_se(values), jackknife)


def few_shot_se(found: FewShot, y: NDArray[np.integer[Any]], chance: float) -> float:
    """Standard error of a few-shot accuracy over images and draws: a jackknife (Efron and Stein 1981).

    Without an image the accuracy is the mean over the draws that don't label it, of the other images. What the means
    over so few draws differ by anyway is taken off; the error of the mean over the draws themselves is added, unless
    these are all draws. At chance level a jackknife has twice the variance.

    Where nearly all images of a class are labelled, a jackknife sees nothing of it: without one of them hardly any is
    left to classify. Then the error is at least that of a share of the images, and of so many draws.

    Args:
        found: what the classifiers of R draws were right about.
        y: (N,) labels.
        chance: the accuracy that chance gives.
    """
    R, accuracies = len(found.right), found.accuracies
    free = ~found.labelled
    times = np.maximum(free.sum(axis=0), 1)
    # einsum reads booleans piece by piece; a product would make floats of all of them first.
    without = np.einsum("r,rn->n", accuracies, free) / times
    asked, others = found.queries, np.maximum(free[:, found.queries].sum(axis=1) - 1, 1)
    total = np.einsum("r,rq->q", found.right.sum(axis=1, dtype=np.float64) / others, free[:, asked])
    without[asked] = (total - np.einsum("r,rq->q", 1 / others, found.right)) / times[asked]
    of_draw = 0.0 if found.exact else float(accuracies.var())
    noise = float((of_draw / times * (1 - times / R)).sum())
    # Images that are classified, and those that are only labelled, each around their own mean. One that is labelled in
    # every draw has no other draws to say what it does.
    _, index, sizes = np.unique(y, return_inverse=True, return_counts=True)
    kind = 2 * index
    kind[asked] += 1
    some = free.any(axis=0)
    shrink = 1 - 1 / np.bincount(kind[some])[kind[some]]
    variance = max(0.0, _within_classes(without[some] * shrink, kind[some]) - noise) + of_draw / R
    value = float(accuracies.mean())
    variance *= 1 - at_chance(value, chance, math.sqrt(variance)) / 2
    shots = int(found.labelled[0].sum()) // len(sizes)
    if sizes.min() < max(2 * shots, shots + 3):
        variance = max(variance, value * (1 - value) / len(asked) + float(accuracies.var()) / R)
    return math.sqrt(variance)


def at_chance(value: float, chance: float, se: float) -> float:
    """How near a score is to its chance level: 1 at it, 0.14 at two standard errors from it, 0 far away.

    >>> at_chance(0.5, 0.5, 0.1), round(at_chance(0.7, 0.5, 0.1), 2), at_chance(0.7, 0.5, 0.0)
    (1.0, 0.14, 0.0)
    """
    return math.exp(-(((value - chance) / se) ** 2) / 2) if se > 0 else float(value == chance)


def interval(metric: str, value: float, se: float, N: int, span: float = math.inf) -> Interval:
    """The 95 % interval of a score, inside its range.

    A mean over images of what lies between 0 and 1 varies less the nearer it is to an end: the interval holds the
    values whose own variance is compatible with the score (Wilson 1927, doi:10.1080/01621459.1927.10502953). What the
    standard error has beyond the variance of a share of N images does not depend on the value. Clusterings are no such
    means: their interval is the score and 1.96 standard errors on either side.

    Where no half differs from another there is no standard error to go by. Of images that all agree, the interval is
    that of a share of N; a score between its ends that can't vary (that of a constant layer) is its own interval.

    Args:
        metric: its name.
        value: the score.
        se: its standard error.
        N: images.
        span: the range of the score over the halves, where it is known. The interval of a clustering is not wider;
            that of a share may be as wide as a share of N is at least, of which halves have few values near an end.
    """
    low, clustering = METRICS[metric].low, METRICS[metric].clustering
    share, error = (value - low) / (1 - low), se / (1 - low)
    variance = share * (1 - share)
    of_share = _compatible(share, N, 0.0)
    if error < ROUNDING:
        ends = of_share if share == 1 or (share == 0 and not clustering) else (share, share)
    elif clustering:
        ends = share - Z * error, share + Z * error
    else:
        ends = _compatible(share, max(N, variance / error**2), max(0.0, error**2 - variance / N))
    below, above = (min(1.0, max(low, low + (1 - low) * end)) for end in ends)
    below, above = min(below, value), max(above, value)
    least = 0.0 if clustering else of_share[1] - of_share[0]
    widest = min(WIDEST * se, max(span, least))
    if error >= ROUNDING and above - below > widest:
        shrink = widest / (above - below)
        below, above = value - shrink * (value - below), value + shrink * (above - value)
    return below, above


def span_of(metric: str, values: HalfValues) -> float:
    """The range of a score over its halves, for `interval`. The probe's halves share their fits: it says nothing."""
    return math.inf if METRICS[metric].shared_fits else float(np.ptp(values))


def _compatible(share: float, n: float, constant: float) -> Interval:
    """The values t with |share - t| <= Z * sqrt(t * (1 - t) / n + constant)."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    square = (share**2 - Z**2 * constant) / (1 + Z**2 / n)
    half = math.sqrt(max(0.0, centre**2 - square))
    return centre - half, centre + half


def _variances(values: HalfValues) -> tuple[float, float]:
    """Of d and of m over splits."""
    a, b = values[:, 0], values[:, 1]
    return float(((a - b) / 2).var(ddof=1)), float(((a + b) / 2).var(ddof=1))


def _within_classes(influence: NDArray[np.floating[Any]], y: NDArray[np.integer[Any]]) -> float:
    """The variance of a sum over images of stratified classes."""
    _, index, sizes = np.unique(y, return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=influence) / sizes
    squares = np.bincount(index, weights=(influence - means[index]) ** 2)
    return float((squares * sizes / np.maximum(sizes - 1, 1)).sum())
