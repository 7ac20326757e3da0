"""The report: summary.json, tables, figures, and a self-contained HTML page."""

import base64
from collections.abc import Iterator

from jinja2 import Environment, PackageLoader, StrictUndefined

from raysep.report import figures, overview, tables
from raysep.report.schema import FILE, LayerHealth, ModelSummary, Summary
from raysep.storage.store import Storage

PAGE = "report/index.html"
# File name, title, PNG.
Figure = tuple[str, str, bytes]


def write_report(store: Storage, summary: Summary) -> None:
    """Write all files of the report, summary.json last."""
    drawn = list(draw(summary))
    for name, _, png in drawn:
        store.write_bytes(f"report/{name}.png", png)
    store.write_bytes("report/summary.csv", tables.to_csv(summary))
    store.write_bytes("report/summary.md", tables.to_markdown(summary).encode())
    store.write_bytes("report/summary.tex", tables.to_latex(summary).encode())
    store.write_bytes("report/layers.csv", tables.layers_csv(summary))
    store.write_bytes(PAGE, render(summary, [(title, png) for _, title, png in drawn]).encode())
    store.write_bytes(FILE, (summary.model_dump_json(indent=2) + "\n").encode())


def draw(summary: Summary) -> Iterator[Figure]:
    """Draw every figure that the summary has data for."""
    for split in ("unseen", "seen"):
        if all(split in model.classes for model in summary.models):
            yield from _if_drawn(f"depth-{split}", f"All models, {split} classes", overview.compared(summary, split))
    yield from _if_drawn("accuracy-against-g", "Accuracy against g", overview.accuracy_against_g(summary))
    for model in summary.models:
        for protocol in dict.fromkeys(curve.protocol for curve in model.curves):
            title = f"{model.model}, protocol {protocol}"
            yield from _if_drawn(f"layers-{model.model}-{protocol}", title, figures.curves(model, protocol))
            yield from _if_drawn(
                f"steps-{model.model}-{protocol}", f"{title}: over training", figures.steps(model, protocol)
            )
        protocol = summary.headline_protocol
        yield from _if_drawn(
            f"training-{model.model}", f"{model.model}: accuracy and g", overview.training(model, protocol)
        )
        yield from _if_drawn(
            f"few-shot-{model.model}", f"{model.model}: few labelled images", overview.few_shot(model, protocol)
        )


def render(summary: Summary, images: list[tuple[str, bytes]]) -> str:
    """The HTML page, with names of models, classes and images escaped."""
    environment = Environment(loader=PackageLoader("raysep.report", "."), autoescape=True, undefined=StrictUndefined)
    paper_headings, paper_rows = tables.paper_table(summary)
    return environment.get_template("page.html.j2").render(
        summary=summary,
        headings=tables.columns(summary),
        rows=[tables.cells(model) for model in summary.models],
        paper_headings=paper_headings,
        paper_rows=paper_rows,
        warned=[(model.model, health) for model in summary.models for health in _warned(model)],
        classes=[
            (model.model, model.classes["unseen"], _estimates(model)) for model in summary.models if _estimates(model)
        ],
        figures=[(title, base64.b64encode(png).decode()) for title, png in images],
    )


def _if_drawn(name: str, title: str, png: bytes | None) -> Iterator[Figure]:
    if png is not None:
        yield name, title, png


def _warned(model: ModelSummary) -> list[LayerHealth]:
    """Layers with warnings at the last step."""
    return [health for health in model.health if health.warnings and health.step == model.step]


def _estimates(model: ModelSummary) -> list[str]:
    """The estimated number of unseen classes per layer, at the last step."""
    return [
        f"{health.estimated_classes:g}"
        for health in model.health
        if (health.split, health.step) == ("unseen", model.step) and health.estimated_classes is not None
    ]
