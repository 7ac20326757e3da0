"""Section `finetune`: training on the seen classes."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raysep.config.base import Precision, Section


class SearchSpace(Section):
    """A random search space of Ray Tune: its name and arguments."""

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

    grace_evaluations: int = Field(1, ge=1, description="evaluations before a trial may be stopped")
    reduction_factor: float = Field(2, gt=1, description="at each rung, 1 of this many trials continues")


class AugmentConfig(Section):
    """Augmentation of training images. Evaluated images are never augmented."""

    rotation_degrees: float = Field(0, ge=0, le=180, description="largest random rotation, either way")
    horizontal_flip: bool = Field(False, description="flip half of the images")
    min_crop_scale: float = Field(1, gt=0, le=1, description="smallest share of the area in a random crop")


class FinetuneConfig(Section):
    """Training on the seen classes: one trial per model x hyperparameters x seed."""

    steps: int = Field(500, ge=0, le=10_000_000, description="optimizer steps")
    evaluate_at: list[int] = Field(
        default_factory=list,
        validate_default=True,
        description="steps with an evaluation and a checkpoint; unset: [0, steps]",
    )
    batch_size: int = Field(72, ge=1, description="images of a training step")
    learning_rate: Hyperparameter = Field(
        2e-4,
        description="of AdamW: a number, a list (grid), or a space of Ray Tune: `{loguniform: [1e-5, 1e-2]}`",
    )
    weight_decay: Hyperparameter = Field(0.01, description="of AdamW: as `learning_rate`")
    num_samples: int = Field(
        4,
        ge=1,
        description="number of draws from the search spaces: uniform, loguniform, quniform, qloguniform, choice",
    )
    warmup_steps: int = Field(0, ge=0, description="linear warm-up")
    schedule: Literal["constant", "cosine"] = Field("constant", description="learning rate after the warm-up")
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1, description="a trial for each")
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of seen_train held out to choose the hyperparameters"
    )
    asha: AshaConfig | None = Field(None, description="early stopping of trials (ASHA, arXiv:1810.05934); null: none")
    augment: AugmentConfig = Field(AugmentConfig(), description="augmentation of training images only")
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
