"""Types and constants of the names in configurations and result files."""

from typing import Annotated, Literal

from raysep.config.registry import BACKENDS, CORRUPTIONS, METRICS, NameOf

Metric = Annotated[str, NameOf(METRICS)]
BackendName = Annotated[str, NameOf(BACKENDS, "auto")]
Corruption = Annotated[str, NameOf(CORRUPTIONS)]
Protocol = Literal["default", "paper"]

# Minimum images of a class for split-half scores: two in each half, for neighbours, clusters and class means.
LEAST_HALVED = 4
# Protocol of the rows of diagnostics, which describe a layer but not its separability.
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
