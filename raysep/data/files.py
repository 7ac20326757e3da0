"""Which files of a tree are taken: by name, else by their first bytes; and what is left aside, by suffix."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from raysep.data.formats import (
    ADVICE,
    FORMAT_OF_SUFFIX,
    HEAD_BYTES,
    OTHER_SUFFIXES,
    advice,
    foreign_suffix,
    format_of,
    formats,
    suffix_of,
)
from raysep.storage.retries import is_transient
from raysep.storage.store import Storage

# Of what a message shows.
EXAMPLES = 3
# What systems and programs leave behind, beside all that is hidden by a dot (.DS_Store, ._x.jpg, .ipynb_checkpoints).
SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
        *("__macosx", "icon\r", "lost+found", "__pycache__"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler"),
        "system volume information",
    }
)
NO_SUFFIX, UNREADABLE = "no suffix", "that can't be read"
# Requests to an object store that wait for each other would take minutes.
THREADS = 16


def is_hidden(name: str) -> bool:
    """Whether a file or directory is hidden, or left behind by a system: by its own name, without what it lies in.

    >>> is_hidden(".ipynb_checkpoints"), is_hidden("@eaDir"), is_hidden("Thumbs.db"), is_hidden("cats")
    (True, True, True, False)
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def visible(paths: Iterable[str]) -> tuple[list[str], int]:
    """The paths that neither are hidden nor lie in anything that is, and how many the others are."""
    found, hidden = [], 0
    for path in paths:
        if any(is_hidden(name) for name in path.split("/")):
            hidden += 1
        else:
            found.append(path)
    return found, hidden


def images_among(storage: Storage, paths: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The images among files, and each other file with the reason why it isn't one.

    A file with an image's suffix is taken for one; of others the first bytes are read, but for suffixes that say
    what the file is.

    Returns:
        Paths of images, in the order given; and of the others, with the suffix that they count under.
    """

    def by_name(path: str) -> bool | None:
        suffix = suffix_of(path)
        if FORMAT_OF_SUFFIX.get(suffix) in formats():
            return True
        return False if suffix in ADVICE or suffix in OTHER_SUFFIXES else None

    return _sorted_out(storage, paths, by_name, lambda head: format_of(head) is not None)


def tables_among(storage: Storage, paths: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """As `images_among`, for Parquet files. Names with an underscore before them are the writing program's own.

    That is the convention of Spark and Hive: _SUCCESS, _metadata, _temporary/.
    """

    def by_name(path: str) -> bool | None:
        *directories, name = path.split("/")
        if any(directory.startswith("_") for directory in directories):
            return False
        suffix = suffix_of(path)
        if suffix == ".parquet":
            return True
        return False if name.startswith("_") or suffix in OTHER_SUFFIXES else None

    return _sorted_out(storage, paths, by_name, lambda head: head.startswith(b"PAR1"))


def in_words(counts: Mapping[str, int]) -> str:
    """How many files of which suffix, and what to do with them.

    >>> in_words({".txt": 2, ".svg": 1})
    '2 .txt, 1 .svg (render to PNG)'
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {suffix}" + (f" ({todo})" if (todo := advice(suffix)) else "") for suffix, n in ordered)


def left_out(others: Mapping[str, str], hidden: int, kind: str) -> tuple[str, ...]:
    """What of a tree is not taken, a sentence each.

    Args:
        others: files that are not taken, with the suffix that each counts under.
        hidden: how many further files are hidden.
        kind: what those would have to be that are taken, in the plural.
    """
    found = []
    if others:
        found.append(f"files that are no {kind}: {in_words(Counter(others.values()))}")
    if hidden:
        found.append(f"files that are hidden, or left behind by a system: {hidden}")
    return tuple(found)


def _sorted_out(
    storage: Storage,
    paths: Iterable[str],
    by_name: Callable[[str], bool | None],
    accepts: Callable[[bytes], bool],
) -> tuple[list[str], dict[str, str]]:
    """Files that are wanted by their name, or by their first bytes where the name says nothing, and the others."""
    verdict = {path: by_name(path) for path in paths}
    unknown = [path for path, wanted in verdict.items() if wanted is None]
    why = {path: suffix_of(path) or NO_SUFFIX for path, wanted in verdict.items() if wanted is False}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, head in zip(unknown, pool.map(lambda path: _head(storage, path), unknown), strict=True):
            if head is not None and accepts(head):
                verdict[path] = True
            else:
                own = suffix_of(path) or NO_SUFFIX
                why[path] = f"{own} {UNREADABLE}" if head is None else foreign_suffix(head) or own
    return [path for path, wanted in verdict.items() if wanted], why


def _head(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.read_with(path, lambda file: bytes(file.read(HEAD_BYTES)))
    except OSError as error:
        if is_transient(error):
            raise
        return None


def in_short(names: Sequence[str]) -> str:
    """Some of the names, each on one line, and that there are more.

    >>> in_short(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    shown = [name.replace("\n", "\\n") for name in names[:EXAMPLES]]
    return ", ".join([*shown, *(["..."] if len(names) > EXAMPLES else [])])
