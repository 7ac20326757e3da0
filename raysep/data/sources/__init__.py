"""Where images come from: a small class for each kind, and one function that opens what a run asks for."""

from raysep.config import (
    Cifar100Source,
    DigitsSource,
    HuggingFaceSource,
    ImageFolderSource,
    ParquetSource,
    SourceConfig,
)
from raysep.data.sources.base import Reader, Record, Remarks, Source
from raysep.data.sources.cifar100 import Cifar100
from raysep.data.sources.digits import Digits
from raysep.data.sources.given_bits import GivenBits
from raysep.data.sources.huggingface import HuggingFace
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.sources.parquet import ParquetImages

__all__ = [
    "Cifar100",
    "Digits",
    "GivenBits",
    "HuggingFace",
    "ImageFolder",
    "ParquetImages",
    "Reader",
    "Record",
    "Remarks",
    "Source",
    "open_source",
]


def open_source(config: SourceConfig, bit_depth: int | None = None) -> Source:
    """The source that a configuration describes.

    Args:
        bit_depth: bits that the values of its images have; None: what each file says.
    """
    source = _opened(config)
    return source if bit_depth is None else GivenBits(source, bit_depth)


def _opened(config: SourceConfig) -> Source:
    match config:
        case DigitsSource():
            return Digits()
        case ImageFolderSource():
            return ImageFolder(config.path, config.depth)
        case ParquetSource():
            return ParquetImages(config)
        case HuggingFaceSource():
            return HuggingFace(config)
        case Cifar100Source():
            return Cifar100(config)
