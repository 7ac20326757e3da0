"""Image trees with a directory per class."""

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

    The image_id is the path relative to the root. All images below a class directory belong to the class. Hidden and
    system files and directories are ignored at every depth.

    Args:
        config: path and depth.
    """

    class Config(SourceConfig):
        """A tree `path/<class>/*`, or `path/{train,test,unseen}/<class>/*`, which is already split.

        Parts have usual names, in upper or lower case (training, val, validation, dev, eval, ...). Files are images by
        suffix or content; hidden and system files are ignored at every depth.
        """

        kind: Literal["image_folder"] = "image_folder"
        path: str = Field(description="directory or URI; relative to the working directory")
        depth: int | None = Field(
            None,
            ge=1,
            le=16,
            description="depth of the class directories below `path` or each part: 2 for path/<group>/<class>/*, "
            "with classes named group/class; all images below a class directory belong to the class; unset: 1, but a "
            "tree whose class directories contain only directories is refused",
        )

    def __init__(self, config: Config) -> None:
        self.storage, self._depth = Storage(config.path), config.depth
        self._remarks = Remarks()

    def records(self) -> list[Record]:
        """List all images, recognized by suffix or content. Raises ConfigError for a tree with ambiguous classes."""
        files, directories, hidden = self._listed()
        images, others = images_among(self.storage, files)
        layout = Layout.of(images, directories, self._depth)
        if problems := layout.problems(self.storage.display(), self._depth, others):
            raise ConfigError([f"data.source.path: {problem}" for problem in problems])
        skipped = left_out(others, hidden, "decodable images")
        self._remarks = Remarks((*skipped, *layout.left_out()), tuple(layout.notes()))
        records = [Record(path, name, path=path, part=layout.part_of(path)) for path, name in layout.class_of.items()]
        return sorted(records, key=lambda record: record.image_id)

    def remarks(self) -> Remarks:
        """Remarks on ignored files, by suffix, and on the interpretation of the directories."""
        return self._remarks

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002  (paths only)
        """Read a file."""
        assert path is not None
        return self.storage.read_bytes(path)

    def _listed(self) -> tuple[list[str], list[str], int]:
        """Visible files and directories, and the number of hidden files. Raises ConfigError for an unusable tree."""
        root = self.storage
        if not root.exists():
            raise ConfigError([f"data.source.path: no directory at {root.display()}"])
        if root.is_file():
            hint = " (an archive: unpack it)" if suffix_of(root.root) in {".zip", ".tar", ".gz", ".tgz", ".7z"} else ""
            raise ConfigError([f"data.source.path: expected a directory, {root.display()} is a file{hint}"])
        if root.is_local and (problems := list(_unusable(root.root))):
            more = [f"and {len(problems) - 20} more such names or links"] if len(problems) > 20 else []
            raise ConfigError([f"data.source.path: {problem}" for problem in [*problems[:20], *more]])
        files, directories = root.tree()
        shown, hidden = visible(files)
        return shown, visible(directories)[0], hidden


def _unusable(root: str) -> Iterator[str]:
    """Problems of names and links in a local tree that would lose images or count them twice."""

    def refuse(error: OSError) -> None:
        raise ConfigError([f"data.source.path: {_shown(error.filename)} can't be listed: {error.strerror}"])

    for parent, directories, files in os.walk(root, followlinks=True, onerror=refuse):
        directories[:] = [name for name in directories if not is_hidden(name)]
        for name in [*directories, *(file for file in files if not is_hidden(file))]:
            path = os.path.join(parent, name)  # noqa: PTH118  (names may be undecodable)
            if not _is_text(name):
                yield f"{_shown(path)}: the name is not UTF-8: rename it"
            elif os.path.islink(path):  # noqa: PTH114
                target, here = os.path.realpath(path), os.path.realpath(parent)
                if not os.path.exists(target):  # noqa: PTH110
                    yield f"{_shown(path)}: a broken link: remove it"
                elif f"{here}/".startswith(f"{target}/"):
                    yield f"{_shown(path)}: a link to one of its parent directories: remove it"
                    directories[:] = [directory for directory in directories if directory != name]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str) -> str:
    return ascii(path)[1:-1]
