"""The cells of a sweep's matrix: a run each, with a name and a cache key."""

import copy
import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, cast

from raysep.config import DataConfig, RunConfig
from raysep.config.base import not_in_key, repeated
from raysep.config.load import build_config, put
from raysep.data import splits
from raysep.errors import ConfigError
from raysep.stages import validation
from raysep.storage.store import is_uri
from raysep.storage.uris import read_file
from raysep.sweeps.config import LONGEST_NAME, Pattern, SweepConfig

# The value of an axis that the matrix doesn't have.
UNSET = ""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: joined from its coordinates; the same in every round.
        axes: coordinates in the matrix: model, domain, seed, protocol, override.
        config: resolved, without `run_dir`.
    """

    name: str
    axes: dict[str, str | int]
    config: RunConfig


@dataclass(frozen=True)
class Inputs:
    """Fingerprint of a cell's inputs.

    Attributes:
        key: cache key: hash of the resolved configuration, images, classes and weights.
        data: hash of the images and their roles alone.
        images: number of images.
    """

    key: str
    data: str
    images: int


def cells_of(sweep: SweepConfig) -> list[Cell]:
    """The cells in the order of the matrix, those of `include` last.

    Raises:
        ConfigError: lists the problems of all cells.
    """
    axes = _axes(sweep)
    problems: list[str] = []
    matrix = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    for position, pattern in enumerate(sweep.exclude):
        remaining = [coordinates for coordinates in matrix if not _matches(pattern, coordinates)]
        if len(remaining) == len(matrix):
            problems.append(f"exclude.{position}: matches no cell")
        matrix = remaining
    for position, pattern in enumerate(sweep.include):
        coordinates = {axis: axes[axis][0] for axis in axes} | pattern.model_dump(exclude_none=True)
        problems += [
            f"include.{position}.{axis}: the matrix has no {coordinates[axis]!r}"
            for axis in ("model", "domain", "override")
            if coordinates[axis] not in axes[axis]
        ]
        matrix.append(coordinates)
    cells = []
    if not problems:
        for coordinates in matrix:
            name = _name(coordinates)
            try:
                cells.append(Cell(name, coordinates, build_config({**_values(sweep, coordinates), "name": name})))
            except ConfigError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
        duplicates = repeated(map(_name, matrix))
        problems += [f"two cells have the name {name}: rename a model, domain or override" for name in duplicates]
        problems += [
            f"{name[:40]}...: names of {len(name)} characters are too long for a directory: shorten those of models, "
            f"domains and overrides to at most {LONGEST_NAME} together"
            for name in map(_name, matrix)
            if len(name) > LONGEST_NAME
        ]
        if not matrix:
            problems.append("exclude: no cell is left")
        if sweep.baseline is not None and any(cell.config.score.resamples == 0 for cell in cells):
            problems.append("baseline: comparing g needs intervals: expected score.resamples > 0, got 0")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), f"sweep {sweep.name}")
    return cells


def inputs_of(cell: Cell) -> Inputs:
    """Hash a cell's configuration, images and weights. Raises ConfigError, UsageError or OSError if any is missing."""
    values = cell.config.model_dump(mode="json")
    ignored = not_in_key(RunConfig) | {"name"}
    data, images = _data(cell.config.data.model_dump_json())
    weights = [_weights(m.pretrained) if isinstance(m.pretrained, str) else None for m in cell.config.models]
    parts = [{name: value for name, value in values.items() if name not in ignored}, data, weights]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Inputs(key, data, images)


def _axes(sweep: SweepConfig) -> dict[str, list[str | int]]:
    matrix, base = sweep.matrix, sweep.base
    models = _models(sweep)
    seeds = bool(matrix.seeds) or any(pattern.seed is not None for pattern in sweep.include)
    if not isinstance(base.get("finetune"), dict) and seeds:
        raise ConfigError(["matrix.seeds: seeds have no effect without `finetune` in base"], f"sweep {sweep.name}")
    duplicates = repeated(models)
    if duplicates:
        problem = f"matrix.models: two models have the id {', '.join(duplicates)}: give each its own `id`"
        raise ConfigError([problem], f"sweep {sweep.name}")
    return {
        "model": cast(list[str | int], models),
        "domain": [*matrix.domains] or [UNSET],
        "seed": [*matrix.seeds] or [UNSET],
        "protocol": [*matrix.protocols] or [UNSET],
        "override": [*matrix.overrides] or [UNSET],
    }


def _models(sweep: SweepConfig) -> list[str]:
    return [str(model.get("id") or model.get("name") or "") for model in _model_values(sweep)]


def _model_values(sweep: SweepConfig) -> list[dict[str, Any]]:
    models = sweep.matrix.models or sweep.base.get("models")
    if not isinstance(models, list) or not models or not all(isinstance(model, dict) for model in models):
        raise ConfigError(["matrix.models: expected a list of models here or in base"], f"sweep {sweep.name}")
    return models


def _matches(pattern: Pattern, coordinates: dict[str, str | int]) -> bool:
    return all(coordinates[axis] == value for axis, value in pattern.model_dump(exclude_none=True).items())


def _name(coordinates: dict[str, str | int]) -> str:
    """The name of a cell, from its coordinates.

    >>> _name({"model": "vit", "domain": "digits", "seed": 1, "protocol": "", "override": "long"})
    'vit_digits_seed1_long'
    >>> _name({"model": "vit", "domain": "São Paulo", "seed": 1, "protocol": "", "override": ""})
    'vit_S-o-Paulo_seed1'
    """
    parts = [str(f"seed{value}" if axis == "seed" else value) for axis, value in coordinates.items() if value != UNSET]
    return "_".join(re.sub(r"[^A-Za-z0-9._-]", "-", part) for part in parts)


def _values(sweep: SweepConfig, coordinates: dict[str, str | int]) -> dict[str, Any]:
    """The configuration of a cell, before validation."""
    values = copy.deepcopy(sweep.base)
    values.pop("run_dir", None)
    values["models"] = [copy.deepcopy(_model_values(sweep)[_models(sweep).index(str(coordinates["model"]))])]
    if coordinates["domain"] != UNSET:
        values["data"] = copy.deepcopy(sweep.matrix.domains[str(coordinates["domain"])])
    if coordinates["seed"] != UNSET:
        values["finetune"]["seeds"] = [coordinates["seed"]]
    if coordinates["protocol"] != UNSET:
        put(values, "score.protocols", [coordinates["protocol"]])
    if coordinates["override"] != UNSET:
        for key, value in sweep.matrix.overrides[str(coordinates["override"])].items():
            put(values, key, value)
    return values


@lru_cache(maxsize=64)
def _data(data: str) -> tuple[str, int]:
    """Hash and number of the images of a `data` section, cached because many cells share it."""
    _, split = validation.check_images(DataConfig.model_validate_json(data))
    return splits.fingerprint(split), split.num_rows


@lru_cache(maxsize=64)
def _weights(uri: str) -> str:
    try:
        return hashlib.sha256(read_file(uri)).hexdigest()
    except FileNotFoundError:
        kind = "URI" if is_uri(uri) else "file"
        raise ConfigError([f"models.0.pretrained: no {kind} {uri}"]) from None
