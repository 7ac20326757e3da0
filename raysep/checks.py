"""Everything that can be wrong with a configuration and what it points to, found before any work."""

import pyarrow as pa

from raysep.config import DataConfig, ModelConfig, RunConfig
from raysep.data.corruptions import Corrupted
from raysep.data.sources import Reader, open_source
from raysep.data.splits import SEEN_TEST, SEEN_TRAIN, UNSEEN, draw_split
from raysep.errors import ConfigError
from raysep.places import place_exists


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


def check_models(models: list[ModelConfig]) -> None:
    """Build each model. Raises ConfigError with what is wrong with all of them.

    Weights are loaded for real, so that a hub out of reach and keys which don't fit are found here.
    """
    missing = [
        f"models.{position}.pretrained: no file {model.pretrained}"
        for position, model in enumerate(models)
        if isinstance(model.pretrained, str) and not place_exists(model.pretrained)
    ]
    # torch and timm take seconds to import: a wrong path is answered without them.
    if missing:
        raise ConfigError(missing)
    from raysep.models.build import create
    from raysep.models.taps import describe

    problems: list[str] = []
    for model in models:
        try:
            describe(model)
            if model.pretrained is not False:
                create(model)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def check_all(config: RunConfig, source_name: str) -> tuple[dict[str, Reader], pa.Table]:
    """Data and models together. Raises one ConfigError with the problems of both."""
    problems: list[str] = []
    found = None
    try:
        found = check_data(config)
    except ConfigError as error:
        problems += error.problems
    try:
        check_models(config.models)
    except ConfigError as error:
        problems += error.problems
    if problems or found is None:
        raise ConfigError(problems, source_name)
    return found
