"""Repair of the process environment at start-up.

Containers and schedulers start processes without a home directory or user name, with closed standard streams, or in a
deleted working directory. This module handles all of them, so that no other code has to.
"""

import getpass
import io
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import TextIO, cast

from raysep.errors import UsageError
from raysep.process import proxies

STREAMS = ("stdin", "stdout", "stderr")


def prepare() -> None:
    """Reopen closed streams, set a missing user name and home, and bypass proxies for loopback addresses.

    Raises:
        UsageError: the working directory is deleted.
    """
    _open_streams()
    # In a C locale Python may decode UTF-8 arguments byte by byte.
    sys.argv = [os.fsencode(argument).decode("utf-8", "surrogateescape") for argument in sys.argv]
    _name_user()
    proxies.bypass_loopback()
    try:
        os.getcwd()  # noqa: PTH109  (only to test that it works)
    except OSError as error:
        raise UsageError(f"the working directory is gone ({error.strerror}): change to an existing one (cd)") from None


def _open_streams() -> None:
    """Redirect closed streams to /dev/null, so that no file gets their descriptors; escape unencodable characters."""
    for number, name in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number, inheritable=True)
                os.close(null)
            os.set_inheritable(number, True)
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _name_user() -> None:
    """Set USER and HOME if the user id has no passwd entry, as in containers."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _private_directory()


def _private_directory() -> str:
    """A temporary directory that no other user can write to."""
    path = Path(tempfile.gettempdir()) / f"raysep-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return str(path)
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="raysep-home-")


def torch_device() -> str:
    """The device that torch computes on in this process: `cuda` with a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def lenient(file: TextIO) -> TextIO:
    """Wrap a text file so that write errors, such as that of a broken pipe, are ignored."""
    return cast(TextIO, _Lenient(file))


class _Lenient(io.TextIOBase):
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write text; discard it after the first error."""
        try:
            return self._file.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Flush the file; ignore errors."""
        try:
            self._file.flush()
        except OSError:
            self._discard()

    def isatty(self) -> bool:
        """Whether the file is a terminal."""
        return self._file.isatty()

    def fileno(self) -> int:
        """The file descriptor."""
        return self._file.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only in its base as well
        """The encoding of the file."""
        return self._file.encoding

    def _discard(self) -> None:
        self._file = Path(os.devnull).open("w")  # noqa: SIM115  (for the rest of the process)
