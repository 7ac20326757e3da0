"""Images in a directory for each class."""

import os
from collections.abc import Iterable, Iterator

from raysep.data.sources.base import Record
from raysep.errors import ConfigError
from raysep.storage import Storage

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
PARTS = ("train", "test", "unseen")


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
        if root.is_local and (wrong := list(_unusable(root.root))):
            raise ConfigError([f"data.source.path: {problem}" for problem in wrong[:20]])
        classes = root.directories()
        presplit = "unseen" in classes and set(classes) <= set(PARTS)
        parts: Iterable[str] = sorted(classes) if presplit else [""]
        records, empty = [], []
        for part in parts:
            for class_name in sorted(root.directories(part)) if part else sorted(classes):
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


def _unusable(root: str) -> Iterator[str]:
    """Names and links of a local tree that would lose images, or count them twice, in words."""

    def refuse(error: OSError) -> None:
        raise ConfigError([f"data.source.path: {_shown(error.filename)} can't be listed: {error.strerror}"])

    for place, directories, files in os.walk(root, followlinks=True, onerror=refuse):
        for name in [*directories, *files]:
            path = os.path.join(place, name)  # noqa: PTH118  (names that are no text)
            if not _is_text(name):
                yield f"{_shown(path)}: the name is not UTF-8: rename it"
            elif os.path.islink(path):  # noqa: PTH114
                target, here = os.path.realpath(path), os.path.realpath(place)
                if not os.path.exists(target):  # noqa: PTH110
                    yield f"{_shown(path)}: a link that leads nowhere: remove it"
                elif f"{here}/".startswith(f"{target}/"):
                    yield f"{_shown(path)}: a link that leads back to where it lies: remove it"
                    directories[:] = [each for each in directories if each != name]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str) -> str:
    return ascii(path)[1:-1]


def _is_image(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return not name.startswith(".") and "." + name.rsplit(".", 1)[-1].lower() in IMAGE_SUFFIXES
