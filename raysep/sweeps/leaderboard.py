"""Leaderboard of models by corrected separability g, per domain, protocol and override, as CSV, Markdown and HTML."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from raysep.report.tables import csv_of, markdown_of, number
from raysep.storage.store import Storage
from raysep.sweeps.compare import Verdict, points_of_rows
from raysep.sweeps.results import DONE, Row

CSV, MARKDOWN, PAGE = "leaderboard.csv", "leaderboard.md", "index.html"


@dataclass(frozen=True)
class Entry:
    """A model's rank among the models with the same domain, protocol and override.

    Attributes:
        question: domain, protocol and override.
        g: corrected g, mean over seeds; g_low and g_high are interval bounds, mean over seeds, as all seeds share the
            images.
        g_sd: population standard deviation over seeds; None for one seed.
        best_layer: the most frequent one over seeds.
        seconds: wall-clock time, summed over seeds.
    """

    rank: int
    question: str
    model: str
    g: float
    g_low: float | None
    g_high: float | None
    g_sd: float | None
    best_layer: int | None
    last_layer: int | None
    seen_accuracy: float | None
    seeds: int
    seconds: float


def ranked(rows: Sequence[Row]) -> list[Entry]:
    """The leaderboard of a round, by question, the best model first."""
    # A tuple, as joined texts of two questions could be equal.
    groups: dict[tuple[str | None, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if row["state"] == DONE:
            question = tuple(row[axis] or None for axis in ("domain", "protocol", "override"))
            groups.setdefault(question, {}).setdefault(row["model"], []).append(row)
    leaderboard = []
    for question, models in groups.items():
        name = ", ".join(value for value in question if value) or "all"
        entries = [entry for model, of_model in models.items() if (entry := _entry(name, model, of_model))]
        entries.sort(key=lambda entry: (-entry.g, entry.model))
        leaderboard += [Entry(rank, *astuple(entry)[1:]) for rank, entry in enumerate(entries, start=1)]
    return leaderboard


def write(report: Storage, title: str, rows: Sequence[Row], verdict: Verdict, damaged: Sequence[str] = ()) -> None:
    """Write the leaderboard; its HTML also has failed cells, the verdict and damaged files of the results table."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    entries = ranked(rows)
    failed = [row for row in rows if row["state"] != DONE]
    report.write_bytes(CSV, to_csv(entries))
    report.write_bytes(MARKDOWN, markdown_of(HEAD, map(cells, entries), text=["question", "model"]).encode())
    template = Environment(
        loader=PackageLoader("raysep.sweeps", ""), autoescape=select_autoescape(["html", "j2"]), trim_blocks=True
    ).get_template("leaderboard.html.j2")
    page = template.render(
        title=title,
        head=HEAD,
        entries=[cells(entry) for entry in entries],
        failed=failed,
        verdict=verdict,
        damaged=damaged,
    )
    report.write_bytes(PAGE, page.encode())


def to_csv(entries: Sequence[Entry]) -> bytes:
    """All fields of all entries as CSV."""
    return csv_of([[field.name for field in fields(Entry)], *(astuple(entry) for entry in entries)])


HEAD = ("rank", "question", "model", "corrected g", "best layer", "seen accuracy", "seeds", "seconds")


def cells(entry: Entry) -> list[str]:
    """An entry's values for the columns of `HEAD`."""
    interval = "" if entry.g_low is None else f" ({entry.g_low:.3f} to {entry.g_high:.3f})"
    layer = "-" if entry.best_layer is None else f"{entry.best_layer} of {entry.last_layer}"
    return [
        str(entry.rank),
        entry.question,
        entry.model,
        number(entry.g, entry.g_sd) + interval,
        layer,
        number(entry.seen_accuracy),
        str(entry.seeds),
        f"{entry.seconds:.0f}",
    ]


def _entry(question: str, model: str, rows: Sequence[Row]) -> Entry | None:
    points = [point for point in points_of_rows(rows) if point.g is not None]
    if not points:
        return None
    values = [point.g for point in points if point.g is not None]
    intervals = [point.interval for point in points if point.interval is not None]
    low, high = (
        (statistics.fmean(bound) for bound in zip(*intervals, strict=True))
        if len(intervals) == len(points)
        else (None, None)
    )
    accuracies = [point.accuracy for point in points if point.accuracy is not None]
    layers = Counter(point.best_layer for point in points)
    return Entry(
        rank=0,
        question=question,
        model=model,
        g=statistics.fmean(values),
        g_low=low,
        g_high=high,
        g_sd=statistics.pstdev(values) if len(values) > 1 else None,
        best_layer=layers.most_common(1)[0][0],
        last_layer=rows[0]["last_layer"],
        seen_accuracy=statistics.fmean(accuracies) if accuracies else None,
        seeds=len(points),
        seconds=sum(point.seconds or 0.0 for point in points),
    )
