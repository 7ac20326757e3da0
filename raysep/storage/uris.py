"""Single files by local path or URI, as configurations name them: weights, sweeps' cells."""

from pathlib import Path

from raysep.storage.store import Storage, is_uri


def read_place(place: str) -> bytes:
    """The content of one file, by local path or URI. Raises OSError, UsageError."""
    if not is_uri(place):
        return Path(place).expanduser().read_bytes()
    directory, name = _parent_of(place)
    return directory.read_bytes(name)


def place_exists(place: str) -> bool:
    """Whether a file is at a local path or URI. Raises OSError where that can't be asked."""
    if not is_uri(place):
        return Path(place).expanduser().is_file()
    directory, name = _parent_of(place)
    return directory.is_file(name)


def _parent_of(place: str) -> tuple[Storage, str]:
    """The directory that the file at a URI lies in, and its name there."""
    address, mark, options = place.partition("?")
    parent, _, name = address.rpartition("/")
    return Storage(parent + mark + options), name
