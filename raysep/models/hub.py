"""Mismatched keys of timm's own weights, which timm reports only in its log."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.key_groups import grouped

_KEYS = re.compile(r"(Missing|Unexpected) keys \((.*?)\)")
# Modules after the blocks: arguments such as global_pool change them, and they do not affect the layers.
_AFTER_BLOCKS = re.compile(r"^(fc_norm|norm|attn_pool|head|pre_logits|fc|classifier)\w*\.")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING or _KEYS.search(text):
            self.texts.append(text)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect the warnings and mismatched keys that timm's loader logs in this block, instead of printing them."""
    logger, collector = logging.getLogger("timm.models._builder"), _Collector()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield collector.texts
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
        logger.propagate = propagate


def loader_remarks(texts: Sequence[str], model: nn.Module, config: ModelConfig) -> list[str]:
    """Remarks on the captured log, a sentence each.

    Raises:
        ConfigError: timm's weights lack parameters of the network, which would silently stay random.
    """
    parameters = {name for name, _ in model.named_parameters()}
    lines = []
    for text in texts:
        match = _KEYS.search(text)
        if match is None:
            lines.append(f"timm: {' '.join(text.split())}")
            continue
        keys = [key.strip() for key in match.group(2).split(",")]
        if match.group(1) == "Unexpected":
            lines.append(f"weights of timm that this network does not use: {'; '.join(grouped(keys))}")
        elif missing := [key for key in keys if key in parameters]:
            if random := [key for key in missing if not _AFTER_BLOCKS.match(key)]:
                raise ConfigError(
                    [
                        f"models: {config.id}: timm's weights lack {'; '.join(grouped(random))}: these arguments "
                        f"({', '.join(config.kwargs)}) change the network; set `pretrained: false`, or a path to its "
                        "weights"
                    ]
                )
            lines.append(f"timm's weights lack {'; '.join(grouped(missing))}, which start from random values")
    return lines
