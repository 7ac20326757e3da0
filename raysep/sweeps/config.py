"""A sweep as its YAML file says it: what all cells have in common, and what they differ in."""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator, model_validator

from raysep.config import MonitoringConfig, Section
from raysep.config.load import apply, read_yaml, validated
from raysep.config.names import Protocol
from raysep.errors import ConfigError

# File systems take names of 255 bytes; a cell's directory has a hash behind its name.
LONGEST_NAME = 200
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"


class MatrixConfig(Section):
    """The axes. An axis that is left out has the one value of `base`."""

    models: list[dict[str, Any]] = Field(default_factory=list, description="as `models` of a run; unset: those of base")
    domains: dict[str, dict[str, Any]] = Field(default_factory=dict, description="name: as `data` of a run")
    seeds: list[int] = Field(default_factory=list, description="each becomes `finetune.seeds` of its cells")
    protocols: list[Protocol] = Field(default_factory=list, description="each becomes `score.protocols` of its cells")
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="name: keys and values, as in {finetune.steps: 100}"
    )


class Pattern(Section):
    """Names a cell, or for `exclude` all that agree with what is given."""

    model: str | None = Field(None, description="id of a model")
    domain: str | None = Field(None, description="name of a domain")
    seed: int | None = Field(None, description="one of the seeds")
    protocol: Protocol | None = Field(None, description="one of the protocols")
    override: str | None = Field(None, description="name of an override")


class GateConfig(Section):
    """What a round is held against: the last time that each of its cells was done before.

    A cell regresses if g falls by more than both intervals together, or if it is slow.
    """

    round: str | None = Field(
        None, description="the round that is the standard; unset: the last one that a cell was done in"
    )
    date: str | None = Field(None, description="or the rounds of a day, as 2026-11-24")
    speed_ratio: float | None = Field(
        1.5, gt=1, description="slow: more than so many times the median seconds, and beyond their spread; null: not"
    )

    @model_validator(mode="after")
    def _one_standard(self) -> Self:
        if self.round is not None and self.date is not None:
            raise ValueError("`round` and `date` can't both be the standard")
        return self


class SweepConfig(Section):
    """A whole sweep."""

    name: str = Field("sweep", pattern=NAME, description="of the sweep")
    root: str = Field("", description="directory or URI of everything it writes; unset: runs/sweeps/<name>")
    results: str = Field(
        "", description="directory or URI of the results table, which several sweeps may share; unset: <root>/results"
    )
    base: dict[str, Any] = Field(description="a run's configuration, or the path of one, that all cells share")
    matrix: MatrixConfig
    include: list[Pattern] = Field(default_factory=list, description="cells beside those of the matrix")
    exclude: list[Pattern] = Field(default_factory=list, description="patterns of cells that are left out")
    round: str = Field(
        "once", description="label of a round; a strftime pattern, as %Y-%m-%d, makes a round of each day"
    )
    timezone: str = Field("UTC", description="of rounds and schedules")
    parallel: int | None = Field(None, ge=1, description="cells at once; unset: one for each GPU or each four CPUs")
    baseline: GateConfig | None = Field(None, description="regression gate of each round; null: none")
    monitoring: MonitoringConfig = MonitoringConfig()

    @model_validator(mode="before")
    @classmethod
    def _places_from_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        root = values.get("root") or f"runs/sweeps/{values.get('name', 'sweep')}"
        return {**values, "root": root, "results": values.get("results") or f"{root}/results"}

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"{value!r} is no time zone of the IANA database, as Europe/Berlin is")
        return value

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    def label(self, at: datetime) -> str:
        """The label of the round that a moment falls into. Raises ConfigError where it can't name a directory."""
        return checked_label(at.astimezone(self.zone).strftime(self.round))


def checked_label(label: str) -> str:
    """A label that can name a round. Raises ConfigError where it can't."""
    if not re.fullmatch(NAME, label) or len(label) > LONGEST_NAME:
        expected = f"letters, digits, '.', '_' and '-', at most {LONGEST_NAME}"
        raise ConfigError([f"round: {label!r} can't name a directory: {expected}"])
    return label


def load_sweep(path: str, overrides: Sequence[str] = (), root: str | None = None) -> SweepConfig:
    """Read a sweep file. A `base` that is a path is read relative to the sweep's file.

    Args:
        overrides: `key=value`, as in base.finetune.steps=100.
        root: instead of the file's.

    Raises:
        ConfigError: with every problem of the file at once.
    """
    values = read_yaml(path)
    if isinstance(values.get("base"), str):
        values["base"] = read_yaml(str(Path(path).parent / values["base"]))
    for override in overrides:
        apply(values, override)
    if root is not None:
        values["root"] = root
    return validated(SweepConfig, values, path)


def is_sweep(path: str) -> bool:
    """Whether a file is a sweep's and not a run's. Raises ConfigError."""
    return "matrix" in read_yaml(path)
