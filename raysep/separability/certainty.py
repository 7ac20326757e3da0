"""How sure a score is: standard errors and intervals over images.

N images, S splits of them into halves a and b (`halves.py`). Which estimate fits depends on how a score
hangs on single images. With d = (a - b) / 2 and m = (a + b) / 2 of each split:

- `smooth_se`, for scores that each image changes a little (purity of many neighbours): var(d) - var(m),
  which is -cov(a, b), and unbiased for the variance of the mean over halves, whatever the score (Wang and
  Lindsay 2014, Statistica Sinica 24:1117, for U-statistics).
- `jumping_se`, for scores that jump when single images are left out (the nearest neighbour, k-means that
  settles elsewhere): var(d). Jumps of a and b are independent, so that half of their variance, as much as
  twice the images would leave of it, is in d.

What another k-means start on the same images or another training seed would give is not in here and kept
apart; under protocol `paper`, whose score is that of a single start, `starts_sd` says what that leaves out.
`jobs/benchmarks/calibration.py` measures how often the intervals hold the true value.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysep.separability.few_shot import FewShot
from raysep.separability.halves import HalfValues

# Standard errors on either side of a 95 % interval.
Z = 1.959964
Interval = tuple[float, float]


def smooth_se(values: HalfValues) -> float:
    """Standard error of a score that every image changes a little; 0 where the estimate is negative.

    Args:
        values: (S, 2) the score on the halves of each split.
    """
    return float(np.sqrt(max(0.0, -np.cov(values[:, 0], values[:, 1])[0, 1])))


def jumping_se(values: HalfValues) -> float:
    """Standard error of a score that jumps when single images are left out. `values` as for `smooth_se`."""
    return float(((values[:, 0] - values[:, 1]) / 2).std(ddof=1))


def few_shot_se(found: FewShot, y: NDArray[np.integer[Any]], shots: int) -> float:
    """Standard error of a few-shot accuracy over images and draws.

    The variance of its first-order terms: of an image as one that is classified, of a draw of labelled
    images, which there are only so many of, and of the two together: an image that is hard to classify
    is a bad example as well, and where many are labelled it is missing from those that are classified.

    Args:
        found: what the classifiers of R draws were right about.
        y: (N,) labels.
        shots: labelled images per class.
    """
    Q, R = len(found.queries), len(found.right)
    accuracies = found.accuracies
    times = (~found.labelled[:, found.queries]).sum(axis=0)
    per_image = np.where(times > 0, found.right.sum(axis=0) / np.maximum(times, 1), accuracies.mean())
    _, index, sizes = np.unique(y, return_inverse=True, return_counts=True)
    drawn = shots / sizes
    as_image = (per_image - per_image.mean()) / Q
    # einsum reads booleans piece by piece; a product would make floats of all of them first.
    effect = np.einsum("r,rn->n", accuracies - accuracies.mean(), found.labelled)
    effect /= np.maximum(found.labelled.sum(axis=0), 1)
    as_example = effect * drawn[index]
    share = float(drawn.mean())
    of_images = float((as_image**2).sum())
    of_draws = float(accuracies.var()) * (share + (1 - share) / R)
    together = 2 * float((as_image * as_example[found.queries]).sum())
    # Estimates of all three: their sum is not less than the first, which is a variance for itself.
    return math.sqrt(max(of_images, of_images + of_draws + together))


def interval(value: float, se: float, N: int, low: float = 0.0) -> Interval:
    """The 95 % interval of a score between `low` and 1.

    Symmetric on the scale of the logit, so that it stays inside the range and is wider towards the middle,
    as scores near an end are. Where no half differs from another there is no standard error to go by: then
    the interval is that of a share of N images that all agree (Wilson 1927,
    doi:10.1080/01621459.1927.10502953).

    Args:
        value: the score.
        se: its standard error.
        N: images.
        low: -1 for scores that are adjusted for chance.
    """
    share = (value - low) / (1 - low)
    if se <= 0 or not 0 < share < 1:
        centre = (share + Z**2 / (2 * N)) / (1 + Z**2 / N)
        half = Z * math.sqrt(max(0.0, share * (1 - share)) / N + Z**2 / (4 * N**2)) / (1 + Z**2 / N)
        ends = centre - half, centre + half
    else:
        place, width = math.log(share / (1 - share)), Z * (se / (1 - low)) / (share * (1 - share))
        ends = _logistic(place - width), _logistic(place + width)
    below, above = (low + (1 - low) * end for end in ends)
    return min(max(low, below), value), max(min(1.0, above), value)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
