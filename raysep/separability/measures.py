"""Every score of a layer with its certainty: the number, its interval over images, its chance level.

To add a metric: write the function in `metrics.py`, name it in `names.py`, and say here what it is given
and how it comes out on halves of the images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from raysep.separability import certainty, halves, metrics
from raysep.separability.halves import HalfValues
from raysep.separability.layer import PAPER_K, Labels, Layer
from raysep.separability.names import LOWEST, Metric
from raysep.separability.probe import STRENGTHS, linear_probe

# Shuffles of the labels that a chance level is averaged over: of clusters and neighbours; few-shot draws.
SHUFFLES, SHUFFLED_DRAWS = 10, 20


@dataclass(frozen=True)
class Measured:
    """A score and how sure it is.

    Attributes:
        value: None where the metric isn't defined for the input.
        k: clusters for clusterings, neighbours for `knn_purity` and `nn1`, labelled images per class for
            few-shot; None for metrics without such a number.
        interval: 95 % over images; None where no halves were drawn.
        se: its standard error.
        halves: (S, 2) the score on each half, for what compares layers.
        starts_sd: population standard deviation of the score over single k-means starts.
        shuffled: the score of the same embedding with shuffled labels: what chance gives.
    """

    value: float | None
    k: int | None = None
    interval: certainty.Interval | None = None
    se: float | None = None
    halves: HalfValues | None = None
    starts_sd: float | None = None
    shuffled: float | None = None


def clustering(name: str, layer: Layer) -> Measured:
    """`nmi`, `ami` or `ari`."""
    score = {"nmi": metrics.nmi, "ami": metrics.ami, "ari": metrics.ari}[name]
    value = score(layer.y, layer.clusters)
    each = [score(layer.y, start) for start in layer.starts.labels]
    known = [one for one in each if one is not None]
    measured = Measured(
        value,
        layer.n_classes,
        starts_sd=float(np.std(known)) if known else None,
        shuffled=_mean([score(y, layer.clusters) for y in layer.permuted(SHUFFLES)]),
    )
    if value is None or layer.in_a is None:
        return measured
    on_halves = layer.cluster_halves[name]
    return _sure(measured, on_halves, certainty.jumping_se(on_halves), len(layer.y), LOWEST.get(name, 0.0))


def neighborhood(name: str, layer: Layer) -> Measured:
    """`knn_purity`, `nn1` or `r_precision`."""
    neighbors, sizes = layer.neighbors, dict(zip(*np.unique(layer.y, return_counts=True), strict=True))
    divisor = PAPER_K if layer.paper else None

    def score(y: Labels) -> float | None:
        if name == "nn1":
            return metrics.nn1(y, neighbors)
        if name == "r_precision":
            return metrics.r_precision(y, neighbors)
        return metrics.knn_purity(y, neighbors, layer.purity_k, divisor)

    k = {"nn1": 1, "knn_purity": layer.purity_k}.get(name)
    measured = Measured(score(layer.y), k, shuffled=_mean([score(y) for y in layer.permuted(SHUFFLES)]))
    if measured.value is None or layer.in_a is None:
        return measured
    if name == "nn1":
        on_halves = halves.nearest_on_halves(layer.y, neighbors, layer.in_a)
        return _sure(measured, on_halves, certainty.jumping_se(on_halves), len(layer.y))
    own_k = np.array([sizes[label] - 1 for label in layer.y])
    counted = own_k if name == "r_precision" else np.full(len(layer.y), layer.purity_k)
    on_halves = halves.purity_on_halves(layer.y, neighbors, counted, layer.in_a)
    if name == "knn_purity" and divisor:
        on_halves = on_halves * (layer.purity_k / divisor)
    return _sure(measured, on_halves, certainty.smooth_se(on_halves), len(layer.y))


def probe(layer: Layer) -> Measured:
    """`linear_probe`. Its chance level is that of the strongest penalty on labels shuffled once.

    Its standard error is that of a share of N images. Folds train on mostly the same images, so that it can
    be too small (Bates, Hastie, Tibshirani 2023, doi:10.1080/01621459.2023.2197686); in the calibration, of
    hundreds of images, it was not.
    """
    right = layer.probed
    if right is None:
        return Measured(None)
    value, N = float(right.mean()), len(right)
    chance = linear_probe(layer.X, layer.permuted(1)[0], layer.engine, layer.seed, STRENGTHS[:1])
    measured = Measured(value, shuffled=None if chance is None else float(chance.mean()))
    if layer.in_a is None:
        return measured
    # The fits are those on all images, so that halves of a small sample are not quite independent.
    on_halves = halves.mean_on_halves(right.astype(np.float64), layer.in_a)
    return _sure(measured, on_halves, float(np.sqrt(value * (1 - value) / N)), N)


def shots(count: int, layer: Layer) -> Measured:
    """`few_shot_<count>`: mean accuracy over draws of labelled images."""
    found = layer.few_shot(count)
    if found is None:
        return Measured(None, count)
    chance = layer.nearest_means.relabelled(layer.permuted(1)[0]).classify(count, layer.seed, SHUFFLED_DRAWS)
    value = float(found.accuracies.mean())
    measured = Measured(value, count, shuffled=None if chance is None else float(chance.accuracies.mean()))
    if layer.in_a is None:
        return measured
    on_halves = halves.few_shot_on_halves(layer.nearest_means, count, layer.in_a, layer.seed)
    if on_halves is None:
        return measured
    return _sure(measured, on_halves, certainty.few_shot_se(found, layer.y, count), len(layer.y))


MEASURES: dict[Metric, Callable[[Layer], Measured]] = {
    "nmi": partial(clustering, "nmi"),
    "ami": partial(clustering, "ami"),
    "ari": partial(clustering, "ari"),
    "knn_purity": partial(neighborhood, "knn_purity"),
    "nn1": partial(neighborhood, "nn1"),
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


def _sure(measured: Measured, on_halves: HalfValues, se: float, N: int, low: float = 0.0) -> Measured:
    assert measured.value is not None
    return Measured(
        measured.value,
        measured.k,
        certainty.interval(measured.value, se, N, low),
        se,
        on_halves,
        measured.starts_sd,
        measured.shuffled,
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
