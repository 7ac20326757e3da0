"""A directory on any file system that pyarrow knows: local disk, NFS, s3://, gs://, hdfs://.

Everything that a run reads or writes goes through `Storage`, by path relative to its root, so no other
module knows where a run lives.
"""

import json
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import ArrowInvalid
from pyarrow import fs as pafs

from raysep.errors import UsageError

TEMPORARY_PREFIX = ".tmp-"


class Storage:
    """A root directory and atomic reads and writes below it.

    Args:
        uri: a local path, relative or absolute, or a URI of `pyarrow.fs.FileSystem.from_uri`.

    Raises:
        UsageError: the URI has a scheme that pyarrow doesn't know.
    """

    def __init__(self, uri: str) -> None:
        if "://" in uri:
            try:
                self.fs, root = pafs.FileSystem.from_uri(uri)
            except ArrowInvalid as error:
                raise UsageError(f"{uri}: not a directory or URI that pyarrow.fs can open ({error})") from None
            self.uri = uri.rstrip("/")
        else:
            self.fs, root = pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
            self.uri = root
        self.root = root.rstrip("/") or "/"
        # Elsewhere a put is atomic by itself, and there is no rename.
        self._renames = isinstance(self.fs, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.uri,)

    def path(self, relative: str) -> str:
        """The path that the file system knows a file by."""
        return f"{self.root}/{relative}" if relative else self.root

    def display(self, relative: str = "") -> str:
        """The path or URI to show to a person."""
        return f"{self.uri}/{relative}" if relative else self.uri

    def exists(self, relative: str = "") -> bool:
        """Whether a file or directory is there."""
        return bool(self.fs.get_file_info(self.path(relative)).type != pafs.FileType.NotFound)

    def is_file(self, relative: str = "") -> bool:
        """Whether a file, and no directory, is there."""
        return bool(self.fs.get_file_info(self.path(relative)).type == pafs.FileType.File)

    def files(self, relative: str = "", *, name: str | None = None) -> list[str]:
        """Relative paths of all files below a directory, sorted; only those called `name` if given."""
        selector = pafs.FileSelector(self.path(relative), recursive=True, allow_not_found=True)
        found = [
            str(PurePosixPath(info.path).relative_to(self.root))
            for info in self.fs.get_file_info(selector)
            if info.type == pafs.FileType.File
            and not info.base_name.startswith(TEMPORARY_PREFIX)
            and (name is None or info.base_name == name)
        ]
        return sorted(found)

    def read_bytes(self, relative: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        with self.fs.open_input_file(self.path(relative)) as file:
            content: bytes = file.read()
        return content

    def write_bytes(self, relative: str, content: bytes) -> None:
        """Write a file so that a reader sees all of it or nothing.

        Locally: a temporary file beside it, then a rename. On object stores a put is atomic by itself.
        """
        target = self.path(relative)
        if not self._renames:
            with self.fs.open_output_stream(target) as stream:
                stream.write(content)
            return
        parent = str(PurePosixPath(target).parent)
        self.fs.create_dir(parent, recursive=True)
        temporary = f"{parent}/{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        with self.fs.open_output_stream(temporary) as stream:
            stream.write(content)
        self.fs.move(temporary, target)

    def read_json(self, relative: str) -> Any:
        """A JSON file's value. Raises FileNotFoundError, json.JSONDecodeError."""
        return json.loads(self.read_bytes(relative))

    def write_json(self, relative: str, value: object) -> None:
        """Write a value as indented JSON, atomically."""
        self.write_bytes(relative, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
