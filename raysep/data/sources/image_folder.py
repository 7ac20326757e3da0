"""Images in a directory for each class."""

import os
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raysep.config.data import SourceConfig
from raysep.data.files import images_among, is_hidden, left_out, visible
from raysep.data.folders import Layout
from raysep.data.formats import suffix_of
from raysep.data.source import Record, Remarks, Source, source
from raysep.errors import ConfigError
from raysep.storage.store import Storage


@source
class ImageFolder(Source):
    """A tree `root/<class>/*`, or `root/{train,test,unseen}/<class>/*`.

    The image_id is the path below the root, so two files never share one. What lies below a class directory is of the
    class. Hidden files and directories, and those that systems leave behind, are left out at every depth.

    Args:
        config: root and depth.
    """

    class Config(SourceConfig):
        """A tree `path/<class>/*`, or `path/{train,test,unseen}/<class>/*`, which is a split already.

        Parts are known by their usual names in any case (training, val, validation, dev, eval, ...). Files are images
        by suffix or content; hidden ones, and those of systems, are left out at every depth.
        """

        kind: Literal["image_folder"] = "image_folder"
        path: str = Field(description="directory or URI; relative to the working directory")
        depth: int | None = Field(
            None,
            ge=1,
            le=16,
            description="how many directories below `path`, or below each part, a class directory lies: 2 for "
            "path/<group>/<class>/*, a class of the name group/class; everything below a class directory is of the "
            "class; unset: 1, and a tree whose class directories hold only directories is refused",
        )

    def __init__(self, config: Config) -> None:
        self.storage, self._depth = Storage(config.path), config.depth
        self._remarks = Remarks()

    def records(self) -> list[Record]:
        """Every image by suffix or content. Raises ConfigError for a tree whose classes nothing says for sure."""
        files, directories, hidden = self._listed()
        images, others = images_among(self.storage, files)
        layout = Layout.of(images, directories, self._depth)
        if problems := layout.problems(self.storage.display(), self._depth, others):
            raise ConfigError([f"data.source.path: {problem}" for problem in problems])
        skipped = left_out(others, hidden, "images that can be decoded")
        self._remarks = Remarks((*skipped, *layout.left_out()), tuple(layout.notes()))
        records = [Record(path, name, path=path, part=layout.part_of(path)) for path, name in layout.class_of.items()]
        return sorted(records, key=lambda record: record.image_id)

    def remarks(self) -> Remarks:
        """Files that are no images, by suffix, and how the directories were understood."""
        return self._remarks

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002  (paths only)
        """The file's bytes."""
        assert path is not None
        return self.storage.read_bytes(path)

    def _listed(self) -> tuple[list[str], list[str], int]:
        """Files and directories, and how many others are hidden. Raises ConfigError where there is no tree."""
        root = self.storage
        if not root.exists():
            raise ConfigError([f"data.source.path: no directory at {root.display()}"])
        if root.is_file():
            todo = " (an archive: unpack it)" if suffix_of(root.root) in {".zip", ".tar", ".gz", ".tgz", ".7z"} else ""
            raise ConfigError([f"data.source.path: expected a directory, {root.display()} is a file{todo}"])
        if root.is_local and (wrong := list(_unusable(root.root))):
            more = [f"and {len(wrong) - 20} more of the kind"] if len(wrong) > 20 else []
            raise ConfigError([f"data.source.path: {problem}" for problem in [*wrong[:20], *more]])
        files, directories = root.tree()
        found, hidden = visible(files)
        return found, visible(directories)[0], hidden


def _unusable(root: str) -> Iterator[str]:
    """Names and links of a local tree that would lose images, or count them twice, in words."""

    def refuse(error: OSError) -> None:
        raise ConfigError([f"data.source.path: {_shown(error.filename)} can't be listed: {error.strerror}"])

    for place, directories, files in os.walk(root, followlinks=True, onerror=refuse):
        directories[:] = [name for name in directories if not is_hidden(name)]
        for name in [*directories, *(file for file in files if not is_hidden(file))]:
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
