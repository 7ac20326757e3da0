"""A directory on any file system of pyarrow or fsspec: local disk, NFS, s3://, gs://, abfs://, hdfs://.

A run reads and writes all of its files through `Storage`, by path relative to its root, so other modules don't depend
on the file system. Credentials come from the usual sources of the file system's client (environment, profile, the
machine's role), never from the URI: URIs are displayed, logged and stored.
"""

import contextlib
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import ArrowInvalid, ArrowNotImplementedError
from pyarrow import fs as pafs

from raysep.errors import RaysepError, StageError, StorageError, UsageError, write_error
from raysep.storage.retries import with_retries

T = TypeVar("T")
TEMPORARY_PREFIX = ".tmp-"
# Directory of lease files; writes to it are not fenced.
LEASES = "lock"


class Fence(Protocol):
    """Guards the writes to a directory (see `lease.Lease`). A pickled copy guards with the same lease."""

    def check(self) -> None:
        """Raise StorageError if this process, or the driver that it works for, has lost the lease."""


class Storage:
    """A root directory and atomic reads and writes below it.

    Args:
        uri: a local path, relative or absolute, or a URI of `pyarrow.fs.FileSystem.from_uri` (with options after a
            question mark) or of fsspec.
        fences: checked before every write; inherited by stores made from this one, and by copies in other processes.

    Raises:
        UsageError: neither pyarrow nor fsspec supports the URI's scheme, or the URI contains a password.
    """

    def __init__(self, uri: str, fences: tuple[Fence, ...] = ()) -> None:
        self.fences = fences
        if is_uri(uri):
            parts = urlsplit(uri)
            # A user alone is part of some addresses: abfs://container@account..., sftp://user@host.
            if parts.password is not None or (parts.username is not None and parts.scheme in {"s3", "s3a"}):
                raise UsageError(
                    f"{parts.scheme}://...@{parts.hostname}{parts.path}: a URI is stored with the results, so it can't "
                    "hold credentials: set them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), a "
                    "profile, or the machine's role"
                )
            self.fs, root = _file_system(uri)
            if not root.strip("/"):
                raise UsageError(f"{uri}: expected a bucket and a directory behind the scheme, got neither")
            self.uri, _, self._options = uri.partition("?")
            self.uri = self.uri.rstrip("/")
        else:
            self.fs, root = pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
            self.uri, self._options = root, ""
        self.root = root.rstrip("/") or "/"
        # On object stores a put is atomic, and there is no rename.
        self.is_local = isinstance(self.fs, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.full_uri, self.fences)

    @property
    def full_uri(self) -> str:
        """The URI with its options, which opens the same directory in any process."""
        return f"{self.uri}?{self._options}" if self._options else self.uri

    def at(self, relative: str) -> "Storage":
        """The storage of a directory below this one."""
        return Storage(f"{self.uri}/{relative}" + (f"?{self._options}" if self._options else ""), self.fences)

    def fenced(self, by: "Storage") -> "Storage":
        """The same directory, with the fences of another store added."""
        return Storage(self.full_uri, (*self.fences, *by.fences))

    def reach(self) -> None:
        """Check that the file system is reachable and the bucket exists.

        Raises:
            UsageError: the bucket does not exist.
            RaysepError: the file system is unreachable; the message says what to check.
        """
        try:
            if not self.is_local and not self.exists():
                bucket = self.root.partition("/")[0]
                if bucket and self.fs.get_file_info(bucket).type == pafs.FileType.NotFound:
                    raise UsageError(f"{self.display()}: the bucket {bucket!r} does not exist: create it first")
        except OSError as error:
            raise RaysepError(
                f"{self.display()} can't be reached: {' '.join(str(error).split())}. Check the address, the bucket and "
                "the credentials of this machine and of the nodes, whose workers inherit the environment of "
                "`ray start`."
            ) from None

    def path(self, relative: str) -> str:
        """The path of a file within the file system."""
        return f"{self.root}/{relative}" if relative else self.root

    def display(self, relative: str = "") -> str:
        """The path or URI of a file, for messages."""
        return f"{self.uri}/{relative}" if relative else self.uri

    def exists(self, relative: str = "") -> bool:
        """Whether a file or directory exists."""
        return bool(self._type(relative) != pafs.FileType.NotFound)

    def is_file(self, relative: str = "") -> bool:
        """Whether a path is an existing file."""
        return bool(self._type(relative) == pafs.FileType.File)

    def files(self, relative: str = "", *, name: str | None = None) -> list[str]:
        """Relative paths of all files below a directory, sorted; only those with file name `name` if given."""
        return sorted(path for path in self.sizes(relative) if name is None or path.rpartition("/")[2] == name)

    def sizes(self, relative: str = "") -> dict[str, int]:
        """Sizes in bytes of all files below a directory, by relative path."""
        return {path: info.size for path, info in self._infos(relative) if not _is_temporary(info)}

    def times(self, relative: str = "") -> dict[str, float | None]:
        """Modification time of each file below a directory, by the file system's clock, in seconds of Unix time.

        None if the file system has no modification times.
        """
        return {
            path: None if info.mtime_ns is None else info.mtime_ns / 1e9
            for path, info in self._infos(relative)
            if not _is_temporary(info)
        }

    def temporary(self) -> list[str]:
        """Relative paths of temporary files that interrupted writes have left."""
        return sorted(path for path, info in self._infos("") if _is_temporary(info))

    def directories(self, relative: str = "") -> list[str]:
        """Names of the subdirectories of a directory, without hidden ones. Raises FileNotFoundError."""
        infos = with_retries(lambda: self.fs.get_file_info(pafs.FileSelector(self.path(relative))))
        return [info.base_name for info in infos if info.type == pafs.FileType.Directory and info.base_name[0] != "."]

    def tree(self) -> tuple[list[str], list[str]]:
        """Relative paths of all files and of all directories below the root, including hidden ones; both sorted."""
        selector = pafs.FileSelector(self.root, recursive=True, allow_not_found=True)
        paths: dict[Any, list[str]] = {pafs.FileType.File: [], pafs.FileType.Directory: []}
        for info in with_retries(lambda: self.fs.get_file_info(selector)):
            if info.type in paths:
                paths[info.type].append(str(PurePosixPath(info.path).relative_to(self.root)))
        return sorted(paths[pafs.FileType.File]), sorted(paths[pafs.FileType.Directory])

    def _type(self, relative: str) -> Any:
        return with_retries(lambda: self.fs.get_file_info(self.path(relative)).type)

    def _infos(self, relative: str) -> Iterator[tuple[str, pafs.FileInfo]]:
        selector = pafs.FileSelector(self.path(relative), recursive=True, allow_not_found=True)
        for info in with_retries(lambda: self.fs.get_file_info(selector)):
            if info.type == pafs.FileType.File:
                yield str(PurePosixPath(info.path).relative_to(self.root)), info

    def read_bytes(self, relative: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""

        content: bytes = self.read_with(relative, lambda file: file.read())
        return content

    def read_with(self, relative: str, reader: Callable[[pa.NativeFile], T]) -> T:
        """Open a file and return the result of `reader`, called again by each retry. Raises FileNotFoundError."""

        def read() -> T:
            with self.fs.open_input_file(self.path(relative)) as file:
                return reader(file)

        return with_retries(read)

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Write a file atomically: readers see all of it or nothing.

        Local disks: a temporary file in the same directory, then a rename. Object stores: a put is atomic.

        Raises:
            StorageError: the file can't be written (the message says what to do); or a lease is lost.
        """
        self._check_fences(relative)
        try:
            with_retries(lambda: self._write(self.path(relative), content))
        except OSError as error:
            raise StorageError(write_error(self.display(relative), error)) from error

    def _check_fences(self, relative: str) -> None:
        if not relative.startswith(f"{LEASES}/"):
            for fence in self.fences:
                fence.check()

    def _write(self, target: str, content: bytes) -> None:
        if not self.is_local:
            with self.fs.open_output_stream(target) as stream:
                stream.write(content)
            return
        parent = str(PurePosixPath(target).parent)
        self.fs.create_dir(parent, recursive=True)
        temporary = f"{parent}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with self.fs.open_output_stream(temporary) as stream:
                stream.write(content)
            self.fs.move(temporary, target)
        except OSError:
            # Free the space: the disk may be full.
            with contextlib.suppress(OSError):
                self.fs.delete_file(temporary)
            raise

    def read_json(self, relative: str) -> Any:
        """The value of a JSON file. Raises FileNotFoundError, StorageError."""
        content = self.read_bytes(relative)
        with self.understood(relative):
            return json.loads(content)

    @contextlib.contextmanager
    def understood(self, relative: str) -> Iterator[None]:
        """Context manager: turn parse errors of a file into a StorageError that says that the file is damaged."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise StorageError(
                f"{self.display(relative)} is damaged ({what}); `raysep run CONFIG --repair` recomputes it"
            ) from None

    def write_json(self, relative: str, value: object) -> None:
        """Write a value as indented JSON, atomically."""
        self.write_bytes(relative, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def delete(self, relative: str) -> None:
        """Delete a file if it exists. Raises StorageError if a lease is lost."""
        self._check_fences(relative)
        with contextlib.suppress(FileNotFoundError):
            with_retries(lambda: self.fs.delete_file(self.path(relative)))


def check_visible(store: Storage) -> None:
    """Raise StageError in a worker whose node lacks the run directory, before a write would create a local one.

    The check at the start of a run doesn't cover nodes that are added later.
    """
    if store.is_local and not Path(store.root).is_dir():
        raise StageError(
            f"{store.display()} does not exist on node {socket.gethostname()}: a run on several nodes needs a URI "
            "(s3://...) or a directory that all of them mount"
        )


def _is_temporary(info: pafs.FileInfo) -> bool:
    return bool(info.base_name.startswith(TEMPORARY_PREFIX))


def is_uri(path: str) -> bool:
    """Whether a path is a URI, not a local path.

    >>> is_uri("s3://bucket/weights"), is_uri("runs/a"), is_uri("C:/runs")
    (True, False, False)
    """
    return "://" in path


def _file_system(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI by pyarrow, else by fsspec, and the path in it."""
    try:
        opened: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(uri)
    except OSError as error:
        # For S3 this already queries the bucket's region.
        raise RaysepError(f"{uri.partition('?')[0]} can't be reached: {' '.join(str(error).split())}") from None
    except (ArrowInvalid, ArrowNotImplementedError) as error:
        import fsspec

        try:
            other, root = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as second:
            raise UsageError(
                f"{uri}: not a directory or URI that pyarrow.fs ({error}) or fsspec ({second}) can open"
            ) from None
        return pafs.PyFileSystem(pafs.FSSpecHandler(other)), root
    return opened
