"""The names that configurations and result files use. Nothing heavy is imported here: a config error is quick."""

from dataclasses import dataclass
from typing import Literal, get_args

Metric = Literal["nmi", "ami", "ari", "knn_purity", "nn1", "r_precision", "linear_probe", "few_shot_1", "few_shot_5"]
Protocol = Literal["default", "paper"]
Backend = Literal["auto", "sklearn", "cuml"]

METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        value: None where the metric isn't defined for the input.
        n: images that it was computed on.
        k: clusters for clusterings, neighbours for `knn_purity` and `nn1`, labelled images per class for
            few-shot; None for metrics without such a number.
        backend: who computed it.
        seconds: this metric's own time; what metrics share is in the first that asked for it.
    """

    protocol: Protocol
    metric: Metric
    value: float | None
    n: int
    k: int | None
    backend: str
    seconds: float
