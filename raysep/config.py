"""The configuration of a run: what may be said, what is assumed, and what contradicts itself.

Every class is frozen, refuses unknown keys, and writes each of its defaults into the resolved
configuration of the run. Nothing here touches images, models or Ray: those checks are in `checks.py`.
"""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from raysep.separability.names import METRICS, Backend, Metric, Protocol

Pooling = Literal["auto", "cls", "mean", "token0"]
Dtype = Literal["float32", "float16"]
Split = Literal["unseen", "seen"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

# Class names are strings even where YAML reads a number: `unseen: [7, 8, 9]`.
ClassName = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, int) else v)]


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DigitsSource(Section):
    """The 1,797 handwritten digits that ship inside scikit-learn (8x8 pixels, classes 0 to 9)."""

    kind: Literal["digits"]


class ImageFolderSource(Section):
    """A tree `path/<class>/*`, or `path/{train,test,unseen}/<class>/*`, which is a split already."""

    kind: Literal["image_folder"]
    path: str = Field(description="directory; a relative one is looked up from the working directory")


class SplitConfig(Section):
    """Which classes are unseen, and which images of the seen ones are held out for testing."""

    unseen: list[ClassName] | Literal["all"] | None = Field(
        None, description="class names; or `all`: nothing is trained on, each class is unseen"
    )
    unseen_fraction: float | None = Field(None, gt=0, lt=1, description="share of classes drawn as unseen")
    seen: list[ClassName] | None = Field(None, description="class names; unset: all that are not unseen")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of each seen class held out")
    seed: int = Field(42, ge=0)

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if (self.unseen is None) == (self.unseen_fraction is None):
            raise ValueError("give either `unseen` (class names, or `all`) or `unseen_fraction`")
        if self.unseen == "all" and self.seen is not None:
            raise ValueError("`unseen: all` leaves no class for `seen`")
        if isinstance(self.unseen, list):
            for key, names in (("unseen", self.unseen), ("seen", self.seen or [])):
                twice = sorted({name for name in names if names.count(name) > 1})
                if twice:
                    raise ValueError(f"`{key}` names a class twice: {', '.join(twice)}")
            both = sorted(set(self.unseen) & set(self.seen or []))
            if both:
                raise ValueError(f"both seen and unseen: {', '.join(both)}")
            if len(self.unseen) < 2:
                raise ValueError(f"`unseen` needs 2 classes or more to tell apart, got {len(self.unseen)}")
        return self


class DataConfig(Section):
    """Where the images are and how they are split."""

    source: Annotated[DigitsSource | ImageFolderSource, Field(discriminator="kind")]
    split: SplitConfig | None = Field(None, description="leave out where the source is a split already")
    max_failed_share: float = Field(
        0.01, ge=0, le=1, description="share of images that may be unreadable before the run fails"
    )


class ModelConfig(Section):
    """One timm model and how its layers become vectors."""

    name: str = Field(min_length=1, description="as timm.create_model takes it")
    id: str = Field("", description="the name in results and paths; unset: made from `name`")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")
    pretrained: bool | str = Field(
        True, description="true: timm's weights; false: from scratch; or a path to a safetensors state dict"
    )
    image_size: int | None = Field(None, ge=8, le=4096, description="pixels; unset: the model's own")
    crop_pct: float | None = Field(None, gt=0, le=1, description="unset: the model's own; 1 crops nothing")
    layers: list[str] | Literal["all"] = Field(
        "all", description="`all` stages or blocks, or names and patterns: `blocks.*`, `blocks.3.mlp.act`"
    )
    pooling: Pooling = "auto"

    @model_validator(mode="before")
    @classmethod
    def _id_from_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("id") and isinstance(values.get("name"), str):
            return {**values, "id": re.sub(r"[^A-Za-z0-9._-]+", "-", values["name"])}
        return values

    @field_validator("id")
    @classmethod
    def _id_is_a_plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
            raise ValueError("expected letters, digits, '.', '_' and '-', since it names a directory")
        return value

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, value: list[str] | Literal["all"]) -> list[str] | Literal["all"]:
        if value == []:
            raise ValueError("expected `all` or at least one layer name")
        return value


class SearchSpace(Section):
    """A random search space: one of Ray Tune's, by its name and arguments."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    quniform: tuple[float, float, float] | None = None
    qloguniform: tuple[float, float, float] | None = None
    choice: list[float] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = self.model_fields_set & {k for k, v in self if v is not None}
        if len(named) != 1:
            raise ValueError(f"name one search space of {', '.join(type(self).model_fields)}")
        return self

    def named(self) -> tuple[str, Any]:
        """The space's name in `ray.tune` and its arguments."""
        return next((name, value) for name, value in self if value is not None)


def _form(value: Any) -> str:
    return "space" if isinstance(value, dict | SearchSpace) else "grid" if isinstance(value, list) else "number"


NotNegative = Annotated[float, Field(ge=0)]
# One value, a grid of values, or a random search space.
Hyperparameter = Annotated[
    Annotated[NotNegative, Tag("number")]
    | Annotated[list[NotNegative], Field(min_length=1), Tag("grid")]
    | Annotated[SearchSpace, Tag("space")],
    Discriminator(_form),
]


class AshaConfig(Section):
    """Stop trials early by asynchronous successive halving (Li et al. 2020, arXiv:1810.05934)."""

    grace_evaluations: int = Field(1, ge=1, description="evaluations that every trial is given")
    reduction_factor: float = Field(2, gt=1)


class AugmentConfig(Section):
    """Random changes of training images. Images that are evaluated are never changed."""

    rotation_degrees: float = Field(0, ge=0, le=180)
    horizontal_flip: bool = False
    min_crop_scale: float = Field(1, gt=0, le=1, description="smallest share of the area that a crop keeps")


class FinetuneConfig(Section):
    """Training on the seen classes: one trial per model x hyperparameters x seed."""

    steps: int = Field(500, ge=0, le=10_000_000)
    evaluate_at: list[int] = Field(
        default_factory=list,
        validate_default=True,
        description="steps with an evaluation and a checkpoint; unset: [0, steps]",
    )
    batch_size: int = Field(72, ge=1)
    learning_rate: Hyperparameter = 2e-4
    weight_decay: Hyperparameter = 0.01
    num_samples: int = Field(4, ge=1, description="draws from random search spaces, if there are any")
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of seen_train that chooses the hyperparameters"
    )
    asha: AshaConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    precision: Precision = Field("auto", description="auto: bfloat16 on a GPU that has it, else float32")

    @field_validator("evaluate_at")
    @classmethod
    def _evaluations(cls, value: list[int], info: Any) -> list[int]:
        steps = info.data.get("steps", 0)
        value = value or [0, steps]
        outside = sorted(step for step in value if step < 0 or step > steps)
        if outside:
            raise ValueError(f"expected steps between 0 and `steps` = {steps}, got {outside}")
        return sorted({*value, steps})

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value) or min(value) < 0:
            raise ValueError("expected different seeds of 0 or more")
        return value


class EmbedConfig(Section):
    """One forward pass over the images of a split gives the vectors of all layers."""

    splits: list[Split] = Field(default_factory=lambda: list(get_args(Split)), min_length=1)
    batch_size: int = Field(64, ge=1)
    dtype: Dtype = Field("float32", description="storage of the embeddings")
    shard_rows: int = Field(1024, ge=1, description="rows of a Parquet file, and images of one unit of work")
    precision: Precision = Field("float32", description="of the forward pass")

    @field_validator("splits")
    @classmethod
    def _unseen_is_the_question(cls, value: list[Split]) -> list[Split]:
        if "unseen" not in value or len(set(value)) != len(value):
            raise ValueError("expected `unseen`, and `seen` at most once beside it")
        return value


def _default_protocols() -> list[Protocol]:
    return ["default"]


class ScoreConfig(Section):
    """How separable the classes are in each layer."""

    protocols: list[Protocol] = Field(default_factory=_default_protocols, min_length=1)
    metrics: list[Metric] = Field(default_factory=lambda: list(METRICS), min_length=1)
    backend: Backend = "auto"
    seed: int = Field(42, ge=0)

    @field_validator("protocols", "metrics")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))


class ReportConfig(Section):
    """What the answer is written from."""

    metric: Metric = Field("nmi", description="the metric whose maximum over layers is g")


class ComputeConfig(Section):
    """What each process takes. It changes how fast a run is, not what it finds; unset: planned."""

    cpus_per_trial: float | None = Field(None, gt=0)
    gpus_per_trial: float | None = Field(None, ge=0)
    embed_actors: int | None = Field(None, ge=1)
    cpus_per_embed_actor: int | None = Field(None, ge=1)
    gpus_per_embed_actor: float | None = Field(None, ge=0)
    score_actors: int | None = Field(None, ge=1)
    gpus_per_score_actor: float | None = Field(None, ge=0)


class RunConfig(Section):
    """A whole run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    run_dir: str = Field("", description="directory or URI of the run; unset: runs/<name>")
    data: DataConfig
    models: list[ModelConfig] = Field(min_length=1)
    finetune: FinetuneConfig | None = Field(None, description="null: evaluate the models as they are")
    embed: EmbedConfig = EmbedConfig()
    score: ScoreConfig = ScoreConfig()
    report: ReportConfig = ReportConfig()
    compute: ComputeConfig = ComputeConfig()

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
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise ValueError(f"two models are called {', '.join(twice)}: give each an `id` of its own")
        return value

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.report.metric not in self.score.metrics:
            raise ValueError(f"report.metric is {self.report.metric}, which score.metrics doesn't list")
        split = self.data.split
        if self.finetune is not None and split is not None and split.unseen == "all":
            raise ValueError("finetune needs seen classes, and data.split.unseen is `all`")
        return self
