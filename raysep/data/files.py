"""Selection of image and table files in a tree, by suffix or first bytes, and counts of ignored files by suffix."""

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

# Examples per message.
EXAMPLES = 3
# Files of operating systems and NAS devices, besides all dotfiles (.DS_Store, ._x.jpg, .ipynb_checkpoints).
SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
        *("__macosx", "icon\r", "lost+found", "__pycache__"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler"),
        "system volume information",
    }
)
NO_SUFFIX, UNREADABLE = "no suffix", "(unreadable)"
# Sequential requests to an object store would take minutes.
THREADS = 16


def is_hidden(name: str) -> bool:
    """Whether a single file or directory name is hidden, or one of `SYSTEM_NAMES`.

    >>> is_hidden(".ipynb_checkpoints"), is_hidden("@eaDir"), is_hidden("Thumbs.db"), is_hidden("cats")
    (True, True, True, False)
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def visible(paths: Iterable[str]) -> tuple[list[str], int]:
    """The paths without a hidden part, and the number of the other paths."""
    shown, hidden = [], 0
    for path in paths:
        if any(is_hidden(name) for name in path.split("/")):
            hidden += 1
        else:
            shown.append(path)
    return shown, hidden


def images_among(storage: Storage, paths: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Separate images from other files, by suffix, or by the first bytes if the suffix is unknown.

    Returns:
        Paths of images, in the given order; and for each non-image, the suffix under which it is counted.
    """

    def by_name(path: str) -> bool | None:
        suffix = suffix_of(path)
        if FORMAT_OF_SUFFIX.get(suffix) in formats():
            return True
        return False if suffix in ADVICE or suffix in OTHER_SUFFIXES else None

    return _partition(storage, paths, by_name, lambda head: format_of(head) is not None)


def tables_among(storage: Storage, paths: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Separate Parquet files from other files, by suffix, or by the first bytes if the suffix is unknown.

    Names with a leading underscore are not Parquet files of data, but metadata by the convention of Spark and Hive:
    _SUCCESS, _metadata, _temporary/.

    Returns:
        Paths of Parquet files, in the given order; and for each other file, the suffix under which it is counted.
    """

    def by_name(path: str) -> bool | None:
        *directories, name = path.split("/")
        if any(directory.startswith("_") for directory in directories):
            return False
        suffix = suffix_of(path)
        if suffix == ".parquet":
            return True
        return False if name.startswith("_") or suffix in OTHER_SUFFIXES else None

    return _partition(storage, paths, by_name, lambda head: head.startswith(b"PAR1"))


def count_text(counts: Mapping[str, int]) -> str:
    """Counts by suffix as text, most frequent first, with advice.

    >>> count_text({".txt": 2, ".svg": 1})
    '2 .txt, 1 .svg (render to PNG)'
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {suffix}" + (f" ({hint})" if (hint := advice(suffix)) else "") for suffix, n in ordered)


def left_out(others: Mapping[str, str], hidden: int, kind: str) -> tuple[str, ...]:
    """Sentences about the ignored files of a tree.

    Args:
        others: ignored files, with the suffix under which each is counted.
        hidden: number of hidden and system files.
        kind: the expected files, in the plural.
    """
    sentences = []
    if others:
        sentences.append(f"files that are not {kind}: {count_text(Counter(others.values()))}")
    if hidden:
        sentences.append(f"hidden and system files: {hidden}")
    return tuple(sentences)


def _partition(
    storage: Storage,
    paths: Iterable[str],
    by_name: Callable[[str], bool | None],
    accepts: Callable[[bytes], bool],
) -> tuple[list[str], dict[str, str]]:
    """Files accepted by `by_name`, or by their first bytes if it returns None; and the suffix of each rejected file."""
    verdict = {path: by_name(path) for path in paths}
    unknown = [path for path, wanted in verdict.items() if wanted is None]
    rejected = {path: suffix_of(path) or NO_SUFFIX for path, wanted in verdict.items() if wanted is False}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, head in zip(unknown, pool.map(lambda path: _head(storage, path), unknown), strict=True):
            if head is not None and accepts(head):
                verdict[path] = True
            else:
                suffix = suffix_of(path) or NO_SUFFIX
                rejected[path] = f"{suffix} {UNREADABLE}" if head is None else foreign_suffix(head) or suffix
    return [path for path, wanted in verdict.items() if wanted], rejected


def _head(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.read_with(path, lambda file: bytes(file.read(HEAD_BYTES)))
    except OSError as error:
        if is_transient(error):
            raise
        return None


def first_few(names: Sequence[str]) -> str:
    """The first names, without line breaks, and an ellipsis if there are more.

    >>> first_few(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    shown = [name.replace("\n", "\\n") for name in names[:EXAMPLES]]
    return ", ".join([*shown, *(["..."] if len(names) > EXAMPLES else [])])
