"""Two runs, two rounds or two days side by side: what differs by more than its interval, and what can't be compared.

A g is of some images, by some metric under some protocol: with others it is another quantity, and its change tells
nothing.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raysep.report.schema import Summary
from raysep.sweeps.config import GateConfig
from raysep.sweeps.results import DONE, Row

# A normal distribution's standard deviation, in its median absolute deviations.
MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Point:
    """What is compared of one model or cell.

    Attributes:
        sweep: None for a run.
        g: corrected where it is known.
        interval: of it, 95 %; None where it isn't known.
        corrected: whether g is corrected for selection bias.
        data: hash of the images and their roles; None where it isn't known, as in rows of early versions.
        metric, protocol: that g is of; None likewise.
    """

    sweep: str | None
    name: str
    g: float | None
    interval: tuple[float, float] | None
    corrected: bool
    best_layer: int | None
    accuracy: float | None
    seconds: float | None
    data: str | None
    metric: str | None
    protocol: str | None


@dataclass(frozen=True)
class Difference:
    """One name on both sides.

    Attributes:
        change: of g, from a to b; None where one of them isn't known.
        margin: what a change has to exceed: both half intervals, added as those of independent numbers are. On the
            same images that asks for more than it must. None where an interval isn't known.
        beyond: whether it does; None where that can't be said.
        incomparable: why there is no change to speak of, in words: other images, another metric, another protocol.
        unknown: what is not known to be the same on both sides.
    """

    a: Point
    b: Point
    change: float | None
    margin: float | None
    beyond: bool | None
    incomparable: str | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A round against its baseline, each cell that there is something to say of in words.

    Attributes:
        regressions: cells that are worse.
        incomparable: cells whose baseline is of other images, another metric or another protocol.
        unjudged: cells that have no baseline, or no interval to tell a change by.
    """

    regressions: list[str] = field(default_factory=list)
    incomparable: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)


def of_summary(summary: Summary, data: str | None) -> list[Point]:
    """The models of a run.

    Args:
        data: hash of its images and their roles.
    """
    points = []
    for model in summary.models:
        best = model.best
        g, interval = (None, None) if best is None else (best.corrected_g, best.corrected_interval)
        corrected = g is not None
        if best is not None and not corrected:
            g, interval = best.g, best.interval
        layer = None if best is None else best.layer
        of = (data, summary.headline_metric, summary.headline_protocol)
        points.append(Point(None, model.model, g, interval, corrected, layer, model.seen_accuracy, None, *of))
    return points


def of_rows(rows: Iterable[Row]) -> list[Point]:
    """The cells of a round that are done."""
    return [
        Point(
            row["sweep"],
            row["cell"],
            *_g(row),
            row["best_layer"],
            row["seen_accuracy"],
            row["seconds"],
            row["data_sha256"],
            row["metric"],
            # Early versions wrote it only where the matrix had it as an axis.
            row["headline_protocol"] or row["protocol"] or None,
        )
        for row in rows
        if row["state"] == DONE
    ]


def differences(a: Sequence[Point], b: Sequence[Point]) -> list[Difference]:
    """What has a sweep and a name on both sides, in the order of a."""
    others = {(point.sweep, point.name): point for point in b}
    return [_difference(point, others[key]) for point in a if (key := (point.sweep, point.name)) in others]


def held_against(gate: GateConfig, standard: Sequence[Row], rows: Sequence[Row], history: Sequence[Row]) -> Verdict:
    """A round's cells against their standard.

    Args:
        standard: the last row of each cell of the baseline.
        rows: of this round.
        history: rows of earlier rounds: how long a cell takes, and how much that varies.
    """
    verdict = Verdict()
    cells = {row["cell"] for row in standard}
    new = [row["cell"] for row in rows if row["state"] == DONE and row["cell"] not in cells]
    verdict.unjudged.extend(f"{cell}: the baseline has no such cell" for cell in new)
    for difference in differences(of_rows(standard), of_rows(rows)):
        name, change = difference.b.name, difference.change
        if difference.incomparable is not None:
            verdict.incomparable.append(f"{name}: not comparable: {difference.incomparable}")
            continue
        if difference.beyond is None:
            verdict.unjudged.append(f"{name}: without both intervals no change of g can be told from chance")
        if difference.beyond and change is not None and change < 0:
            numbers = f"from {difference.a.g:.3f} to {difference.b.g:.3f}"
            margin = f"more than the {difference.margin:.3f} of both intervals"
            unknown = f"; not known to be the same: {', '.join(difference.unknown)}" if difference.unknown else ""
            verdict.regressions.append(f"{name}: g fell by {-change:.3f}, {numbers}, {margin}{unknown}")
        before = [row for row in history if row["cell"] == name and row["state"] == DONE and row["seconds"]]
        # Other images take another time.
        same = [row["seconds"] for row in before if row["data_sha256"] in {None, difference.b.data}]
        slow = _slow(gate.speed_ratio, same, difference.b.seconds)
        if slow is not None:
            verdict.regressions.append(f"{name}: {slow}")
    return verdict


def _slow(ratio: float | None, before_s: Sequence[float], now_s: float | None) -> str | None:
    if ratio is None or not before_s or now_s is None:
        return None
    median = statistics.median(before_s)
    spread = MAD_TO_SD * statistics.median(abs(seconds - median) for seconds in before_s)
    if now_s <= max(ratio * median, median + 3 * spread):
        return None
    return f"took {now_s:.1f} s, {now_s / median:.1f} times the median of {len(before_s)} earlier round(s)"


def _difference(a: Point, b: Point) -> Difference:
    sides = {"images": (a.data, b.data), "metric": (a.metric, b.metric), "protocol": (a.protocol, b.protocol)}
    unknown = tuple(what for what, pair in sides.items() if None in pair)
    words = [
        "other images" if what == "images" else f"another {what} ({before}, now {now})"
        for what, (before, now) in sides.items()
        if before != now and what not in unknown
    ]
    if not words and None not in {a.g, b.g} and a.corrected != b.corrected:
        words = ["one g is corrected for selection bias and the other is not"]
    if words:
        return Difference(a, b, None, None, None, ", ".join(words), unknown)
    change = None if a.g is None or b.g is None else b.g - a.g
    margin = None
    if a.interval is not None and b.interval is not None:
        margin = math.hypot(*((high - low) / 2 for low, high in (a.interval, b.interval)))
    beyond = None if change is None or margin is None else abs(change) > margin
    return Difference(a, b, change, margin, beyond, None, unknown)


def _g(row: Row) -> tuple[float | None, tuple[float, float] | None, bool]:
    """g, its interval, and whether it is corrected."""
    for value, low, high in (("corrected_g", "corrected_low", "corrected_high"), ("g", "g_low", "g_high")):
        if row[value] is not None:
            known = row[low] is not None and row[high] is not None
            return row[value], (row[low], row[high]) if known else None, value == "corrected_g"
    return None, None, False
