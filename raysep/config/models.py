"""Section `models`: which networks, and how their layers become vectors."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raysep.config.base import Section

Pooling = Literal["auto", "cls", "mean", "token0", "max"]
# Ids with this in them are the baselines' own: the same network untrained, raw pixels.
BASELINE = "--"


class ModelConfig(Section):
    """One timm model and how its layers become vectors."""

    name: str = Field(min_length=1, description="as timm.create_model takes it")
    id: str = Field("", description="the name in results and paths; unset: made from `name`")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")
    pretrained: bool | str = Field(
        True,
        description="true: timm's weights; false: from scratch; or a path or URI of a safetensors or .pth file",
    )
    image_size: int | None = Field(None, ge=8, le=4096, description="pixels; unset: the model's own")
    crop_pct: float | None = Field(None, gt=0, le=1, description="unset: the model's own; 1 crops nothing")
    layers: list[str] | Literal["all"] = Field(
        "all", description="`all` stages or blocks, or names and patterns: `[all, blocks.*.mlp.act]`"
    )
    pooling: list[Pooling] = Field(["auto"], min_length=1, description="one or several; each makes layers of its own")

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

    @field_validator("pooling", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("pooling")
    @classmethod
    def _different_poolings(cls, value: list[Pooling]) -> list[Pooling]:
        return list(dict.fromkeys(value))

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, value: list[str] | Literal["all"]) -> list[str] | Literal["all"]:
        if value == []:
            raise ValueError("expected `all` or at least one layer name")
        return value
