"""Intervals held against the truth over many data sets: how often they hold it, and how wide they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysep.config.names import Metric
from raysep.config.registry import METRICS
from raysep.scoring.intervals import WIDEST, interval
from raysep.scoring.registry import Measured

# Half a unit of the last digit that is shown.
SHOWN = 0.0005


@dataclass(frozen=True)
class Intervals:
    """What the intervals of one metric did over all data sets.

    Attributes:
        coverage: how often they held the true value.
        width: their mean by the true interval's.
        too_wide: how many are wider than `WIDEST` standard errors, or than the range of their halves.
    """

    coverage: float
    width: float
    too_wide: int


def intervals(scores: Sequence[Measured], metric: Metric, N: int, spread: float = 1.0) -> Intervals:
    """Hold intervals against the truth.

    Args:
        scores: of one metric, one of each data set.
        N: images of a data set.
        spread: what the data sets vary by, by what independent ones would.
    """
    values = np.array([score.value for score in scores], dtype=np.float64)
    ends = np.array([score.interval for score in scores])
    truth, widths = values.mean(), ends[:, 1] - ends[:, 0]
    low, high = np.quantile(values, [0.025, 0.975])
    resolution = np.subtract(*interval(metric, 1.0, 0.0, N)[::-1]) if truth > 1 - 1 / N else 0.0
    held = (ends[:, 0] <= truth + SHOWN) & (truth - SHOWN <= ends[:, 1])
    return Intervals(
        coverage=float(held.mean()),
        width=float(widths.mean() / max((high - low) / spread, resolution, 2 * SHOWN)),
        too_wide=int((widths > np.array([widest(score, metric, N) for score in scores]) + 1e-9).sum()),
    )


def widest(score: Measured, metric: Metric, N: int) -> float:
    """How wide an interval may be: no limit where no half differs, so that there is no standard error."""
    if not score.se:
        return math.inf
    # The probe's halves share their fits: their range says nothing.
    if metric == "linear_probe" or score.halves is None:
        return WIDEST * score.se
    # Near an end halves have few values: a share of N images is the limit there.
    share = 0.0 if METRICS[metric].clustering else float(np.subtract(*interval(metric, 1.0, 0.0, N)[::-1]))
    return min(WIDEST * score.se, max(float(np.ptp(score.halves)), 2 * share))
