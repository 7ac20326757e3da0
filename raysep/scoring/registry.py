"""The `@metric` decorator, the result type of a metric, and helpers for its interval."""

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
    """A score, its uncertainty and its chance level.

    Attributes:
        value: None where the metric isn't defined for the input.
        k: number of clusters for clusterings, of neighbours for `knn_purity` and `nn1`, of labelled images per class
            for few-shot; None for other metrics.
        interval: 95 % confidence interval over images; None where no standard error could be estimated.
        se: standard error over images.
        halves: (S, 2) the score on both halves of S random splits, to compare layers; None without split-halves.
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
    """Register a metric: a function from a layer to a score. `MetricSpec` describes the arguments.

    The function gets finite embeddings of at least two classes, and returns the value None where the metric isn't
    defined. Higher is better; the maximum is 1. `from_embeddings` adapts a plain function of X and y.

    Raises:
        ValueError: another metric has this name.
    """

    def register(compute: Compute) -> Compute:
        spec = MetricSpec(name, compute, low, shared, clustering, shared_fits, least_images, large, summary)
        METRICS.add(name, spec)
        return compute

    return register


def from_embeddings(
    layer: "LayerScores", name: str, score: Callable[[NDArray[np.float32], NDArray[np.integer[Any]]], float]
) -> Measured:
    """Compute a score function on a layer, with interval and chance level.

    The score is computed on all images, once on shuffled labels, and on every split-half: 200 more times by default, on
    at most 3,000 images. `score` should change little with any single image (`intervals.smooth_se`).

    Args:
        name: name of the registered metric.
        score: maps (N, D) float32 embeddings and (N,) labels to a number.
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
    """Add standard error and 95 % interval to a score.

    Args:
        name: name of the registered metric.
        on_halves: (S, 2) the score on both halves of each split.
        se: standard error of the score on all images.
        N: number of images.
    """
    assert measured.value is not None
    se = 0.0 if se < intervals.ROUNDING else se
    span = math.inf if on_halves is None else intervals.span_of(name, on_halves)
    interval = intervals.interval(name, measured.value, se, N, span)
    return replace(measured, interval=interval, se=se, halves=on_halves)
