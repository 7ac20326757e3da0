"""The errors that a user may see. Everything else that reaches the terminal is a bug.

RaysepError                    exit code 1: the work was begun and could not be done
├── UsageError                 exit code 2: asked for in a wrong way; nothing was started or written
│   ├── ConfigError            the configuration, key by key
│   └── RunDirError            a run directory that belongs to another configuration or other data
├── NotComparableError         exit code 3: all was done, and what it was to be compared with is of other images,
│                              another metric or another protocol
├── StageError                 a stage failed; what was committed before it stays valid
├── StorageError               a disk or an object store said no; also an OSError
└── StoppedError               exit code 130: somebody stopped it, and what was committed stays valid
"""

import errno
import os
from collections.abc import Sequence


def printable(text: str) -> str:
    """Text without characters that would steer a terminal: names of files may hold any.

    >>> printable("a\\x1b[31m.png")
    'a\\\\x1b[31m.png'
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class RaysepError(Exception):
    """Base of all errors that are meant for people. Its text says what to do."""

    exit_code = 1


class UsageError(RaysepError):
    """The request itself is wrong: refused before any work, with nothing written."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more problems of a configuration, all of them at once.

    Args:
        problems: one line each: where, what was expected, what came, what to do.
        source: the file or place that the configuration came from.
    """

    def __init__(self, problems: Sequence[str], source: str = "configuration") -> None:
        self.problems = list(problems)
        self.source = source
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str], str]]:
        # Errors travel from workers by pickle, which would call __init__ with the text.
        return type(self), (self.problems, self.source)


class RunDirError(UsageError):
    """The run directory can't be used for this configuration or these images."""


class NotComparableError(RaysepError):
    """Two results are not of the same thing."""

    exit_code = 3


class StageError(RaysepError):
    """A stage could not do its work."""


class StorageError(RaysepError, OSError):
    """A file could not be written or read: which one, why, and what to do."""


class StoppedError(RaysepError):
    """Ctrl-C, SIGTERM or the notice of a spot machine. The same command goes on."""

    exit_code = 130


def refused(place: str, error: OSError) -> str:
    """Why a file can't be written, and what to do, in words."""
    number = error.errno
    if number in {errno.ENOSPC, errno.EDQUOT}:
        todo = "make room, or raise the quota"
    elif number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        todo = "let this user write there"
    elif place.startswith("s3:"):
        todo = "look at the address, the bucket's policy and the credentials of this machine"
    else:
        todo = "look at the disk or the network"
    why = os.strerror(number) if number else " ".join(str(error).split())
    return f"{place} can't be written: {why}. What was finished before stays valid: {todo}, and run the same command."
