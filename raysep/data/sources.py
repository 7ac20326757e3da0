"""Where images come from. A source lists what it has and hands out the bytes of one image."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from raysep.config import DigitsSource, ImageFolderSource
from raysep.errors import ConfigError
from raysep.storage import Storage

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
PARTS = ("train", "test", "unseen")


@dataclass(frozen=True)
class Record:
    """One image before the split.

    Attributes:
        image_id: unique in the source, and the same every time the source is listed.
        class_name: its label.
        path: where it is, relative to the source's root; None where the source counts rows.
        row: its row; None where the source has paths.
        part: `train`, `test` or `unseen` where the source is a split already, else None.
    """

    image_id: str
    class_name: str
    path: str | None = None
    row: int | None = None
    part: str | None = None


class Source(Protocol):
    """What every source does. Instances travel to the workers, so they pickle small."""

    def records(self) -> list[Record]:
        """All images, sorted by image_id. Raises ConfigError where there is nothing to use."""
        ...

    def read(self, path: str | None, row: int | None) -> bytes:
        """The encoded image (JPEG, PNG, ...) at a record's path or row. Raises OSError."""
        ...


class Digits:
    """The UCI handwritten digits of scikit-learn (`sklearn.datasets.load_digits`): 1,797 images of 8x8.

    The 17 grey levels are spread over 0 to 255.
    """

    def records(self) -> list[Record]:
        """Rows 0 to 1,796, classes `0` to `9`."""
        from sklearn.datasets import load_digits

        targets = load_digits().target
        return [Record(f"digits-{row:04d}", str(target), row=row) for row, target in enumerate(targets)]

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002  (rows only)
        """One digit as PNG."""
        from PIL import Image

        content = io.BytesIO()
        Image.fromarray(self._pixels[row]).save(content, format="PNG")
        return content.getvalue()

    @cached_property
    def _pixels(self) -> Any:  # (1797, 8, 8) uint8, read once per process
        import numpy as np
        from sklearn.datasets import load_digits

        return np.round(load_digits().images * (255 / 16)).astype(np.uint8)

    def __getstate__(self) -> dict[str, object]:
        return {}


class ImageFolder:
    """A tree `root/<class>/*`, or `root/{train,test,unseen}/<class>/*`.

    The image_id is the path below the root, so two files never share one.

    Args:
        uri: the root: a directory or a URI of pyarrow.fs.
    """

    def __init__(self, uri: str) -> None:
        self.storage = Storage(uri)

    def records(self) -> list[Record]:
        """Every file with an image's suffix. Raises ConfigError for a missing root or an empty class."""
        root = self.storage
        if not root.exists():
            raise ConfigError([f"data.source.path: no directory at {root.display()}"])
        classes = _directories(root)
        presplit = "unseen" in classes and set(classes) <= set(PARTS)
        parts: Iterable[str] = sorted(classes) if presplit else [""]
        records, empty = [], []
        for part in parts:
            for class_name in sorted(_directories(root, part)) if part else sorted(classes):
                folder = f"{part}/{class_name}" if part else class_name
                paths = [path for path in root.files(folder) if _is_image(path)]
                if not paths:
                    empty.append(folder)
                records += [Record(path, class_name, path=path, part=part or None) for path in paths]
        if empty:
            raise ConfigError(
                [f"data.source.path: no image in the class directory {root.display(folder)}" for folder in empty]
            )
        if not records:
            raise ConfigError(
                [f"data.source.path: expected {root.display()}/<class>/<image>, found no class directory"]
            )
        return sorted(records, key=lambda record: record.image_id)

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002  (paths only)
        """The file's bytes."""
        assert path is not None
        return self.storage.read_bytes(path)


def open_source(config: DigitsSource | ImageFolderSource) -> Source:
    """The source that a configuration describes."""
    if isinstance(config, DigitsSource):
        return Digits()
    return ImageFolder(config.path)


def _directories(storage: Storage, relative: str = "") -> list[str]:
    from pyarrow import fs as pafs

    found: Sequence[pafs.FileInfo] = storage.fs.get_file_info(pafs.FileSelector(storage.path(relative)))
    return [info.base_name for info in found if info.type == pafs.FileType.Directory and info.base_name[0] != "."]


def _is_image(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return not name.startswith(".") and "." + name.rsplit(".", 1)[-1].lower() in IMAGE_SUFFIXES
