"""Directories that are the parts of a split, by the names that they usually have."""

import re
from collections.abc import Iterable
from pathlib import Path

# A part of a split, and the names of its directory: in any case, perhaps with a word for what is in it.
PARTS = ("train", "test", "unseen")
_NAMES = {
    "train": r"train|training|trn|seen|seen[ _-]?train",
    # What is held out for choosing and what is held out for testing are both held out.
    "test": r"test|testing|tst|val|valid|validation|validate|dev|eval|evaluation|hold[ _-]?out|seen[ _-]?test",
    "unseen": r"unseen",
}
_WHAT = r"([ _-]?(set|split|data|images|imgs|classes))?"


def part_of(name: str) -> str | None:
    """The part of a split that a directory's name says, or None.

    >>> part_of("Train"), part_of("validation"), part_of("test_set"), part_of("unseen"), part_of("trains")
    ('train', 'test', 'test', 'unseen', None)
    """
    return next((part for part, names in _NAMES.items() if re.fullmatch(f"({names}){_WHAT}", name, re.I)), None)


def parts_of(names: Iterable[str]) -> dict[str, str]:
    """The part of each directory of a split's top level; none where a name says no part, or there is only one part.

    A class may be called `train`: only where every directory has the name of a part, they are parts.

    >>> parts_of(["Train", "val"]), parts_of(["train", "bus"]), parts_of(["train"]), parts_of(["unseen"])
    ({'Train': 'train', 'val': 'test'}, {}, {}, {'unseen': 'unseen'})
    """
    found = {name: part_of(name) for name in names}
    parts = {name: part for name, part in found.items() if part is not None}
    return parts if len(parts) == len(found) and (len(parts) > 1 or "unseen" in parts.values()) else {}


def has_unseen_part(place: str) -> bool:
    """Whether a directory or URI is a split that says which classes are unseen. False where nothing is there."""
    from raysep.data.files import is_hidden
    from raysep.storage.store import Storage, is_uri

    if is_uri(place):
        storage = Storage(place)
        names = storage.directories() if storage.exists() else []
    else:
        root = Path(place).expanduser()
        names = [entry.name for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []
    return "unseen" in parts_of(name for name in names if not is_hidden(name)).values()
