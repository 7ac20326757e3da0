"""Detection of train, test and unseen directories by their usual names."""

import re
from collections.abc import Iterable
from pathlib import Path

# The parts of a split, and their directory names: in any case, optionally with a suffix such as `_set`.
PARTS = ("train", "test", "unseen")
_NAMES = {
    "train": r"train|training|trn|seen|seen[ _-]?train",
    # Validation and test images are both held out.
    "test": r"test|testing|tst|val|valid|validation|validate|dev|eval|evaluation|hold[ _-]?out|seen[ _-]?test",
    "unseen": r"unseen",
}
_WHAT = r"([ _-]?(set|split|data|images|imgs|classes))?"


def part_of(name: str) -> str | None:
    """The part of a split that a directory name denotes, or None.

    >>> part_of("Train"), part_of("validation"), part_of("test_set"), part_of("unseen"), part_of("trains")
    ('train', 'test', 'test', 'unseen', None)
    """
    return next((part for part, names in _NAMES.items() if re.fullmatch(f"({names}){_WHAT}", name, re.I)), None)


def parts_of(names: Iterable[str]) -> dict[str, str]:
    """The part of each top-level directory; empty unless every name denotes a part.

    A class may be named `train`, so a single directory counts only if it is `unseen`.

    >>> parts_of(["Train", "val"]), parts_of(["train", "bus"]), parts_of(["train"]), parts_of(["unseen"])
    ({'Train': 'train', 'val': 'test'}, {}, {}, {'unseen': 'unseen'})
    """
    all_parts = {name: part_of(name) for name in names}
    parts = {name: part for name, part in all_parts.items() if part is not None}
    return parts if len(parts) == len(all_parts) and (len(parts) > 1 or "unseen" in parts.values()) else {}


def has_unseen_part(uri: str) -> bool:
    """Whether a path or URI is a split tree with an `unseen` part. False if it does not exist."""
    from raysep.data.files import is_hidden
    from raysep.storage.store import Storage, is_uri

    if is_uri(uri):
        storage = Storage(uri)
        names = storage.directories() if storage.exists() else []
    else:
        root = Path(uri).expanduser()
        names = [entry.name for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []
    return "unseen" in parts_of(name for name in names if not is_hidden(name)).values()
