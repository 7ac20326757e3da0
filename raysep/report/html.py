"""The report: summary.json, tables, figures, and a page that needs nothing but itself."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from raysep.report import figures, tables
from raysep.report.summary import FILE, ModelSummary, Summary
from raysep.storage import Storage

PAGE = "report/index.html"


def write_report(run: Storage, summary: Summary) -> None:
    """Write all files of the report; summary.json last."""
    images: list[tuple[str, str, bytes]] = []
    for model in summary.models:
        for protocol in dict.fromkeys(curve.protocol for curve in model.curves):
            title = f"{model.model}, protocol {protocol}"
            images.append((f"layers-{model.model}-{protocol}", title, figures.curves(model, protocol)))
    scatter = figures.accuracy_against_g(summary)
    if scatter is not None:
        images.append(("accuracy-against-g", "Accuracy against g", scatter))
    for name, _, png in images:
        run.write_bytes(f"report/{name}.png", png)
    run.write_bytes("report/summary.csv", tables.to_csv(summary))
    run.write_bytes("report/layers.csv", tables.layers_csv(summary))
    run.write_bytes(PAGE, render(summary, [(title, png) for _, title, png in images]).encode())
    run.write_bytes(FILE, (summary.model_dump_json(indent=2) + "\n").encode())


def render(summary: Summary, images: list[tuple[str, bytes]]) -> str:
    """The page. Names of models, classes and images are escaped."""
    environment = Environment(loader=PackageLoader("raysep.report", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        summary=summary,
        headings=tables.columns(summary),
        rows=[tables.cells(model) for model in summary.models],
        sentences=[sentence(model, summary) for model in summary.models],
        figures=[(title, base64.b64encode(png).decode()) for title, png in images],
    )


def sentence(model: ModelSummary, summary: Summary) -> str:
    """What a model's numbers say."""
    if model.g is None or model.best_layer is None or model.g_last_layer is None:
        return f"{model.model}: no layer could be scored."
    text = f"{model.model}: the best layer is {model.best_layer} ({model.best_layer_name}) of 0 to {model.layers - 1}"
    text += f", with {summary.headline_metric} {model.g:.3f}"
    if model.best_layer == model.layers - 1:
        return text + "; it is the last one."
    return text + f"; the last layer has {model.g_last_layer:.3f}, {model.g - model.g_last_layer:.3f} less."
