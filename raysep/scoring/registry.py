"""Every score of a layer with its certainty: the number, its interval over images, its chance level.

To add a metric: write the function in `metrics.py`, name it in `names.py`, and say here what it is given
and how it comes out on halves of the images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from raysep.config.names import Metric
from raysep.scoring import chance_level, intervals, metrics, split_half
from raysep.scoring.cache import PAPER_K, LayerScores
from raysep.scoring.probe import OUTER_FOLDS, STRENGTHS, linear_probe
from raysep.scoring.split_half import HalfValues


@dataclass(frozen=True)
class Measured:
    """A score and how sure it is.

    Attributes:
        value: None where the metric isn't defined for the input.
        k: clusters for clusterings, neighbours for `knn_purity` and `nn1`, labelled images per class for
            few-shot; None for metrics without such a number.
        interval: 95 % over images; None where no standard error could be estimated.
        se: its standard error.
        halves: (S, 2) the score on each half, for what compares layers; None where no halves were drawn.
        starts_sd: population standard deviation of the score over single k-means starts.
        shuffled: the score of the same embedding with shuffled labels, mean over all shuffles: what chance gives.
    """

    value: float | None
    k: int | None = None
    interval: intervals.Interval | None = None
    se: float | None = None
    halves: HalfValues | None = None
    starts_sd: float | None = None
    shuffled: float | None = None


def clustering(name: str, layer: LayerScores) -> Measured:
    """`nmi`, `ami` or `ari`."""
    score = {"nmi": metrics.nmi, "ami": metrics.ami, "ari": metrics.ari}[name]
    value = score(layer.y, layer.clusters)
    if value is None:
        return Measured(None, layer.n_classes)
    each = [score(layer.y, start) for start in layer.starts.labels]
    by_chance = chance_level.of_clusters(name, layer.y, layer.clusters)
    measured = Measured(
        value,
        layer.n_classes,
        starts_sd=float(np.std([one for one in each if one is not None])),
        shuffled=by_chance,
    )
    on_halves = layer.cluster_halves
    if on_halves is None:
        return measured
    own = on_halves[name]
    return _sure(name, measured, own, intervals.jumping_se(own, value, by_chance, intervals.RARER[name]), len(layer.y))


def neighborhood(name: str, layer: LayerScores) -> Measured:
    """`knn_purity` or `r_precision`."""
    y, queries, in_a, reached = layer.y, layer.queries, layer.in_a, 1.0
    if name == "knn_purity":
        divisor = PAPER_K if layer.paper else None
        value = metrics.knn_purity(y, layer.hits, layer.purity_k, divisor)
        k, counted = layer.purity_k, np.full(len(y), layer.purity_k)
        reached = k / divisor if divisor else 1.0
        chance_of = partial(chance_level.of_neighbors, y, reached)
    else:
        value, k = metrics.r_precision(y, layer.hits, queries), None
        _, index, sizes = np.unique(y, return_inverse=True, return_counts=True)
        counted, chance_of = sizes[index] - 1, partial(chance_level.of_r_precision, y)
    if value is None:
        return Measured(None, k)
    measured = Measured(value, k, shuffled=chance_of())
    if in_a is None:
        return measured
    counted = counted if queries is None else counted[queries]

    def with_error() -> tuple[HalfValues, float]:
        on_halves = split_half.purity_on_halves(layer.hits, layer.neighbors, counted, in_a, queries)
        return on_halves, intervals.neighbor_se(on_halves, layer.hits, counted, y, layer.neighbors, queries)

    # Where classes are of one size, both count the same neighbours.
    on_halves, se = layer.once("purity_halves", counted.tobytes(), compute=with_error)
    # What can be reached is the end of the range.
    sure = _sure(name, replace(measured, value=value / reached), on_halves, se, len(layer.neighbors))
    low, high = sure.interval or (0.0, 1.0)
    return replace(
        sure, value=value, interval=(reached * low, reached * high), se=reached * se, halves=reached * on_halves
    )


def nearest(layer: LayerScores) -> Measured:
    """`nn1`."""
    value = metrics.nn1(layer.y, layer.hits)
    if value is None:
        return Measured(None, 1)
    measured = Measured(value, 1, shuffled=chance_level.of_neighbors(layer.y))
    if layer.in_a is None:
        return measured
    on_halves = split_half.nearest_on_halves(layer.hits, layer.neighbors, layer.in_a, layer.queries)
    return _sure("nn1", measured, on_halves, intervals.jumping_se(on_halves), len(layer.neighbors))


def probe(layer: LayerScores) -> Measured:
    """`linear_probe`. Its chance level is that of the strongest penalty on labels shuffled once.

    Its standard error is that of a share of N images, and at chance level, where what is predicted hangs on the
    training images alone, larger by their part: test by training images (Nadeau, Bengio 2003,
    doi:10.1023/A:1024068626366).
    """
    right = layer.probed
    if right is None:
        return Measured(None)
    value, N = float(right.mean()), len(right)
    chance_of = linear_probe(layer.placed, layer.shuffled(), layer.engine, layer.seed, STRENGTHS[:1])
    measured = Measured(value, shuffled=None if chance_of is None else float(chance_of.mean()))
    if layer.in_a is None:
        return measured
    # The fits are those on all images, so that halves of a small sample are not quite independent.
    on_halves = split_half.mean_on_halves(right.astype(np.float64), layer.in_a)
    variance = value * (1 - value) / N
    # Of labels that nothing tells, the largest class is the best guess. Near it is within twice this error or so.
    near = intervals.at_chance(value, float(layer.class_sizes.max() / N), 2 * float(np.sqrt(variance)))
    return _sure("linear_probe", measured, on_halves, float(np.sqrt(variance * (1 + near / (OUTER_FOLDS - 1)))), N)


def shots(count: int, layer: LayerScores) -> Measured:
    """`few_shot_<count>`: mean accuracy over draws of labelled images."""
    found = layer.few_shot(count)
    if found is None:
        return Measured(None, count)
    by_chance = chance_level.of_few_shot(layer.y)
    measured = Measured(float(found.accuracies.mean()), count, shuffled=by_chance)
    if not layer.config.resamples:
        return measured
    # The error is that of the draws: it is known where halves have too few images to label.
    se = intervals.few_shot_se(found, layer.y, by_chance)
    return _sure(f"few_shot_{count}", measured, layer.few_shot_halves(count), se, len(found.queries))


MEASURES: dict[Metric, Callable[[LayerScores], Measured]] = {
    "nmi": partial(clustering, "nmi"),
    "ami": partial(clustering, "ami"),
    "ari": partial(clustering, "ari"),
    "knn_purity": partial(neighborhood, "knn_purity"),
    "nn1": nearest,
    "r_precision": partial(neighborhood, "r_precision"),
    "linear_probe": probe,
    "few_shot_1": partial(shots, 1),
    "few_shot_2": partial(shots, 2),
    "few_shot_5": partial(shots, 5),
    "few_shot_10": partial(shots, 10),
    "few_shot_20": partial(shots, 20),
}

# Those that both protocols define alike.
ALIKE = frozenset(MEASURES) - {"nmi", "ami", "ari", "knn_purity"}


def _sure(metric: str, measured: Measured, on_halves: HalfValues | None, se: float, N: int) -> Measured:
    """A score with its standard error and interval."""
    assert measured.value is not None
    se = 0.0 if se < intervals.ROUNDING else se
    span = math.inf if on_halves is None else intervals.span_of(metric, on_halves)
    interval = intervals.interval(metric, measured.value, se, N, span)
    return replace(measured, interval=interval, se=se, halves=on_halves)
