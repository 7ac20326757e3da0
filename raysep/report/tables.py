"""The answer as tables: for the terminal and the page, and as CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from rich.table import Table

from raysep.report.schema import Choice, Interval, ModelSummary, Summary

# The metrics of the paper's tables; those that a run has.
TABLE_METRICS = ("nmi", "knn_purity", "linear_probe")
LATEX_SPECIAL = {c: rf"\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX_SPECIAL["\\"] = r"\textbackslash{}"
LAYER_FIELDS = (
    "layer",
    "name",
    "pooling",
    "depth",
    "dim",
    "mean",
    "sd",
    "se",
    "starts_sd",
    "shuffled",
    "p_best",
    "tied",
)


def columns(summary: Summary) -> list[str]:
    """Headings of the answer's table."""
    return [
        "model",
        "seen accuracy",
        f"g ({summary.headline_metric})",
        "corrected g",
        "best layer",
        "tied",
        "last layer worse by",
    ]


def cells(model: ModelSummary) -> list[str]:
    """One model's row, in the order of `columns`. `(!)` marks a best layer to be careful with."""
    best = model.best
    accuracy = number(model.seen_accuracy, model.seen_accuracy_sd)
    if best is None:
        return [model.model, accuracy, "-", "-", "-", "-", "-"]
    tied = "-" if best.tied_layers is None else " ".join(str(i) for i in best.tied_layers if i != best.layer) or "none"
    loss = "-" if best.layer == best.last_layer else number(best.loss) + in_brackets(best.loss_interval)
    return [
        model.model,
        accuracy,
        number(best.g, best.g_sd),
        number(best.corrected_g) + in_brackets(best.corrected_interval),
        f"{best.layer} ({best.name}){' (!)' if model.warnings(best.layer, 'unseen', model.step) else ''}",
        tied,
        loss,
    ]


def terminal(summary: Summary) -> Table:
    """The table as rich prints it."""
    table = Table(title=f"{summary.name}: {summary.unseen_images} images of {summary.unseen_classes} unseen classes")
    for position, heading in enumerate(columns(summary)):
        table.add_column(heading, justify="left" if position in {0, 4, 5} else "right")
    for model in summary.models:
        table.add_row(*cells(model))
    return table


def paper_metrics(model: ModelSummary, protocol: str) -> list[str]:
    """The metrics of the paper's figures that a model was scored by."""
    return [m for m in TABLE_METRICS if any(c.metric == m and c.protocol == protocol for c in model.curves)]


def choices(summary: Summary, model: ModelSummary) -> dict[tuple[str, str], Choice | None]:
    """The choice of each split and each metric of the paper's tables, at the last step."""
    metrics = dict.fromkeys([summary.headline_metric, *TABLE_METRICS])
    found: dict[tuple[str, str], Choice | None] = {}
    for split in model.classes:
        for metric in metrics:
            curve = model.curve(summary.headline_protocol, metric, split, model.step)
            if curve is not None:
                found[split, metric] = curve.choice
    return found


def to_csv(summary: Summary) -> bytes:
    """A row for each model: accuracy, and g by each metric of the paper on each split. Numbers in full."""
    names = list(dict.fromkeys(key for model in summary.models for key in choices(summary, model)))
    fields = ("g", "g_sd", "corrected_g", "layer", "last_g", "loss", "tied_layers")
    head = ["model", "timm_name", "trials", "seeds", "rotations", "hyperparameters", "step"]
    rows: list[Sequence[object]] = [
        [*head, "seen_accuracy", "seen_accuracy_sd"]
        + [f"{split}_{metric}_{field}" for split, metric in names for field in fields]
    ]
    for model in summary.models:
        found = choices(summary, model)
        values = [getattr(model, name) for name in [*head, "seen_accuracy", "seen_accuracy_sd"]]
        for name in names:
            values += [getattr(found.get(name), field, None) for field in fields]
        rows.append(values)
    return csv_of(rows)


def layers_csv(summary: Summary) -> bytes:
    """A row for each model, protocol, metric, split, step and layer, and for each of the baselines'."""
    head = ["model", "baseline", "protocol", "metric", "split", "step", *LAYER_FIELDS, "ci_low", "ci_high", "warnings"]
    rows: list[Sequence[object]] = [head]
    for model in summary.models:
        groups = [("", model.curves), *((baseline.kind, baseline.curves) for baseline in model.baselines)]
        for kind, curves in groups:
            for c in curves:
                for p in c.layers:
                    warnings = "" if kind else "; ".join(model.warnings(p.layer, c.split, c.step))
                    rows.append(
                        [model.model, kind, c.protocol, c.metric, c.split, c.step]
                        + [getattr(p, field) for field in LAYER_FIELDS]
                        + [*(p.interval or (None, None)), warnings]
                    )
    return csv_of(rows)


def paper_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The paper's summary table: accuracy, then g by NMI, neighbours and probe on each split, best layer behind it."""
    names = list(dict.fromkeys(key for model in summary.models for key in choices(summary, model)))
    rows = []
    for model in summary.models:
        found = choices(summary, model)
        row = [model.model, number(model.seen_accuracy, model.seen_accuracy_sd)]
        for name in names:
            choice = found.get(name)
            row.append("-" if choice is None else f"{number(choice.g, choice.g_sd)} [{choice.layer}]")
        rows.append(row)
    return ["model", "accuracy", *(f"g {metric}, {split}" for split, metric in names)], rows


def to_markdown(summary: Summary) -> str:
    """`paper_table` as a Markdown table."""
    head, rows = paper_table(summary)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def to_latex(summary: Summary) -> str:
    """`paper_table` as a LaTeX tabular of the package booktabs."""
    head, rows = paper_table(summary)

    def line(cells: Iterable[str]) -> str:
        return " & ".join(latex(cell) for cell in cells) + r" \\" + "\n"

    body = "".join(line(row) for row in rows)
    return (
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
        + "\n\\toprule\n"
        + line(head)
        + "\\midrule\n"
        + body
        + "\\bottomrule\n\\end{tabular}\n"
    )


def latex(text: str) -> str:
    r"""Text that LaTeX prints as it is.

    >>> latex("a_b ± 5 %")
    'a\\_b $\\pm$ 5 \\%'
    """
    escaped = re.sub(r"[&%$#_{}~^\\]", lambda found: LATEX_SPECIAL[found.group()], text)
    return escaped.replace("±", r"$\pm$")


def number(value: float | None, sd: float | None = None) -> str:
    """Three digits, with the deviation over trials where there is one; `-` for unknown."""
    if value is None:
        return "-"
    return f"{value:.3f}" if sd is None else f"{value:.3f} ± {sd:.3f}"


def in_brackets(interval: Interval | None) -> str:
    """An interval behind its number."""
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def csv_of(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows of a table, of which a spreadsheet runs nothing."""
    out = io.StringIO()
    csv.writer(out).writerows([_plain(value) for value in row] for row in rows)
    return out.getvalue().encode()


def _plain(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={inner}" for key, inner in value.items())
    # Spreadsheets would run what begins like a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
