"""Models ranked by corrected g, for each domain, protocol and override: CSV, Markdown and HTML."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from raysep.report.tables import csv_of, number
from raysep.storage.store import Storage
from raysep.sweeps.compare import Verdict, of_rows
from raysep.sweeps.results import DONE, Row

CSV, MARKDOWN, PAGE = "leaderboard.csv", "leaderboard.md", "index.html"


@dataclass(frozen=True)
class Place:
    """A model's place among those that were asked the same question.

    Attributes:
        question: domain, protocol and override.
        g: corrected g, mean over seeds; g_low and g_high are means of the seeds' bounds, since other seeds don't make
            up for few images.
        g_sd: population standard deviation over seeds; None for one.
        best_layer: of most seeds.
        seconds: wall clock of all its seeds together.
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


def ranked(rows: Sequence[Row]) -> list[Place]:
    """The leaderboard of a round, question by question, the best model first."""
    # By fields: joined, two questions could read alike.
    groups: dict[tuple[str | None, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if row["state"] == DONE:
            question = tuple(row[axis] or None for axis in ("domain", "protocol", "override"))
            groups.setdefault(question, {}).setdefault(row["model"], []).append(row)
    found = []
    for question, models in groups.items():
        words = ", ".join(value for value in question if value) or "all"
        places = [place for model, own in models.items() if (place := _place(words, model, own))]
        places.sort(key=lambda place: (-place.g, place.model))
        found += [Place(rank, *astuple(place)[1:]) for rank, place in enumerate(places, start=1)]
    return found


def write(report: Storage, title: str, rows: Sequence[Row], verdict: Verdict, damaged: Sequence[str] = ()) -> None:
    """The leaderboard, what failed, what the baseline says, and which files of the results table were left out."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    places = ranked(rows)
    failed = [row for row in rows if row["state"] != DONE]
    report.write_bytes(CSV, to_csv(places))
    report.write_bytes(MARKDOWN, to_markdown(places).encode())
    template = Environment(
        loader=PackageLoader("raysep.sweeps", ""), autoescape=select_autoescape(["html", "j2"]), trim_blocks=True
    ).get_template("leaderboard.html.j2")
    page = template.render(
        title=title,
        head=HEAD,
        places=[cells(place) for place in places],
        failed=failed,
        verdict=verdict,
        damaged=damaged,
    )
    report.write_bytes(PAGE, page.encode())


def to_csv(places: Sequence[Place]) -> bytes:
    """Every field of every place."""
    return csv_of([[field.name for field in fields(Place)], *(astuple(place) for place in places)])


HEAD = ("rank", "question", "model", "corrected g", "best layer", "seen accuracy", "seeds", "seconds")


def to_markdown(places: Sequence[Place]) -> str:
    """As a table."""
    lines = [HEAD, ["---:", "---", "---", *["---:"] * (len(HEAD) - 3)], *(cells(place) for place in places)]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def cells(place: Place) -> list[str]:
    """A place as `HEAD` has its columns."""
    interval = "" if place.g_low is None else f" ({place.g_low:.3f} to {place.g_high:.3f})"
    layer = "-" if place.best_layer is None else f"{place.best_layer} of {place.last_layer}"
    return [
        str(place.rank),
        place.question,
        place.model,
        number(place.g, place.g_sd) + interval,
        layer,
        number(place.seen_accuracy),
        str(place.seeds),
        f"{place.seconds:.0f}",
    ]


def _place(question: str, model: str, rows: Sequence[Row]) -> Place | None:
    points = [point for point in of_rows(rows) if point.g is not None]
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
    return Place(
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
