"""What timm says while it loads weights of its own, which it tells nobody but its log: keys that didn't fit."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.key_groups import grouped

_KEYS = re.compile(r"(Missing|Unexpected) keys \((.*?)\)")
# Behind the blocks: an argument such as global_pool puts other modules there, which no layer passes through.
_BEHIND = re.compile(r"^(fc_norm|norm|attn_pool|head|pre_logits|fc|classifier)\w*\.")


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING or _KEYS.search(text):
            self.texts.append(text)


@contextmanager
def heard() -> Iterator[list[str]]:
    """The warnings of timm's loader in this block, and which keys it left out, in place of printing them."""
    logger, kept = logging.getLogger("timm.models._builder"), _Kept()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield kept.texts
    finally:
        logger.removeHandler(kept)
        logger.setLevel(level)
        logger.propagate = propagate


def told_of_weights(texts: Sequence[str], model: nn.Module, config: ModelConfig) -> list[str]:
    """What was heard, as lines for people.

    Raises:
        ConfigError: parameters of the network that timm found no weights for: they would be random without a word.
    """
    own = {name for name, _ in model.named_parameters()}
    lines = []
    for text in texts:
        match = _KEYS.search(text)
        if match is None:
            lines.append(f"timm: {' '.join(text.split())}")
            continue
        keys = [key.strip() for key in match.group(2).split(",")]
        if match.group(1) == "Unexpected":
            lines.append(f"of timm's weights, not used by this network: {'; '.join(grouped(keys))}")
        elif missing := [key for key in keys if key in own]:
            if random := [key for key in missing if not _BEHIND.match(key)]:
                raise ConfigError(
                    [
                        f"models: {config.id}: timm's weights have nothing for {'; '.join(grouped(random))}: these "
                        f"arguments ({', '.join(config.kwargs)}) make another network; `pretrained: false`, or weights "
                        "of it by path"
                    ]
                )
            lines.append(f"timm's weights have nothing for {'; '.join(grouped(missing))}, which start from scratch")
    return lines
