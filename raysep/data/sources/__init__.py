"""Sources of images: each module here defines one, of its own name. To add one, write its module and its test."""

from raysep.config.data import SourceConfig
from raysep.config.registry import SOURCES
from raysep.data.given_bits import GivenBits
from raysep.data.source import Source


def open_source(config: SourceConfig, bit_depth: int | None = None) -> Source:
    """The source of a section of the configuration.

    Args:
        bit_depth: bits of the images' values; None: what each file says.
    """
    opened: Source = SOURCES[config.kind](config)
    return opened if bit_depth is None else GivenBits(opened, bit_depth)
