"""Schema of a sweep file: the shared configuration of all cells, and the axes of the matrix."""

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

# File systems allow names of 255 bytes; a hash follows the cell in the name of its directory.
LONGEST_NAME = 200
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"


class MatrixConfig(Section):
    """The axes of the matrix. An unset axis has the value of `base`."""

    models: list[dict[str, Any]] = Field(default_factory=list, description="as `models` of a run; unset: those of base")
    domains: dict[str, dict[str, Any]] = Field(default_factory=dict, description="by name, as `data` of a run")
    seeds: list[int] = Field(default_factory=list, description="each becomes `finetune.seeds` of its cells")
    protocols: list[Protocol] = Field(default_factory=list, description="each becomes `score.protocols` of its cells")
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by name: keys and values, as in {finetune.steps: 100}"
    )


class Pattern(Section):
    """Values by axis; as an item of `include` a cell to add, of `exclude` a match of the cells to leave out."""

    model: str | None = Field(None, description="id of a model")
    domain: str | None = Field(None, description="name of a domain")
    seed: int | None = Field(None, description="one of the seeds")
    protocol: Protocol | None = Field(None, description="one of the protocols")
    override: str | None = Field(None, description="name of an override")


class GateConfig(Section):
    """The regression gate: each cell is compared with the baseline, by default the cell's last result.

    A cell regresses if g falls by more than the combined margin of both intervals, or if its run is slow.
    """

    round: str | None = Field(
        None, description="label of the baseline round; unset: the last round that completed the cell"
    )
    date: str | None = Field(None, description="day of the baseline rounds instead, as 2026-11-24")
    speed_ratio: float | None = Field(
        1.5,
        gt=1,
        description="slow: seconds above this multiple of the cell's median, and beyond the spread; null: off",
    )

    @model_validator(mode="after")
    def _one_baseline(self) -> Self:
        if self.round is not None and self.date is not None:
            raise ValueError("expected `round` or `date`, got both")
        return self


class SweepConfig(Section):
    """The configuration of a sweep."""

    name: str = Field("sweep", pattern=NAME, description="of the sweep")
    root: str = Field("", description="directory or URI of the sweep; unset: runs/sweeps/<name>")
    results: str = Field(
        "", description="directory or URI of the results table, which several sweeps may share; unset: <root>/results"
    )
    base: dict[str, Any] = Field(description="the configuration of a run that all cells share, or the path of its file")
    matrix: MatrixConfig
    include: list[Pattern] = Field(default_factory=list, description="cells in addition to the matrix")
    exclude: list[Pattern] = Field(default_factory=list, description="patterns of excluded cells")
    round: str = Field(
        "once", description="label of the round; a strftime pattern such as %Y-%m-%d starts a round per day"
    )
    timezone: str = Field("UTC", description="of rounds and schedules")
    parallel: int | None = Field(None, ge=1, description="concurrent cells; unset: one per GPU, or one per four CPUs")
    baseline: GateConfig | None = Field(None, description="regression gate of each round; null: none")
    monitoring: MonitoringConfig = MonitoringConfig()

    @model_validator(mode="before")
    @classmethod
    def _directories_from_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        root = values.get("root") or f"runs/sweeps/{values.get('name', 'sweep')}"
        return {**values, "root": root, "results": values.get("results") or f"{root}/results"}

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"{value!r} is no time zone of the IANA database, such as Europe/Berlin")
        return value

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    def label(self, at: datetime) -> str:
        """The label of the round at a given time. Raises ConfigError if it isn't a valid directory name."""
        return checked_label(at.astimezone(self.zone).strftime(self.round))


def checked_label(label: str) -> str:
    """The label, if it is a valid directory name. Raises ConfigError otherwise."""
    if not re.fullmatch(NAME, label) or len(label) > LONGEST_NAME:
        expected = f"letters, digits, '.', '_' and '-', at most {LONGEST_NAME}"
        raise ConfigError([f"round: {label!r} can't name a directory: expected {expected}"])
    return label


def load_sweep(path: str, overrides: Sequence[str] = (), root: str | None = None) -> SweepConfig:
    """Read and validate a sweep file. A `base` path is relative to the sweep file.

    Args:
        overrides: `key=value`, as in base.finetune.steps=100.
        root: replaces the file's `root`.

    Raises:
        ConfigError: lists every problem of the file.
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
    """Whether a file configures a sweep, not a run. Raises ConfigError for unreadable files."""
    return "matrix" in read_yaml(path)
