"""summary.json: the results of a run. `raysep schema` prints its JSON schema.

Scores lie between 0 and 1 (`ami` and `ari` may be negative), depths between 0 and 1, intervals are of 95 %.
Unknown values are null, never 0.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from raysep.config.names import Metric, Protocol
from raysep.models.layers import OWN
from raysep.storage.retries import Why

FILE = "summary.json"
Interval = tuple[float, float]


class Part(BaseModel):
    """Base of all parts of the summary: frozen; rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerScore(Part):
    """The score g_i of one layer."""

    layer: int
    name: str
    pooling: str = Field(description="cls, mean, token0 or max; own for head and logits; none for pixels")
    same_as: str = Field("", description="the last block or stage, if this layer is the head and only pools it")
    depth: float
    dim: int
    mean: float | None = Field(description="mean over trials")
    sd: float | None = Field(description="population standard deviation over trials; null for one trial")
    se: float | None = Field(None, description="standard error of the mean over trials, from resampled images")
    interval: Interval | None = Field(None, description="over images, of the mean over trials")
    starts_sd: float | None = Field(None, description="standard deviation over single k-means starts, mean over trials")
    shuffled: float | None = Field(
        None, description="chance level: the score with shuffled labels, mean over all shuffles"
    )
    p_best: float | None = Field(None, description="probability of being the best layer under resampling of the images")
    tied: bool | None = Field(None, description="not significantly worse than the best layer at 95 %")


class Choice(Part):
    """The best layer of a curve, and its uncertainty."""

    layer: int
    name: str
    pooling: str
    same_as: str = ""
    depth: float
    g: float = Field(description="the highest g_i; biased upwards, as the same images select and score the layer")
    g_sd: float | None = Field(description="over trials")
    interval: Interval | None = Field(None, description="of g over images, 95 %")
    starts_sd: float | None = Field(
        None, description="standard deviation over single k-means starts, not included in any interval"
    )
    shuffled: float | None = Field(None, description="chance level: the same layer with shuffled labels")
    corrected_g: float | None = Field(None, description="layer selected on one half of the images, scored on the other")
    corrected_interval: Interval | None = None
    p_best: float | None = None
    tied_layers: list[int] | None = Field(None, description="confidence set of the best layer, 95 %")
    last_layer: int = Field(description="the head, where it is scored")
    last_g: float | None
    loss: float | None = Field(
        None, description="corrected g minus g_i of the last layer; null if the last layer is the best"
    )
    loss_interval: Interval | None = None


class Curve(Part):
    """The scores of all layers for one protocol, metric, split and step."""

    protocol: Protocol
    metric: Metric
    split: str = Field(description="`unseen`, `seen`, or the name of a domain")
    step: int
    layers: list[LayerScore]
    choice: Choice | None = Field(None, description="null where no layer has a value")

    @property
    def poolings(self) -> list[str]:
        """The configured poolings of the layers; that of head and logits only without others."""
        poolings = list(dict.fromkeys(layer.pooling for layer in self.layers))
        return [pooling for pooling in poolings if pooling != OWN] or poolings

    def pooled(self, pooling: str) -> list[LayerScore]:
        """The layers of one pooling, and those behind the last block, whose pooling is the network's own."""
        return [layer for layer in self.layers if layer.pooling in {pooling, OWN}]


class LayerHealth(Part):
    """Diagnostics of one layer: the worst value over trials."""

    split: str
    step: int
    layer: int
    name: str
    pooling: str
    nonfinite_rows: int | None
    constant_features: int | None
    duplicate_rows: int | None
    effective_rank: float | None
    empty_clusters: int | None
    start_agreement: float | None = Field(description="mean adjusted Rand index between k-means starts")
    estimated_classes: float | None = Field(description="by silhouette, mean over trials")
    warnings: list[str] = Field(description="messages; empty for a healthy layer")


class Baseline(Part):
    """A baseline for a model's curves: the same network untrained, or raw pixels."""

    kind: Literal["untrained", "pixels"]
    curves: list[Curve]


class ModelSummary(Part):
    """The results of one model. `best` and `headline` are for the last step, first protocol and `headline_metric`."""

    model: str
    timm_name: str
    trials: int
    seeds: list[int]
    rotations: int = Field(description="number of random draws of unseen classes among the trials")
    hyperparameters: dict[str, float]
    step: int
    steps: list[int]
    seen_accuracy: float | None = Field(description="on seen_test, mean over trials; null without fine-tuning")
    seen_accuracy_sd: float | None
    accuracy_by_step: dict[int, float | None]
    classes: dict[str, int] = Field(description="true number of classes of each split")
    layers: int
    best: Choice | None
    headline: str = Field(description="the result in one sentence")
    curves: list[Curve]
    health: list[LayerHealth]
    baselines: list[Baseline]

    def curve(self, protocol: str, metric: str, split: str, step: int) -> Curve | None:
        """The curve of a protocol, metric, split and step; None if it wasn't scored."""
        return find_curve(self.curves, protocol, metric, split, step)

    def warnings(self, layer: int, split: str, step: int) -> list[str]:
        """Warnings about a layer for a split and step."""
        return [
            warning
            for health in self.health
            if (health.layer, health.split, health.step) == (layer, split, step)
            for warning in health.warnings
        ]


class Findings(Part):
    """The two findings of arXiv:2405.01524, accuracy is not g and deeper is not better, tested on this run."""

    accuracy_g_correlation: float | None = Field(
        description="rank correlation over models (Spearman); null for fewer than 3"
    )
    accuracy_g_p_value: float | None = Field(description="two-sided; null below 3 models")
    models: int
    sentences: list[str]


class Ran(Part):
    """The work of one node in one stage, over all raysep calls on the run."""

    stage: str
    node: str = Field(description="address of the node")
    pieces: int = Field(description="trials, blocks of images, or layers")
    worker_seconds: float = Field(description="summed over its workers")


class Retried(Part):
    """Retries of one stage for one cause, over all raysep calls on the run that were not killed."""

    stage: str
    why: Why = Field(description="a lost worker, a transient storage error, or a GPU that ran out of memory")
    times: int

    @property
    def words(self) -> str:
        """A phrase, as in `embed: 2 x lost worker`."""
        reasons = {"process": "lost worker", "storage": "transient storage error", "memory": "GPU out of memory"}
        return f"{self.stage}: {self.times} x {reasons[self.why]}"


class Summary(Part):
    """The results of a run."""

    name: str
    headline_protocol: Protocol
    headline_metric: Metric
    unseen_classes: int
    unseen_images: int = Field(description="of one rotation")
    models: list[ModelSummary]
    findings: Findings
    unreadable_images: dict[str, str]
    left_out: list[str] = Field(description="messages about failed or stopped trials, skipped files, undefined scores")
    data_notes: list[str] = Field(default_factory=list, description="remarks on the images and how they were read")
    machines: dict[str, int] = Field(default_factory=dict, description="number of nodes by kind, in the last call")
    ran: list[Ran] = Field(default_factory=list, description="work per stage and node")
    retried: list[Retried] = Field(default_factory=list, description="retries per stage and cause")


def find_curve(curves: list[Curve], protocol: str, metric: str, split: str, step: int) -> Curve | None:
    """The curve of a protocol, metric, split and step; None if it isn't in the list."""
    wanted = (protocol, metric, split, step)
    return next((c for c in curves if (c.protocol, c.metric, c.split, c.step) == wanted), None)
