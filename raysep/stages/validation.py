"""Checks of a configuration, its images and its models, before any work."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from raysep.config import DataConfig, ModelConfig, RunConfig
from raysep.data.corruptions import Corrupted
from raysep.data.source import Reader
from raysep.data.sources import open_source
from raysep.data.splits import SEEN_TEST, SEEN_TRAIN, UNSEEN, draw_split
from raysep.errors import ConfigError
from raysep.storage.store import is_uri
from raysep.storage.uris import file_exists


def check_data(config: RunConfig) -> tuple[dict[str, Reader], pa.Table]:
    """Run `check_images`, and check that seen classes exist if the run trains."""
    readers, split = check_images(config.data)
    if config.finetune is not None and SEEN_TRAIN not in split["role"].unique().to_pylist():
        raise ConfigError(["finetune: there are no images of seen classes to train on; set `finetune: null`"])
    return readers, split


def check_images(data: DataConfig) -> tuple[dict[str, Reader], pa.Table]:
    """Returns the reader of each role's images, and the split. Raises ConfigError with all problems of the data."""
    source = open_source(data.source, data.bit_depth)
    readers: dict[str, Reader] = dict.fromkeys((SEEN_TRAIN, SEEN_TEST, UNSEEN), source)
    others = {}
    for domain in data.domains:
        if domain.corruption is not None:
            readers[domain.name] = Corrupted(source, domain.corruption, domain.severity)
        elif domain.source is not None:
            readers[domain.name] = other = open_source(domain.source, data.bit_depth)
            try:
                others[domain.name] = other.records()
            except ConfigError as error:
                raise ConfigError([f"data.domains, {domain.name}: {problem}" for problem in error.problems]) from None
    return readers, draw_split(
        source.records(), data.split, data.max_per_class, data.domains, others, data.min_per_class
    )


def check_models(models: list[ModelConfig], *, trained: bool = False) -> list[str]:
    """Build each model, run a forward pass, and load its weights.

    This detects an unreachable hub, arguments that break the forward pass, and state dict keys that don't fit.

    Args:
        trained: also check that each model has a classifier with an output for each class.

    Returns:
        Remarks, one line each: which weights of a file are loaded, and which are left out.

    Raises:
        ConfigError: with the problems of all models.
    """
    # Report wrong paths before importing torch and timm, which takes seconds.
    if missing := [problem for position, model in enumerate(models) if (problem := _missing_file(position, model))]:
        raise ConfigError(missing)
    from raysep.models.build import check_weights
    from raysep.models.classifier import check_classifier
    from raysep.models.layered import describe

    lines: list[str] = []
    problems: list[str] = []
    for model in models:
        try:
            describe(model)
            if trained:
                check_classifier(model)
            lines += check_weights(model)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return lines


def _missing_file(position: int, model: ModelConfig) -> str | None:
    """The problem with a model's path of weights; None if the file exists or no path is given."""
    path = model.pretrained
    if not isinstance(path, str) or file_exists(path):
        return None
    where = f"models.{position}.pretrained"
    if not is_uri(path) and Path(path).expanduser().is_dir():
        return (
            f"{where}: {path} is a directory: give the file of weights in it, or `name: local-dir:{path}` if it has "
            "a config.json of timm"
        )
    return f"{where}: no file {path}"


def check_all(
    config: RunConfig, source_name: str, remark: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, Reader], pa.Table]:
    """Check the data and the models.

    Args:
        source_name: name of the configuration, for messages.
        remark: called with each remark of `check_models`, if there are no problems.

    Raises:
        ConfigError: with the problems of both.
    """
    problems: list[str] = []
    lines: list[str] = []
    data = None
    try:
        data = check_data(config)
    except ConfigError as error:
        problems += error.problems
    try:
        lines = check_models(config.models, trained=config.finetune is not None)
    except ConfigError as error:
        problems += error.problems
    if problems or data is None:
        raise ConfigError(problems, source_name)
    for line in lines:
        remark(line)
    return data
