"""Results of a verification."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from raysep.errors import RaysepError

# Errors of reading a damaged file.
UNREADABLE = (ValueError, KeyError, TypeError, RaysepError, pa.ArrowException)


@dataclass(frozen=True)
class Finding:
    """A damaged file.

    Attributes:
        path: path of the file, relative to the run directory.
        what: description of the damage.
        remedy: path of the file to delete so that `raysep run` recomputes the result; None if only a backup helps.
    """

    path: str
    what: str
    remedy: str | None


@dataclass
class Verification:
    """The results of verifying a run.

    Attributes:
        findings: damaged files.
        unfinished: descriptions of missing results.
        strays: files that no manifest lists and nothing reads, left by interrupted or repeated work.
        counts: number of valid trials, shard sets, rows and scores.
    """

    findings: list[Finding] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def short(error: BaseException) -> str:
    """An error on one line, with its text cut to 200 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if len(text) < 200 else f"{type(error).__name__}: {text[:197]}..."
