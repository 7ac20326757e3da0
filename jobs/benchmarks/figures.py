"""What the benchmarks share: one JSON object a line on stdout, two sides that take turns, medians.

These machines are shared and noisy: a figure is a ratio of two things that were measured in turn, in one run.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import typer

Figure = dict[str, Any]
P = TypeVar("P")


def figure(name: str, value: float, bar: str, holds: bool | None, unit: str, how: str) -> Figure:
    """One line of the output; `holds` is None where nothing is demanded."""
    return {"figure": name, "value": float(f"{value:.4g}"), "bar": bar, "holds": holds, "unit": unit, "how": how}


def at_least(name: str, value: float, bar: float, unit: str, how: str) -> Figure:
    """A figure that should not be lower."""
    return figure(name, value, f">= {bar:g}", value >= bar, unit, how)


def at_most(name: str, value: float, bar: float, unit: str, how: str) -> Figure:
    """A figure that should not be higher."""
    return figure(name, value, f"<= {bar:g}", value <= bar, unit, how)


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(times: int, *sides: Callable[[], object]) -> list[float]:
    """Median seconds of each side, all of them in turn, so many times. One more turn before them does not count."""
    for side in sides:
        side()
    taken = [[seconds(side) for side in sides] for _ in range(times)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def chosen(parts: Mapping[str, P], asked: Sequence[str] | None) -> list[P]:
    """The parts that are asked for by name, all of them if none is. Raises typer.BadParameter for other names."""
    unknown = [name for name in asked or [] if name not in parts]
    if unknown:
        raise typer.BadParameter(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    return [parts[name] for name in asked or parts]


def emit(figures: Iterable[Figure], quick: bool) -> None:
    """Print figures as they come; exit with 1 where a bar is missed. Bars are for the full size, not for quick runs."""
    missed = False
    for line in figures:
        if quick:
            line |= {"bar": f"{line['bar']}, at full size", "holds": None}
        print(json.dumps(line), flush=True)
        missed |= line["holds"] is False
    sys.exit(1 if missed else 0)
