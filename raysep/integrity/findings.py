"""What a verification says."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from raysep.errors import RaysepError

# What a file that can't be understood makes its reader raise.
UNREADABLE = (ValueError, KeyError, TypeError, RaysepError, pa.ArrowException)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        path: of the file, relative to the run.
        what: is wrong with it.
        remedy: the file without which `raysep run` does this piece again; None where nothing but a copy helps.
    """

    path: str
    what: str
    remedy: str | None


@dataclass
class Verification:
    """What was looked at, and what came of it.

    Attributes:
        findings: what is wrong.
        unfinished: what is not there yet, in words.
        strays: files that no manifest names: left by what was stopped or done twice, and never read.
        counts: of what is right: trials, shard sets, rows, scores.
    """

    findings: list[Finding] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def short(error: BaseException) -> str:
    """An error on one line of at most some 200 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if len(text) < 200 else f"{type(error).__name__}: {text[:197]}..."
