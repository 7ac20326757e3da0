"""Comparison of two runs, rounds or days: significant changes of separability g, and pairs that are not comparable.

Values of g are comparable only for the same images, metric and protocol.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raysep.report.schema import Summary
from raysep.sweeps.config import GateConfig
from raysep.sweeps.results import DONE, Row

# Standard deviation of a normal distribution, in median absolute deviations.
MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Point:
    """The result of one model or cell.

    Attributes:
        sweep: name of the sweep; None for a single run.
        g: separability of the best layer: corrected for selection bias if that value is known, else as measured.
        interval: 95 % interval of g.
        corrected: whether g is corrected for selection bias.
        data: hash of the images and their roles; None if unknown, as in rows of early versions.
        metric, protocol: metric and protocol of g; None if unknown.
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
    """The change of one model or cell from a to b.

    Attributes:
        change: g of b minus g of a; None if either is unknown.
        margin: root sum of squares of the half-widths of both intervals, assuming independent estimates, so
            conservative for the same images. None if an interval is unknown.
        beyond: whether the change exceeds the margin; None if either is unknown.
        incomparable: why a and b are not comparable: other images, another metric, another protocol.
        unknown: which of images, metric and protocol may differ, as one side lacks them.
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
    """The comparison of a round with its baseline: a message per cell.

    Attributes:
        regressions: cells whose g fell significantly, or that are slow.
        incomparable: cells whose baseline has other images, another metric or another protocol.
        unjudged: cells without a baseline or without intervals.
    """

    regressions: list[str] = field(default_factory=list)
    incomparable: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)


def points_of_summary(summary: Summary, data: str | None) -> list[Point]:
    """The results of the models of a run.

    Args:
        data: hash of the run's images and their roles.
    """
    points = []
    for model in summary.models:
        best = model.best
        g, interval = (None, None) if best is None else (best.corrected_g, best.corrected_interval)
        corrected = g is not None
        if best is not None and not corrected:
            g, interval = best.g, best.interval
        layer = None if best is None else best.layer
        quantity = (data, summary.headline_metric, summary.headline_protocol)
        points.append(Point(None, model.model, g, interval, corrected, layer, model.seen_accuracy, None, *quantity))
    return points


def points_of_rows(rows: Iterable[Row]) -> list[Point]:
    """The results of the cells that are done."""
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
            # Early versions wrote the protocol only as an axis of the matrix.
            row["headline_protocol"] or row["protocol"] or None,
        )
        for row in rows
        if row["state"] == DONE
    ]


def differences(a: Sequence[Point], b: Sequence[Point]) -> list[Difference]:
    """The changes of the models or cells that a and b have in common, in the order of a."""
    others = {(point.sweep, point.name): point for point in b}
    return [_difference(point, others[key]) for point in a if (key := (point.sweep, point.name)) in others]


def judge(gate: GateConfig, baseline: Sequence[Row], rows: Sequence[Row], history: Sequence[Row]) -> Verdict:
    """Compare the cells of a round with the baseline.

    Args:
        baseline: last row of each cell in the baseline.
        rows: rows of this round.
        history: rows of earlier rounds, for the spread of the cells' seconds.
    """
    verdict = Verdict()
    cells = {row["cell"] for row in baseline}
    new = [row["cell"] for row in rows if row["state"] == DONE and row["cell"] not in cells]
    verdict.unjudged.extend(f"{cell}: the baseline has no such cell" for cell in new)
    for difference in differences(points_of_rows(baseline), points_of_rows(rows)):
        name, change = difference.b.name, difference.change
        if difference.incomparable is not None:
            verdict.incomparable.append(f"{name}: not comparable: {difference.incomparable}")
            continue
        if difference.beyond is None:
            verdict.unjudged.append(f"{name}: g can't be compared: one of the intervals is unknown")
        if difference.beyond and change is not None and change < 0:
            numbers = f"from {difference.a.g:.3f} to {difference.b.g:.3f}"
            margin = f"more than the combined margin of both intervals, {difference.margin:.3f}"
            unknown = f"; not known to be the same: {', '.join(difference.unknown)}" if difference.unknown else ""
            verdict.regressions.append(f"{name}: g fell by {-change:.3f}, {numbers}, {margin}{unknown}")
        before = [row for row in history if row["cell"] == name and row["state"] == DONE and row["seconds"]]
        # Seconds are comparable only for the same images.
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
    unknown = tuple(name for name, pair in sides.items() if None in pair)
    reasons = [
        "other images" if name == "images" else f"another {name} ({before}, now {now})"
        for name, (before, now) in sides.items()
        if before != now and name not in unknown
    ]
    if not reasons and None not in {a.g, b.g} and a.corrected != b.corrected:
        reasons = ["one g is corrected for selection bias and the other is not"]
    if reasons:
        return Difference(a, b, None, None, None, ", ".join(reasons), unknown)
    change = None if a.g is None or b.g is None else b.g - a.g
    margin = None
    if a.interval is not None and b.interval is not None:
        margin = math.hypot(*((high - low) / 2 for low, high in (a.interval, b.interval)))
    beyond = None if change is None or margin is None else abs(change) > margin
    return Difference(a, b, change, margin, beyond, None, unknown)


def _g(row: Row) -> tuple[float | None, tuple[float, float] | None, bool]:
    """The corrected g if a row has it, else g; its interval; whether it is corrected."""
    for value, low, high in (("corrected_g", "corrected_low", "corrected_high"), ("g", "g_low", "g_high")):
        if row[value] is not None:
            known = row[low] is not None and row[high] is not None
            return row[value], (row[low], row[high]) if known else None, value == "corrected_g"
    return None, None, False
