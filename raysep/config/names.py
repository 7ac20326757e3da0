"""Names in configurations and result files."""

from typing import Annotated, Literal

from raysep.config.registry import BACKENDS, CORRUPTIONS, METRICS, NameOf

Metric = Annotated[str, NameOf(METRICS)]
BackendName = Annotated[str, NameOf(BACKENDS, "auto")]
Corruption = Annotated[str, NameOf(CORRUPTIONS)]
Protocol = Literal["default", "paper"]

# Images of a class that leave two for each half: enough to be a neighbour, a cluster and a class mean there.
LEAST_HALVED = 4
# Protocol of the rows about a layer itself, rather than about its separability.
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
