"""The built-in metrics, registered by name: each scores the embeddings of one layer."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from raysep.scoring import chance_level, formulas, intervals, knn, split_half
from raysep.scoring.probe import OUTER_FOLDS, STRENGTHS, linear_probe
from raysep.scoring.registry import Measured, metric, with_interval
from raysep.scoring.split_half import HalfValues

if TYPE_CHECKING:
    from raysep.scoring.cache import LayerScores

# Divisor of the neighbour count in the paper's reference code.
PAPER_K = 500


def clustering(name: str, layer: "LayerScores") -> Measured:
    """`nmi`, `ami` or `ari` of classes and k-means clusters; see `formulas`."""
    score = {"nmi": formulas.nmi, "ami": formulas.ami, "ari": formulas.ari}[name]
    value = score(layer.y, layer.clusters)
    if value is None:
        return Measured(None, layer.n_classes)
    values = [score(layer.y, labels) for labels in layer.starts.labels]
    chance = chance_level.of_clusters(name, layer.y, layer.clusters)
    starts_sd = float(np.std([v for v in values if v is not None]))
    measured = Measured(value, layer.n_classes, starts_sd=starts_sd, shuffled=chance)
    if layer.cluster_halves is None:
        return measured
    on_halves = layer.cluster_halves[name]
    se = intervals.nonsmooth_se(on_halves, value, chance, intervals.JUMP_SHARE[name])
    return with_interval(name, measured, on_halves, se, len(layer.y))


for _name, _low, _summary in (
    (
        "nmi",
        0.0,
        "Normalized mutual information of classes and k-means clusters, with as many clusters as classes: the "
        "paper's g_i.",
    ),
    (
        "ami",
        -1.0,
        "Mutual information of classes and clusters, adjusted for chance; comparable between numbers of classes.",
    ),
    ("ari", -1.0, "Rand index of classes and clusters, adjusted for chance."),
):
    metric(_name, _summary, low=_low, shared=False, clustering=True)(partial(clustering, _name))


@metric(
    "knn_purity",
    "Share of the k nearest neighbours that have the class of an image; k is the size of the smallest class minus 1.",
    shared=False,
    least_images=2,
)
def knn_purity(layer: "LayerScores") -> Measured:
    """See `formulas.knn_purity`. Protocol `paper` counts up to 500 neighbours, and always divides by 500."""
    k, divisor = layer.purity_k, PAPER_K if layer.paper else None
    highest = k / divisor if divisor else 1.0
    value = formulas.knn_purity(layer.y, layer.hits, k, divisor)
    if value is None:
        return Measured(None, k)
    chance = chance_level.of_neighbors(layer.y, highest)
    return _purity("knn_purity", layer, value, k, chance, np.full(len(layer.y), k), highest)


@metric("nn1", "Share of images whose nearest neighbour has their class.")
def nn1(layer: "LayerScores") -> Measured:
    """See `formulas.nn1`."""
    value = formulas.nn1(layer.y, layer.hits)
    if value is None:
        return Measured(None, 1)
    measured = Measured(value, 1, shuffled=chance_level.of_neighbors(layer.y))
    if layer.in_a is None:
        return measured
    on_halves = split_half.nearest_on_halves(layer.hits, layer.neighbors, layer.in_a, layer.queries)
    return with_interval("nn1", measured, on_halves, intervals.nonsmooth_se(on_halves), len(layer.neighbors))


@metric("r_precision", "Purity of the R nearest neighbours, where R is the size of an image's class minus 1.")
def r_precision(layer: "LayerScores") -> Measured:
    """See `formulas.r_precision`."""
    value = formulas.r_precision(layer.y, layer.hits, layer.queries)
    if value is None:
        return Measured(None)
    _, index, sizes = np.unique(layer.y, return_inverse=True, return_counts=True)
    return _purity("r_precision", layer, value, None, chance_level.of_r_precision(layer.y), sizes[index] - 1)


@metric(
    "knn_accuracy",
    "Leave-one-out accuracy of 20 nearest neighbours by cosine similarity, weighted as in the evaluations of DINO.",
    least_images=2,
    large=True,
)
def knn_accuracy(layer: "LayerScores") -> Measured:
    """See `knn`. The chance level is the accuracy on labels shuffled once."""
    neighbors, weights = layer.cosine_votes
    queries, k = layer.query_positions, min(knn.K_NEIGHBORS, neighbors.shape[1])
    y, shuffled = (np.unique(labels, return_inverse=True)[1] for labels in (layer.y, layer.shuffled()))
    value, chance = (
        float(knn.right_votes(labels, neighbors[:, :k], weights[:, :k], queries).mean()) for labels in (y, shuffled)
    )
    measured = Measured(value, k, shuffled=chance)
    if layer.in_a is None:
        return measured
    on_halves = knn.accuracy_on_halves(y, neighbors, weights, queries, layer.in_a)
    se = intervals.nonsmooth_se(on_halves, value, chance)
    return with_interval("knn_accuracy", measured, on_halves, se, len(queries))


def _purity(
    name: str,
    layer: "LayerScores",
    value: float,
    k: int | None,
    chance: float,
    counted: split_half.Positions,
    highest: float = 1.0,
) -> Measured:
    """A neighbour purity with its interval.

    Args:
        counted: (N,) number of neighbours of each image that count.
        highest: the highest possible value.
    """
    measured = Measured(value, k, shuffled=chance)
    queries, in_a = layer.queries, layer.in_a
    if in_a is None:
        return measured
    counted = counted if queries is None else counted[queries]

    def with_error() -> tuple[HalfValues, float]:
        on_halves = split_half.purity_on_halves(layer.hits, layer.neighbors, counted, in_a, queries)
        return on_halves, intervals.neighbor_se(on_halves, layer.hits, counted, layer.y, layer.neighbors, queries)

    # With equal class sizes, `knn_purity` and `r_precision` count the same neighbours.
    on_halves, se = layer.cached("purity_halves", counted.tobytes(), compute=with_error)
    scaled = with_interval(name, replace(measured, value=value / highest), on_halves, se, len(layer.neighbors))
    low, high = scaled.interval or (0.0, 1.0)
    return replace(
        scaled, value=value, interval=(highest * low, highest * high), se=highest * se, halves=highest * on_halves
    )


@metric(
    "linear_probe",
    "Held-out accuracy of L2-regularised multinomial logistic regression, five folds.",
    shared_fits=True,
    least_images=4,
)
def probe(layer: "LayerScores") -> Measured:
    """See `probe.linear_probe`. The chance level is the accuracy of the strongest penalty on labels shuffled once.

    The standard error is that of a proportion of N images. At chance level, where predictions depend on the training
    images alone, the variance is multiplied by 1 plus the ratio of test to training images (Nadeau, Bengio 2003,
    doi:10.1023/A:1024068626366).
    """
    correct = layer.probed
    if correct is None:
        return Measured(None)
    value, N = float(correct.mean()), len(correct)
    on_shuffled = linear_probe(layer.on_device, layer.shuffled(), layer.backend, layer.seed, STRENGTHS[:1])
    measured = Measured(value, shuffled=None if on_shuffled is None else float(on_shuffled.mean()))
    if layer.in_a is None:
        return measured
    # Both halves share the fits on all images, so that halves of a small sample are not quite independent.
    on_halves = split_half.mean_on_halves(correct.astype(np.float64), layer.in_a)
    variance = value * (1 - value) / N
    # An uninformative layer scores the largest class's share; two standard errors count as near it.
    near = intervals.at_chance(value, float(layer.class_sizes.max() / N), 2 * float(np.sqrt(variance)))
    se = float(np.sqrt(variance * (1 + near / (OUTER_FOLDS - 1))))
    return with_interval("linear_probe", measured, on_halves, se, N)


def few_shot(shots: int, layer: "LayerScores") -> Measured:
    """Mean accuracy of the nearest class mean over draws of `shots` labelled images per class."""
    name, result = f"few_shot_{shots}", layer.few_shot(shots)
    if result is None:
        return Measured(None, shots)
    chance = chance_level.of_few_shot(layer.y)
    measured = Measured(float(result.accuracies.mean()), shots, shuffled=chance)
    if not layer.config.resamples:
        return measured
    # The standard error comes from the draws, and exists even where halves have too few images to label.
    se = intervals.few_shot_se(result, layer.y, chance)
    return with_interval(name, measured, layer.few_shot_halves(shots), se, len(result.queries))


for _shots in (1, 2, 5, 10, 20):
    metric(
        f"few_shot_{_shots}",
        f"Accuracy of the nearest class mean of {_shots} labelled image{'s' if _shots > 1 else ''} per class.",
        least_images=_shots + 1,
        large=True,
    )(partial(few_shot, _shots))
