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
        image_id: unique in the source, and the same every time the source is listed.
        class_name: its label.
        path: where it is, relative to the source's root; None where the source counts rows.
        row: its row (in `path`, where there is one); None where each path is one image.
        part: `train`, `test` or `unseen` where the source is a split already, else None.
    """

    image_id: str
    class_name: str
    path: str | None = None
    row: int | None = None
    part: str | None = None


class Reader(Protocol):
    """What the workers need of a source. Instances travel to them, so they pickle small."""

    def read(self, path: str | None, row: int | None) -> bytes:
        """The encoded image (JPEG, PNG, ...) at a record's path or row. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Remarks:
    """What a person should know of a source's images, a sentence each.

    Attributes:
        left_out: what was there and is not used.
        notes: how what was found was understood, where it could be understood in another way.
    """

    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Source(ABC):
    """A source of images. Instances travel to workers, so they pickle small.

    Attributes:
        Config: its section of the configuration, the one argument of the class. The first line of its docstring is its
            description in the documentation.
    """

    Config: ClassVar[type[SourceConfig]]

    @abstractmethod
    def read(self, path: str | None, row: int | None) -> bytes:
        """The encoded image (JPEG, PNG, ...) at a record's path or row. Raises OSError."""

    @abstractmethod
    def records(self) -> list[Record]:
        """All images, sorted by image_id. Raises ConfigError where there is nothing to use."""

    def remarks(self) -> Remarks:
        """What there is to say of the images, as `records` has found them last."""
        return Remarks()


S = TypeVar("S", bound=type[Source])


def source(kind: S) -> S:
    """Register a class of sources under the `kind` of its section. Raises ValueError for a name that is taken."""
    SOURCES.add(get_args(kind.Config.model_fields["kind"].annotation)[0], kind)
    return kind


def encode(image: "Image.Image") -> bytes:
    """An image as PNG: how sources that hold pixels hand them out."""
    content = io.BytesIO()
    image.save(content, format="PNG", compress_level=1)
    return content.getvalue()
