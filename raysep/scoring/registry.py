"""What a metric returns, the decorator that registers it, and the certainty of its value."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysep.config.registry import METRICS, MetricSpec
from raysep.scoring import intervals
from raysep.scoring.split_half import HalfValues

if TYPE_CHECKING:
    from raysep.scoring.cache import LayerScores


@dataclass(frozen=True)
class Measured:
    """A score and its certainty.

    Attributes:
        value: None where the metric isn't defined for the input.
        k: clusters for clusterings, neighbours for `knn_purity` and `nn1`, labelled images per class for
            few-shot; None for metrics without such a number.
        interval: 95 % over images; None where no standard error could be estimated.
        se: standard error.
        halves: (S, 2) the score on each half, for the comparison of layers; None without halves.
        starts_sd: population standard deviation of the score over single k-means starts.
        shuffled: chance level: the mean score of the same embedding over shuffles of the labels.
    """

    value: float | None
    k: int | None = None
    interval: intervals.Interval | None = None
    se: float | None = None
    halves: HalfValues | None = None
    starts_sd: float | None = None
    shuffled: float | None = None


Compute = Callable[["LayerScores"], Measured]


def metric(
    name: str,
    summary: str,
    *,
    low: float = 0.0,
    shared: bool = True,
    clustering: bool = False,
    shared_fits: bool = False,
    least_images: int = 1,
    large: bool = False,
) -> Callable[[Compute], Compute]:
    """Register a metric: a function of a layer. See `MetricSpec` for the arguments.

    The function is called with finite embeddings of two classes or more, and returns None as the value where it isn't
    defined. Higher is better, 1 is the highest. `from_embeddings` makes one of a function of X and y.

    Raises:
        ValueError: the name is taken.
    """

    def register(compute: Compute) -> Compute:
        spec = MetricSpec(name, compute, low, shared, clustering, shared_fits, least_images, large, summary)
        METRICS.add(name, spec)
        return compute

    return register


def from_embeddings(
    layer: "LayerScores", name: str, score: Callable[[NDArray[np.float32], NDArray[np.integer[Any]]], float]
) -> Measured:
    """A metric of any function of embeddings and labels, with its interval and chance level.

    The score is computed on all images, once on shuffled labels, and on every half: 200 more times by default, on at
    most 3,000 images. It should change little with any single image (`intervals.smooth_se`).

    Args:
        name: of the registered metric.
        score: (N, D) float32 and (N,) labels to a number.
    """
    measured = Measured(float(score(layer.rows, layer.y)), shuffled=float(score(layer.rows, layer.shuffled())))
    halved = layer.halved_images()
    if halved is None:
        return measured
    rows, y, in_a = halved
    splits = [[score(rows[half], y[half]) for half in (a, ~a)] for a in in_a.T]
    on_halves = np.array(splits, np.float64)
    return with_interval(name, measured, on_halves, intervals.smooth_se(on_halves), len(layer.y))


def with_interval(name: str, measured: Measured, on_halves: HalfValues | None, se: float, N: int) -> Measured:
    """A score with its standard error and interval.

    Args:
        name: of the registered metric.
        on_halves: (S, 2).
        se: standard error of the score on all images.
        N: images.
    """
    assert measured.value is not None
    se = 0.0 if se < intervals.ROUNDING else se
    span = math.inf if on_halves is None else intervals.span_of(name, on_halves)
    interval = intervals.interval(name, measured.value, se, N, span)
    return replace(measured, interval=interval, se=se, halves=on_halves)
