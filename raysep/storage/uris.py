"""Read single files by local path or URI: weights, and configurations of sweep cells."""

from pathlib import Path

from raysep.storage.store import Storage, is_uri


def read_file(uri: str) -> bytes:
    """The content of a file, by local path or URI. Raises OSError, UsageError."""
    if not is_uri(uri):
        return Path(uri).expanduser().read_bytes()
    directory, name = _parent_of(uri)
    return directory.read_bytes(name)


def file_exists(uri: str) -> bool:
    """Whether a local path or URI is an existing file. Raises OSError if the storage is unreachable."""
    if not is_uri(uri):
        return Path(uri).expanduser().is_file()
    directory, name = _parent_of(uri)
    return directory.is_file(name)


def _parent_of(uri: str) -> tuple[Storage, str]:
    """The parent directory of a file, and the name of the file."""
    address, mark, options = uri.partition("?")
    parent, _, name = address.rpartition("/")
    return Storage(parent + mark + options), name
