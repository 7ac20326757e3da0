"""Two runs, two rounds or two days side by side: what differs by more than its interval."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raysep.report.schema import Summary
from raysep.sweeps.config import GateConfig
from raysep.sweeps.history import DONE, Row

# A normal distribution's standard deviation, in its median absolute deviations.
MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Point:
    """What is compared of one model or cell.

    Attributes:
        g: corrected where it is known.
        interval: of it, 95 %; None where it isn't known.
    """

    name: str
    g: float | None
    interval: tuple[float, float] | None
    best_layer: int | None
    accuracy: float | None
    seconds: float | None


@dataclass(frozen=True)
class Difference:
    """One name on both sides.

    Attributes:
        change: of g, from a to b; None where one of them isn't known.
        margin: what a change has to exceed: both half intervals, added as those of independent numbers are. On the
            same images that asks for more than it must. None where an interval isn't known.
        beyond: whether it does; None where that can't be said.
    """

    a: Point
    b: Point
    change: float | None
    margin: float | None
    beyond: bool | None


def of_summary(summary: Summary) -> list[Point]:
    """The models of a run."""
    points = []
    for model in summary.models:
        best = model.best
        g, interval = (None, None) if best is None else (best.corrected_g, best.corrected_interval)
        if best is not None and g is None:
            g, interval = best.g, best.interval
        layer = None if best is None else best.layer
        points.append(Point(model.model, g, interval, layer, model.seen_accuracy, None))
    return points


def of_rows(rows: Iterable[Row]) -> list[Point]:
    """The cells of a round that are done."""
    return [
        Point(row["cell"], *_g(row), row["best_layer"], row["seen_accuracy"], row["seconds"])
        for row in rows
        if row["state"] == DONE
    ]


def differences(a: Sequence[Point], b: Sequence[Point]) -> list[Difference]:
    """What has a name on both sides, in the order of a."""
    others = {point.name: point for point in b}
    return [_difference(point, others[point.name]) for point in a if point.name in others]


def regressions(gate: GateConfig, standard: Sequence[Row], rows: Sequence[Row], history: Sequence[Row]) -> list[str]:
    """Cells that are worse than their standard, in words.

    Args:
        standard: the last row of each cell of the baseline.
        rows: of this round.
        history: rows of earlier rounds: how long a cell takes, and how much that varies.
    """
    found = []
    for difference in differences(of_rows(standard), of_rows(rows)):
        name, change = difference.b.name, difference.change
        if difference.beyond and change is not None and change < 0:
            numbers = f"from {difference.a.g:.3f} to {difference.b.g:.3f}"
            margin = f"more than the {difference.margin:.3f} of both intervals"
            found.append(f"{name}: g fell by {-change:.3f}, {numbers}, {margin}")
        seconds = [row["seconds"] for row in history if row["cell"] == name and row["state"] == DONE and row["seconds"]]
        slow = _slow(gate.speed_ratio, seconds, difference.b.seconds)
        if slow is not None:
            found.append(f"{name}: {slow}")
    return found


def _slow(ratio: float | None, before_s: Sequence[float], now_s: float | None) -> str | None:
    if ratio is None or not before_s or now_s is None:
        return None
    median = statistics.median(before_s)
    spread = MAD_TO_SD * statistics.median(abs(seconds - median) for seconds in before_s)
    if now_s <= max(ratio * median, median + 3 * spread):
        return None
    return f"took {now_s:.1f} s, {now_s / median:.1f} times the median of {len(before_s)} earlier round(s)"


def _difference(a: Point, b: Point) -> Difference:
    change = None if a.g is None or b.g is None else b.g - a.g
    margin = None
    if a.interval is not None and b.interval is not None:
        margin = math.hypot(*((high - low) / 2 for low, high in (a.interval, b.interval)))
    beyond = None if change is None or margin is None else abs(change) > margin
    return Difference(a, b, change, margin, beyond)


def _g(row: Row) -> tuple[float | None, tuple[float, float] | None]:
    for value, low, high in (("corrected_g", "corrected_low", "corrected_high"), ("g", "g_low", "g_high")):
        if row[value] is not None:
            known = row[low] is not None and row[high] is not None
            return row[value], (row[low], row[high]) if known else None
    return None, None
