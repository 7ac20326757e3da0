"""The environment that a command finds, made one that it and its libraries can work in.

Containers and schedulers start processes without a home, without a name for their user, with closed streams, or in a
directory that is gone. Each of these is met here once, so that nothing else has to think of it.
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
    """Put the process into a state that libraries can live with.

    Raises:
        UsageError: the working directory is gone.
    """
    _open_streams()
    # In a C locale Python may have taken the bytes of other characters for characters of their own.
    sys.argv = [os.fsencode(argument).decode("utf-8", "surrogateescape") for argument in sys.argv]
    _name_user()
    proxies.bypass_loopback()
    try:
        os.getcwd()  # noqa: PTH109  (the question is whether it can be asked)
    except OSError as error:
        raise UsageError(f"the working directory is gone ({error.strerror}): go to one that exists (cd)") from None


def _open_streams() -> None:
    """Streams that were closed lead nowhere, or the next file would take their place; no character is refused."""
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
    """A name and a home for a user id that has none in this container, and no HOME in its environment."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _own_directory()


def _own_directory() -> str:
    """A directory that no other user can have put anything into."""
    place = Path(tempfile.gettempdir()) / f"raysep-{os.getuid()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return str(place)
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="raysep-home-")


def lenient(file: TextIO) -> TextIO:
    """A text file whose reader may go: lines that nobody reads end no work."""
    return cast(TextIO, _Lenient(file))


class _Lenient(io.TextIOBase):
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write a text, if anybody can still read it."""
        try:
            return self._file.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            self._file.flush()
        except OSError:
            self._give_up()

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return self._file.isatty()

    def fileno(self) -> int:
        """The file descriptor."""
        return self._file.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only in its base as well
        """Of the file."""
        return self._file.encoding

    def _give_up(self) -> None:
        self._file = Path(os.devnull).open("w")  # noqa: SIM115  (for the rest of the process)
