"""The names that configurations and result files use. Nothing heavy is imported here: a config error is quick."""

from typing import Literal, get_args

Metric = Literal[
    "nmi",
    "ami",
    "ari",
    "knn_purity",
    "nn1",
    "r_precision",
    "linear_probe",
    "few_shot_1",
    "few_shot_2",
    "few_shot_5",
    "few_shot_10",
    "few_shot_20",
]
Protocol = Literal["default", "paper"]
Backend = Literal["auto", "torch", "sklearn", "cuml"]

METRICS: tuple[Metric, ...] = get_args(Metric)
# The least that a score can be, where that is not 0: scores that are adjusted for chance.
LOWEST = {"ami": -1.0, "ari": -1.0}
# Between labels and clusters, and no mean over images.
CLUSTERINGS = frozenset({"nmi", "ami", "ari"})

# Images of a class that leave two for each half: enough to be a neighbour, a cluster and a class mean there.
LEAST_HALVED = 4
# Images that a class must have for a score to be defined, where that is more than one.
LEAST_IMAGES = {
    "knn_purity": 2,
    "linear_probe": 4,
    **{f"few_shot_{shots}": shots + 1 for shots in (1, 2, 5, 10, 20)},
}
# Of a layer itself rather than of how it separates the classes; rows of protocol `diagnostic`.
DIAGNOSTIC = "diagnostic"
DIAGNOSTICS = (
    "nonfinite_rows",
    "constant_features",
    "duplicate_rows",
    "effective_rank",
    "empty_clusters",
    "start_agreement",
    "estimated_classes",
)
# Protocol and metric of a score, or `diagnostic` and one of `DIAGNOSTICS`.
Wanted = tuple[str, str]
