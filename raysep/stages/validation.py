"""Everything that can be wrong with a configuration and what it points to, found before any work."""

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
from raysep.storage.uris import place_exists


def check_data(config: RunConfig) -> tuple[dict[str, Reader], pa.Table]:
    """`check_images`, and whether there is something to train on."""
    readers, split = check_images(config.data)
    if config.finetune is not None and SEEN_TRAIN not in split["role"].unique().to_pylist():
        raise ConfigError(["finetune: there are no images of seen classes to train on; set `finetune: null`"])
    return readers, split


def check_images(data: DataConfig) -> tuple[dict[str, Reader], pa.Table]:
    """What reads the images of each role, and the split. Raises ConfigError with all that is wrong with them."""
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
    """Build each model, pass an image through it, and load its weights for real.

    So a hub out of reach, arguments that break the forward pass and keys which don't fit are found here.

    Args:
        trained: they will be trained, which needs a classifier that gives a number for each class.

    Returns:
        A line for each model with something to tell: which weights of a file were taken, what was left out.

    Raises:
        ConfigError: with what is wrong with all of them.
    """
    # torch and timm take seconds to import: a wrong path is answered without them.
    if missing := [problem for position, model in enumerate(models) if (problem := _no_file(position, model))]:
        raise ConfigError(missing)
    from raysep.models.build import check_weights
    from raysep.models.classifier import check_classifier
    from raysep.models.taps import describe

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


def _no_file(position: int, model: ModelConfig) -> str | None:
    """Why there can be no weights at the path that a model names; None where there is a file, or no path."""
    path = model.pretrained
    if not isinstance(path, str) or place_exists(path):
        return None
    where = f"models.{position}.pretrained"
    if not is_uri(path) and Path(path).expanduser().is_dir():
        return (
            f"{where}: {path} is a directory: give the file of weights in it, or `name: local-dir:{path}` where it "
            "has a config.json of timm"
        )
    return f"{where}: no file {path}"


def check_all(
    config: RunConfig, source_name: str, tell: Callable[[str], None] = lambda _: None
) -> tuple[dict[str, Reader], pa.Table]:
    """Data and models together.

    Args:
        source_name: of the configuration, for messages.
        tell: called with each line that `check_models` returns, once nothing is wrong.

    Raises:
        ConfigError: with the problems of both.
    """
    problems: list[str] = []
    lines: list[str] = []
    found = None
    try:
        found = check_data(config)
    except ConfigError as error:
        problems += error.problems
    try:
        lines = check_models(config.models, trained=config.finetune is not None)
    except ConfigError as error:
        problems += error.problems
    if problems or found is None:
        raise ConfigError(problems, source_name)
    for line in lines:
        tell(line)
    return found
