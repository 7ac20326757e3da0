"""The answer as a table: for the terminal, as CSV, and for the page."""

import csv
import io

from rich.table import Table

from raysep.report.summary import ModelSummary, Summary


def columns(summary: Summary) -> list[str]:
    """Headings of the table."""
    return [
        "model",
        "seen accuracy",
        f"g ({summary.headline_metric})",
        "best layer",
        "layers",
        "g of last layer",
    ]


def cells(model: ModelSummary) -> list[str]:
    """One model's row, in the order of `columns`."""
    best = "-" if model.best_layer is None else f"{model.best_layer} ({model.best_layer_name})"
    return [
        model.model,
        number(model.seen_accuracy, model.seen_accuracy_sd),
        number(model.g, model.g_sd),
        best,
        f"0 to {model.layers - 1}" if model.layers else "-",
        number(model.g_last_layer),
    ]


def terminal(summary: Summary) -> Table:
    """The table as rich prints it."""
    table = Table(title=f"{summary.name}: {summary.unseen_images} images of {summary.unseen_classes} unseen classes")
    for position, heading in enumerate(columns(summary)):
        table.add_column(heading, no_wrap=True, justify="left" if position in {0, 3} else "right")
    for model in summary.models:
        table.add_row(*cells(model))
    return table


def to_csv(summary: Summary) -> bytes:
    """A row for each model, numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out)
    names = [
        name
        for name in ModelSummary.model_fields
        if name not in {"curves", "accuracy_by_step", "interval", "tied_layers"}
    ]
    writer.writerow(names)
    for model in summary.models:
        writer.writerow([_plain(getattr(model, name)) for name in names])
    return out.getvalue().encode()


def layers_csv(summary: Summary) -> bytes:
    """A row for each model, protocol, metric, split, step and layer: mean and deviation over trials."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(
        ["model", "protocol", "metric", "split", "step", "layer", "layer_name", "depth", "dim", "mean", "sd"]
    )
    for model in summary.models:
        for c in model.curves:
            for p in c.layers:
                row = [
                    model.model,
                    c.protocol,
                    c.metric,
                    c.split,
                    c.step,
                    p.layer,
                    p.name,
                    p.depth,
                    p.dim,
                    p.mean,
                    p.sd,
                ]
                writer.writerow([_plain(value) for value in row])
    return out.getvalue().encode()


def number(value: float | None, sd: float | None = None) -> str:
    """Three digits, with the deviation over trials where there is one; `-` for unknown."""
    if value is None:
        return "-"
    return f"{value:.3f}" if sd is None else f"{value:.3f} ± {sd:.3f}"


def _plain(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={inner}" for key, inner in value.items())
    return value
