"""Image sources: each module defines the source of the same name. To add a source, add a module and a test."""

from raysep.config.data import SourceConfig
from raysep.config.registry import SOURCES
from raysep.data.given_bits import WithBitDepth
from raysep.data.source import Source


def open_source(config: SourceConfig, bit_depth: int | None = None) -> Source:
    """Open the source that a configuration section describes.

    Args:
        bit_depth: significant bits of the images' values; None: from each file's metadata.
    """
    opened: Source = SOURCES[config.kind](config)
    return opened if bit_depth is None else WithBitDepth(opened, bit_depth)
