"""summary.json: what a run found, as data. `raysep schema` prints its JSON schema.

Scores lie between 0 and 1 (`ami` and `ari` may be negative), depths between 0 and 1, intervals are of 95 %.
What isn't known is null: never a guess, never 0.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from raysep.config.names import Metric, Protocol
from raysep.storage.retries import Why

FILE = "summary.json"
Interval = tuple[float, float]


class Part(BaseModel):
    """A frozen part of the summary."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerScore(Part):
    """g_i of one layer."""

    layer: int
    name: str
    pooling: str
    depth: float
    dim: int
    mean: float | None = Field(description="mean over trials")
    sd: float | None = Field(description="population standard deviation over trials; null for one trial")
    se: float | None = Field(None, description="standard error over images, of the mean over trials")
    interval: Interval | None = Field(None, description="over images, of the mean over trials")
    starts_sd: float | None = Field(None, description="spread over single k-means starts, mean over trials")
    shuffled: float | None = Field(
        None, description="the score with shuffled labels, mean over all shuffles: what chance gives"
    )
    p_best: float | None = Field(None, description="how often it is the best when images are drawn again")
    tied: bool | None = Field(None, description="can't be told from the best layer at 95 %")


class Choice(Part):
    """The best layer of a curve, and how sure that is."""

    layer: int
    name: str
    pooling: str
    depth: float
    g: float = Field(description="the highest g_i; on the images that chose it, so biased upwards")
    g_sd: float | None = Field(description="over trials")
    interval: Interval | None = Field(None, description="of that g_i over images")
    starts_sd: float | None = Field(None, description="spread over single k-means starts, which is in no interval")
    shuffled: float | None = Field(None, description="what chance gives: the same layer with shuffled labels")
    corrected_g: float | None = Field(None, description="layer chosen on one half of the images, scored on the other")
    corrected_interval: Interval | None = None
    p_best: float | None = None
    tied_layers: list[int] | None = Field(None, description="the true best layer is among them with 95 % confidence")
    last_layer: int
    last_g: float | None
    loss: float | None = Field(
        None, description="what the last layer is worse by, from the corrected g; null if it is the best"
    )
    loss_interval: Interval | None = None


class Curve(Part):
    """All layers under one protocol, metric and split at one step."""

    protocol: Protocol
    metric: Metric
    split: str = Field(description="`unseen`, `seen`, or the name of a domain")
    step: int
    layers: list[LayerScore]
    choice: Choice | None = Field(None, description="null where no layer has a value")


class LayerHealth(Part):
    """Whether a layer is fit to be scored, the worst over trials."""

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
    warnings: list[str] = Field(description="what is wrong with it, in words; none for a healthy layer")


class Baseline(Part):
    """What a model's curves are held against: the same network untrained, or raw pixels."""

    kind: Literal["untrained", "pixels"]
    curves: list[Curve]


class ModelSummary(Part):
    """One model. Its headline is of the last step, the first protocol and `headline_metric`."""

    model: str
    timm_name: str
    trials: int
    seeds: list[int]
    rotations: int = Field(description="draws of unseen classes that the trials are of")
    hyperparameters: dict[str, float]
    step: int
    steps: list[int]
    seen_accuracy: float | None = Field(description="on seen_test, mean over trials; null without fine-tuning")
    seen_accuracy_sd: float | None
    accuracy_by_step: dict[int, float | None]
    classes: dict[str, int] = Field(description="true number of classes of each split")
    layers: int
    best: Choice | None
    headline: str = Field(description="the answer in a sentence")
    curves: list[Curve]
    health: list[LayerHealth]
    baselines: list[Baseline]

    def curve(self, protocol: str, metric: str, split: str, step: int) -> Curve | None:
        """One curve, or None where it wasn't scored."""
        return find(self.curves, protocol, metric, split, step)

    def warnings(self, layer: int, split: str, step: int) -> list[str]:
        """What is wrong with a layer."""
        return [
            warning
            for health in self.health
            if (health.layer, health.split, health.step) == (layer, split, step)
            for warning in health.warnings
        ]


class Findings(Part):
    """The paper's two findings, in this run."""

    accuracy_g_correlation: float | None = Field(description="Spearman's, of accuracy and g over models; 3 or more")
    accuracy_g_p_value: float | None = Field(description="two-sided; null below 3 models")
    models: int
    sentences: list[str]


class Ran(Part):
    """What one node did of a stage, over all calls of the run."""

    stage: str
    node: str = Field(description="address")
    pieces: int = Field(description="trials, blocks of images, or layers")
    worker_seconds: float = Field(description="of all its workers together")


class Retried(Part):
    """What was begun again in one stage, over all calls of the run that ended by themselves."""

    stage: str
    why: Why = Field(description="a lost process, storage that did not answer, or GPU memory that ran out")
    times: int

    @property
    def words(self) -> str:
        """As in `embed: 2 x lost process`."""
        reasons = {"process": "lost process", "storage": "storage without an answer", "memory": "no memory left"}
        return f"{self.stage}: {self.times} x {reasons[self.why]}"


class Summary(Part):
    """A whole run."""

    name: str
    headline_protocol: Protocol
    headline_metric: Metric
    unseen_classes: int
    unseen_images: int = Field(description="of one rotation")
    models: list[ModelSummary]
    findings: Findings
    unreadable_images: dict[str, str]
    left_out: list[str] = Field(
        description="what failed, was stopped, can't be read, is no image or isn't defined, in words"
    )
    data_notes: list[str] = Field(
        default_factory=list, description="how the images were understood, and what they warn of, in words"
    )
    machines: dict[str, int] = Field(default_factory=dict, description="nodes of the cluster by kind, in the last call")
    ran: list[Ran] = Field(default_factory=list, description="what ran where")
    retried: list[Retried] = Field(default_factory=list, description="what was begun again; none where nothing was")


def find(curves: list[Curve], protocol: str, metric: str, split: str, step: int) -> Curve | None:
    """The curve of these, or None."""
    wanted = (protocol, metric, split, step)
    return next((c for c in curves if (c.protocol, c.metric, c.split, c.step) == wanted), None)
