"""Sources of images: a source lists its images and returns the bytes of each."""

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar, get_args

from raysep.config.data import SourceConfig
from raysep.config.registry import SOURCES

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Record:
    """One image before the split.

    Attributes:
        image_id: unique within the source, and stable between listings.
        class_name: its label.
        path: file relative to the source's root; None if the source has only rows.
        row: row in `path` or in the source; None if the file is the image.
        part: `train`, `test` or `unseen` if the source is already split, else None.
    """

    image_id: str
    class_name: str
    path: str | None = None
    row: int | None = None
    part: str | None = None


class Reader(Protocol):
    """The read interface of a source. Instances are pickled to workers, so they must be small."""

    def read(self, path: str | None, row: int | None) -> bytes:
        """Read the encoded image (JPEG, PNG, ...) at a record's path and row. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Remarks:
    """Remarks on a source's images for the user, a sentence each.

    Attributes:
        left_out: files that are ignored.
        notes: choices where the source allows several interpretations.
    """

    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Source(ABC):
    """A source of images. Instances are pickled to workers, so they must be small.

    Attributes:
        Config: its configuration section, the only argument of the class. Its docstring's first line is the section's
            description in the documentation.
    """

    Config: ClassVar[type[SourceConfig]]

    @abstractmethod
    def read(self, path: str | None, row: int | None) -> bytes:
        """Read the encoded image (JPEG, PNG, ...) at a record's path and row. Raises OSError."""

    @abstractmethod
    def records(self) -> list[Record]:
        """List all images, sorted by image_id. Raises ConfigError if there are no usable ones."""

    def remarks(self) -> Remarks:
        """Remarks on the images, from the last call of `records`."""
        return Remarks()


S = TypeVar("S", bound=type[Source])


def source(kind: S) -> S:
    """Register a source class under the `kind` of its configuration. Raises ValueError for a duplicate."""
    SOURCES.add(get_args(kind.Config.model_fields["kind"].annotation)[0], kind)
    return kind


def encode(image: "Image.Image") -> bytes:
    """Encode an image as PNG, for sources that store pixels."""
    content = io.BytesIO()
    image.save(content, format="PNG", compress_level=1)
    return content.getvalue()
