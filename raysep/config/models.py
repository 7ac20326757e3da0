"""Section `models`: the networks, their weights, and the layers and pooling to evaluate."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from raysep.config.arguments import argument_problems, size_of
from raysep.config.base import NOT_IN_KEY, Section

Pooling = Literal["auto", "cls", "mean", "token0", "max"]
# Part of the ids of baselines only: untrained networks, and raw pixels.
BASELINE = "--"


def source_of(name: str) -> tuple[str, str]:
    """Split a model's name at the colon into its source, as timm spells it, and the rest.

    >>> source_of("hf_hub:timm/resnet18.a1_in1k"), source_of("resnet18")
    (('hf-hub', 'timm/resnet18.a1_in1k'), ('', 'resnet18'))
    """
    source, colon, identifier = name.partition(":")
    return (source.strip().lower().replace("_", "-"), identifier.strip()) if colon else ("", name)


class ModelConfig(Section):
    """One timm model, and the layers and pooling to evaluate."""

    name: str = Field(
        min_length=1,
        description="as for timm.create_model: `resnet18`, `resnet18.a1_in1k`, `hf-hub:owner/name`, `local-dir:path`",
    )
    id: Annotated[str, NOT_IN_KEY] = Field("", description="name in results and paths; unset: derived from `name`")
    kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="further arguments of timm.create_model: `{drop_path_rate: 0.1}`; `{in_chans: 1}` for grey images, "
        "normalized by the averages of the colour means and deviations; arguments that raysep sets (num_classes, "
        "...) are refused",
    )
    pretrained: Annotated[bool | str, NOT_IN_KEY] = Field(
        True,
        description="true: timm's weights; false: from scratch; or a path or URI of a checkpoint: safetensors, or a "
        "file of torch.save",
    )
    image_size: int | None = Field(None, ge=8, le=4096, description="pixels; unset: the model's own")
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="share of the resized image that the centre crop keeps; unset: the model's own"
    )
    layers: list[str] = Field(
        ["stages"],
        description="`stages`: each stage of a hierarchical network or block of a plain transformer, and the head (the "
        "network's own pooled embedding); `blocks`: each residual block, and the head; or a list of these, of names "
        "and patterns of layers and modules (`[stages, blocks.*.mlp.act]`), and of `logits`, the classifier's output; "
        "numbered in the order of execution, the head last",
    )
    final_norm: bool = Field(
        False, description="apply the network's own final norm to each block before pooling (plain transformers)"
    )
    pooling: list[Pooling] = Field(
        ["auto"],
        min_length=1,
        description="one or several; each pooling of a layer counts as a separate layer; auto: the class token if "
        "the model has one, else the mean",
    )

    @model_validator(mode="before")
    @classmethod
    def _id_from_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("id") and isinstance(values.get("name"), str):
            plain = re.sub(r"[^A-Za-z0-9._-]+", "-", values["name"]).strip("-.")
            return {**values, "id": plain or "model"}
        return values

    @field_validator("name")
    @classmethod
    def _name_without_blanks(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("expected the name of a timm model")
        return value.strip()

    @field_validator("kwargs")
    @classmethod
    def _arguments_that_can_be_passed(cls, value: dict[str, Any]) -> dict[str, Any]:
        if problems := argument_problems(value):
            raise ValueError("; ".join(problems))
        return value

    @field_validator("id")
    @classmethod
    def _id_is_a_plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
            raise ValueError("expected letters, digits, '.', '_' and '-', since it names a directory")
        return value

    @field_validator("layers", "pooling", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("layers")
    @classmethod
    def _current_names(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("expected `stages`, `blocks` or at least one layer name")
        if "all" in value:
            raise ValueError("`all` is called `stages` since format 3")
        return value

    @field_validator("pooling")
    @classmethod
    def _different_poolings(cls, value: list[Pooling]) -> list[Pooling]:
        return list(dict.fromkeys(value))

    @property
    def local_directory(self) -> str | None:
        """The path in a name of the form `local-dir:path`; else None."""
        source, identifier = source_of(self.name)
        return identifier if source == "local-dir" else None

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Configured height and width in pixels; None: the model's own."""
        return size_of(self.image_size) or size_of(self.kwargs.get("img_size"))

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        img_size = size_of(self.kwargs.get("img_size"))
        if self.image_size is not None and img_size is not None and img_size != size_of(self.image_size):
            raise ValueError(
                f"image_size is {self.image_size} and kwargs.img_size {self.kwargs['img_size']}: set image_size alone"
            )
        return self
