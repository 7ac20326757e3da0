"""From the matrix to its cells: one run each, known by a name, and done under a key."""

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

# An axis that the matrix doesn't have.
NONE = ""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its place in the matrix; the same in every round.
        axes: model, domain, seed, protocol, override.
        config: resolved, without its directory.
    """

    name: str
    axes: dict[str, str | int]
    config: RunConfig


@dataclass(frozen=True)
class Known:
    """What is known of a cell before it runs.

    Attributes:
        key: hash of its resolved configuration and of its data: images, classes and weights.
        data: hash of the images and their roles alone.
        images: how many there are.
    """

    key: str
    data: str
    images: int


def cells_of(sweep: SweepConfig) -> list[Cell]:
    """The cells in the order of the matrix, those of `include` last.

    Raises:
        ConfigError: with what is wrong with any of them.
    """
    axes = _axes(sweep)
    problems: list[str] = []
    wanted = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    for position, pattern in enumerate(sweep.exclude):
        kept = [place for place in wanted if not _agrees(pattern, place)]
        if len(kept) == len(wanted):
            problems.append(f"exclude.{position}: no cell is like that")
        wanted = kept
    for position, pattern in enumerate(sweep.include):
        place = {axis: axes[axis][0] for axis in axes} | pattern.model_dump(exclude_none=True)
        problems += [
            f"include.{position}.{axis}: there is no {place[axis]!r} in the matrix"
            for axis in ("model", "domain", "override")
            if place[axis] not in axes[axis]
        ]
        wanted.append(place)
    cells = []
    if not problems:
        for place in wanted:
            name = _name(place)
            try:
                cells.append(Cell(name, place, build_config({**_values(sweep, place), "name": name})))
            except ConfigError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
        twice = repeated(_name(place) for place in wanted)
        problems += [f"two cells are called {name}" for name in twice]
        problems += [
            f"{name[:40]}...: names of {len(name)} characters are too long for a directory: give models, domains and "
            f"overrides shorter ones, at most {LONGEST_NAME} together"
            for name in map(_name, wanted)
            if len(name) > LONGEST_NAME
        ]
        if not wanted:
            problems.append("no cell is left")
        if sweep.baseline is not None and any(cell.config.score.resamples == 0 for cell in cells):
            problems.append("baseline: without intervals (score.resamples: 0) no change can be told from chance")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), f"sweep {sweep.name}")
    return cells


def known(cell: Cell) -> Known:
    """Look at a cell's images and weights. Raises ConfigError, UsageError, OSError where they are not there."""
    values = cell.config.model_dump(mode="json")
    free = not_in_key(RunConfig) | {"name"}
    data, images = _data(cell.config.data.model_dump_json())
    weights = [_weights(m.pretrained) if isinstance(m.pretrained, str) else None for m in cell.config.models]
    parts = [{name: value for name, value in values.items() if name not in free}, data, weights]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Known(key, data, images)


def _axes(sweep: SweepConfig) -> dict[str, list[str | int]]:
    matrix, base = sweep.matrix, sweep.base
    models = _models(sweep)
    seeds = bool(matrix.seeds) or any(pattern.seed is not None for pattern in sweep.include)
    if not isinstance(base.get("finetune"), dict) and seeds:
        raise ConfigError(["matrix.seeds: a seed changes nothing without `finetune` in base"], f"sweep {sweep.name}")
    twice = repeated(models)
    if twice:
        problem = f"matrix.models: two are called {', '.join(twice)}: give each an `id`"
        raise ConfigError([problem], f"sweep {sweep.name}")
    return {
        "model": cast(list[str | int], models),
        "domain": [*matrix.domains] or [NONE],
        "seed": [*matrix.seeds] or [NONE],
        "protocol": [*matrix.protocols] or [NONE],
        "override": [*matrix.overrides] or [NONE],
    }


def _models(sweep: SweepConfig) -> list[str]:
    return [str(model.get("id") or model.get("name") or "") for model in _model_values(sweep)]


def _model_values(sweep: SweepConfig) -> list[dict[str, Any]]:
    found = sweep.matrix.models or sweep.base.get("models")
    if not isinstance(found, list) or not found or not all(isinstance(model, dict) for model in found):
        raise ConfigError(["matrix.models: expected a list of models, there or in base"], f"sweep {sweep.name}")
    return found


def _agrees(pattern: Pattern, place: dict[str, str | int]) -> bool:
    return all(place[axis] == value for axis, value in pattern.model_dump(exclude_none=True).items())


def _name(place: dict[str, str | int]) -> str:
    """
    >>> _name({"model": "vit", "domain": "digits", "seed": 1, "protocol": "", "override": "long"})
    'vit_digits_seed1_long'
    >>> _name({"model": "vit", "domain": "São Paulo", "seed": 1, "protocol": "", "override": ""})
    'vit_S-o-Paulo_seed1'
    """
    parts = [str(f"seed{value}" if axis == "seed" else value) for axis, value in place.items() if value != NONE]
    return "_".join(re.sub(r"[^A-Za-z0-9._-]", "-", part) for part in parts)


def _values(sweep: SweepConfig, place: dict[str, str | int]) -> dict[str, Any]:
    """The values of a cell's configuration."""
    values = copy.deepcopy(sweep.base)
    values.pop("run_dir", None)
    values["models"] = [copy.deepcopy(_model_values(sweep)[_models(sweep).index(str(place["model"]))])]
    if place["domain"] != NONE:
        values["data"] = copy.deepcopy(sweep.matrix.domains[str(place["domain"])])
    if place["seed"] != NONE:
        values["finetune"]["seeds"] = [place["seed"]]
    if place["protocol"] != NONE:
        put(values, "score.protocols", [place["protocol"]])
    if place["override"] != NONE:
        for key, value in sweep.matrix.overrides[str(place["override"])].items():
            put(values, key, value)
    return values


@lru_cache(maxsize=64)
def _data(data: str) -> tuple[str, int]:
    """Hash and number of the images of a `data` section, which many cells share."""
    _, split = validation.check_images(DataConfig.model_validate_json(data))
    return splits.fingerprint(split), split.num_rows


@lru_cache(maxsize=64)
def _weights(place: str) -> str:
    try:
        return hashlib.sha256(read_file(place)).hexdigest()
    except FileNotFoundError:
        where = "URI" if is_uri(place) else "file"
        raise ConfigError([f"models.0.pretrained: no {where} {place}"]) from None
