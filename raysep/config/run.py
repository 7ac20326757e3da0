"""The configuration of a whole run: its sections, defaults and consistency checks."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from raysep.config.base import NOT_IN_KEY, Dtype, Precision, Section, repeated
from raysep.config.data import DataConfig
from raysep.config.finetune import FinetuneConfig
from raysep.config.models import BASELINE, ModelConfig
from raysep.config.names import BackendName, Metric, Protocol
from raysep.config.registry import METRICS
from raysep.config.service import ComputeConfig, MonitoringConfig


def built_in_metrics() -> list[str]:
    """Names of the built-in metrics, the default: metrics of other packages must be configured by name."""
    return list(METRICS.built_in)


class EmbedConfig(Section):
    """Embedding: one forward pass over the images of a split gives the vectors of all layers."""

    splits: Annotated[list[Literal["unseen", "seen"]], NOT_IN_KEY] = Field(
        ["unseen", "seen"],
        min_length=1,
        description="splits to embed besides the domains of `data`; `seen` means seen_test",
    )
    batch_size: Annotated[int, NOT_IN_KEY] = Field(64, ge=1, description="images of a forward pass")
    dtype: Dtype = Field("float32", description="storage of the embeddings")
    shard_rows: Annotated[int, NOT_IN_KEY] = Field(
        1024, ge=1, description="rows per Parquet file, and equally images per unit of work"
    )
    precision: Precision = Field("float32", description="of the forward pass")
    compile: bool = Field(
        False,
        description="torch.compile the blocks of a model, except blocks with hooks (the stem's block of a ViT, named "
        "modules), which the log names",
    )

    @field_validator("splits")
    @classmethod
    def _require_unseen(cls, value: list[str]) -> list[str]:
        if "unseen" not in value or len(set(value)) != len(value):
            raise ValueError("expected `unseen`, and `seen` at most once beside it")
        return value


class ScoreConfig(Section):
    """Scores of the separability of classes in each layer, and their confidence intervals."""

    protocols: Annotated[list[Protocol], NOT_IN_KEY] = Field(
        default_factory=lambda: list(get_args(Protocol))[:1], min_length=1, description="the first is the headline's"
    )
    metrics: Annotated[list[Metric], NOT_IN_KEY] = Field(
        default_factory=built_in_metrics, min_length=1, description="names of metrics; unset: all of this package"
    )
    backend: BackendName = Field(
        "auto", description="auto: cuML where it can be used, else torch; the scores record the backend"
    )
    seed: int = Field(42, ge=0, description="of k-means, halves and subsamples")
    resamples: int = Field(
        200,
        ge=0,
        le=10_000,
        multiple_of=2,
        description="number of half-samples of the images, for intervals; 0: no intervals",
    )
    sample: int | None = Field(
        10_000,
        ge=1000,
        description="maximum number of images used for queries of the neighbour search, the fit of k-means and the "
        "choice of "
        "a probe's penalty; more are subsampled; null: no limit",
    )
    max_classes: int | None = Field(
        20, ge=2, description="the number of classes is estimated from 2 up to this; null: not estimated"
    )

    @field_validator("protocols", "metrics")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @field_validator("resamples")
    @classmethod
    def _enough(cls, value: int) -> int:
        if 0 < value < 20:
            raise ValueError("fewer than 20 resamples are too few for intervals; 0: no intervals")
        return value


class BaselinesConfig(Section):
    """Baselines of the layer scores. The chance level, from shuffled labels, is always computed."""

    untrained: bool = Field(True, description="the same networks with random weights")
    pixels: int | None = Field(
        32, ge=1, le=256, description="raw pixels, downsampled by averaging to at most this side length; null: none"
    )


class ReportConfig(Section):
    """The main metric of the report."""

    metric: Metric = Field("nmi", description="the metric whose maximum over layers is g")


class RunConfig(Section):
    """A whole run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", description="of the run")
    run_dir: Annotated[str, NOT_IN_KEY] = Field("", description="directory or URI of the run; unset: runs/<name>")
    data: DataConfig
    models: list[ModelConfig] = Field(min_length=1)
    finetune: FinetuneConfig | None = Field(None, description="null: evaluate the models as they are")
    baselines: BaselinesConfig = BaselinesConfig()
    embed: EmbedConfig = EmbedConfig()
    score: ScoreConfig = ScoreConfig()
    report: ReportConfig = ReportConfig()
    compute: Annotated[ComputeConfig, NOT_IN_KEY] = ComputeConfig()
    monitoring: Annotated[MonitoringConfig, NOT_IN_KEY] = MonitoringConfig()

    @model_validator(mode="before")
    @classmethod
    def _run_dir_from_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("run_dir"):
            return {**values, "run_dir": f"runs/{values.get('name', 'run')}"}
        return values

    @field_validator("models")
    @classmethod
    def _different_ids(cls, value: list[ModelConfig]) -> list[ModelConfig]:
        ids = [model.id for model in value]
        twice = repeated(ids)
        if twice:
            raise ValueError(f"two models are called {', '.join(twice)}: give each an `id` of its own")
        reserved = [i for i in ids if BASELINE in i]
        if reserved:
            raise ValueError(f"{BASELINE!r} is reserved for baselines: give {', '.join(reserved)} another `id`")
        return value

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.report.metric not in self.score.metrics:
            raise ValueError(f"report.metric is {self.report.metric}, which is not in score.metrics")
        if self.finetune is None and any("logits" in model.layers for model in self.models):
            raise ValueError("the layer `logits` needs `finetune`: without it no classifier is trained")
        split = self.data.split
        if self.finetune is not None and split is not None and split.unseen == "all":
            raise ValueError("finetune needs seen classes, but data.split.unseen is `all`")
        return self
