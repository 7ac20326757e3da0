"""The errors that a user may see. Any other exception on the terminal is a bug.

RaysepError                    exit code 1: the work was begun and failed
├── UsageError                 exit code 2: the request is wrong; nothing was started or written
│   ├── ConfigError            the configuration has problems; lists all of them
│   ├── InputError             arrays that can't be scored; also a ValueError
│   └── RunDirError            the run directory belongs to another configuration or other data
├── NotComparableError         exit code 3: the work is done, but results of other images, another metric or
│                              another protocol can't be compared
├── StageError                 a stage failed; results that are already committed stay valid
├── StorageError               a disk or an object store refused a read or write; also an OSError
└── StoppedError               exit code 130: stopped by a user or a signal; committed results stay valid
"""

import errno
import os
from collections.abc import Sequence


def printable(text: str) -> str:
    """Text with control characters escaped: file names may contain terminal escape sequences.

    >>> printable("a\\x1b[31m.png")
    'a\\\\x1b[31m.png'
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class RaysepError(Exception):
    """Base of all errors for users. The text says what to do."""

    exit_code = 1


class UsageError(RaysepError):
    """The request itself is wrong: refused before any work, with nothing written."""

    exit_code = 2


class ConfigError(UsageError):
    """All problems of a configuration, reported together in one error.

    Args:
        problems: one line each: key, expected value, actual value, what to do.
        source: the file or other origin of the configuration.
    """

    def __init__(self, problems: Sequence[str], source: str = "configuration") -> None:
        self.problems = list(problems)
        self.source = source
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str], str]]:
        # Unpickling an error from a worker would call __init__ with the text.
        return type(self), (self.problems, self.source)


class InputError(UsageError, ValueError):
    """Arrays or labels can't be scored. The text names the row."""


class RunDirError(UsageError):
    """The run directory can't be used for this configuration or these images."""


class NotComparableError(RaysepError):
    """Two results are of different images, metrics or protocols."""

    exit_code = 3


class StageError(RaysepError):
    """A stage failed."""


class StorageError(RaysepError, OSError):
    """A file can't be written or read. The text has its path, the reason and what to do."""


class StoppedError(RaysepError):
    """Stopped by Ctrl-C, SIGTERM or the preemption of a spot machine. The same command resumes."""

    exit_code = 130


def write_error(path: str, error: OSError) -> str:
    """Message for a failed write: the path, the reason, and what to do."""
    number = error.errno
    if number in {errno.ENOSPC, errno.EDQUOT}:
        todo = "make room, or raise the quota"
    elif number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        todo = "let this user write there"
    elif path.startswith("s3:"):
        todo = "check the address, the bucket's policy and the credentials of this machine"
    else:
        todo = "check the disk or the network"
    why = os.strerror(number) if number else " ".join(str(error).split())
    text = f"{path} can't be written: {why}. Finished results stay valid. "
    return text + f"To continue, {todo}, then run the same command."
