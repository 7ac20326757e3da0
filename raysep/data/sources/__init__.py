"""Where images come from: a small class for each kind, and one function that opens what a run asks for."""

from raysep.config import (
    Cifar100Source,
    DigitsSource,
    HuggingFaceSource,
    ImageFolderSource,
    ParquetSource,
    SourceConfig,
)
from raysep.data.sources.base import Reader, Record, Source
from raysep.data.sources.cifar100 import Cifar100
from raysep.data.sources.digits import Digits
from raysep.data.sources.huggingface import HuggingFace
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.sources.parquet import ParquetImages

__all__ = [
    "Cifar100",
    "Digits",
    "HuggingFace",
    "ImageFolder",
    "ParquetImages",
    "Reader",
    "Record",
    "Source",
    "open_source",
]


def open_source(config: SourceConfig) -> Source:
    """The source that a configuration describes."""
    match config:
        case DigitsSource():
            return Digits()
        case ImageFolderSource():
            return ImageFolder(config.path)
        case ParquetSource():
            return ParquetImages(config)
        case HuggingFaceSource():
            return HuggingFace(config)
        case Cifar100Source():
            return Cifar100(config)
