"""Tables of the results, for the terminal and the HTML page, and as CSV, Markdown and LaTeX."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from raysep.models.layers import label
from raysep.report.schema import Choice, Interval, LayerScore, ModelSummary, Summary

# The metrics of the paper's tables, shown as far as a run has them.
TABLE_METRICS = ("nmi", "knn_purity", "linear_probe")
LATEX_SPECIAL = {c: rf"\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX_SPECIAL["\\"] = r"\textbackslash{}"
LAYER_FIELDS = [name for name in LayerScore.model_fields if name != "interval"]


def columns(summary: Summary) -> list[str]:
    """Headings of the main table."""
    g = f"g ({summary.headline_metric})"
    return ["model", "seen accuracy", g, "corrected g", "best layer", "tied", "last layer worse by"]


def cells(model: ModelSummary) -> list[str]:
    """One model's row, in the order of `columns`. `(!)` marks a best layer with warnings."""
    best = model.best
    accuracy = number(model.seen_accuracy, model.seen_accuracy_sd)
    if best is None:
        return [model.model, accuracy, "-", "-", "-", "-", "-"]
    tied = "-" if best.tied_layers is None else " ".join(str(i) for i in best.tied_layers if i != best.layer) or "none"
    warned = " (!)" if model.warnings(best.layer, "unseen", model.step) else ""
    loss = "-" if best.layer == best.last_layer else number(best.loss) + in_brackets(best.loss_interval)
    return [
        model.model,
        accuracy,
        number(best.g, best.g_sd),
        number(best.corrected_g) + in_brackets(best.corrected_interval),
        f"{best.layer} ({label(best.name, best.same_as)}){warned}",
        tied,
        loss,
    ]


def paper_metrics(model: ModelSummary, protocol: str) -> list[str]:
    """Those metrics of the paper's tables that the model has scores for."""
    return [m for m in TABLE_METRICS if any(c.metric == m and c.protocol == protocol for c in model.curves)]


def choices(summary: Summary, model: ModelSummary) -> dict[tuple[str, str], Choice | None]:
    """The best layer by split and metric, at the last step, for the headline metric and those of the paper's tables."""
    metrics = dict.fromkeys([summary.headline_metric, *TABLE_METRICS])
    choice_of: dict[tuple[str, str], Choice | None] = {}
    for split in model.classes:
        for metric in metrics:
            curve = model.curve(summary.headline_protocol, metric, split, model.step)
            if curve is not None:
                choice_of[split, metric] = curve.choice
    return choice_of


def to_csv(summary: Summary) -> bytes:
    """CSV with a row per model: accuracy, and g for each split and metric of the paper, with all digits."""
    names = list(dict.fromkeys(key for model in summary.models for key in choices(summary, model)))
    fields = ("g", "g_sd", "corrected_g", "layer", "last_g", "loss", "tied_layers")
    head = ["model", "timm_name", "trials", "seeds", "rotations", "hyperparameters", "step"]
    rows: list[Sequence[object]] = [
        [*head, "seen_accuracy", "seen_accuracy_sd"]
        + [f"{split}_{metric}_{field}" for split, metric in names for field in fields]
    ]
    for model in summary.models:
        choice_of = choices(summary, model)
        values = [getattr(model, name) for name in [*head, "seen_accuracy", "seen_accuracy_sd"]]
        for name in names:
            values += [getattr(choice_of.get(name), field, None) for field in fields]
        rows.append(values)
    return csv_of(rows)


def layers_csv(summary: Summary) -> bytes:
    """CSV with a row per model, baseline, protocol, metric, split, step and layer."""
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
    """Headings and rows of the paper's summary table: accuracy, then `g [best layer]` for each split and metric."""
    names = list(dict.fromkeys(key for model in summary.models for key in choices(summary, model)))
    rows = []
    for model in summary.models:
        choice_of = choices(summary, model)
        row = [model.model, number(model.seen_accuracy, model.seen_accuracy_sd)]
        for name in names:
            choice = choice_of.get(name)
            row.append("-" if choice is None else f"{number(choice.g, choice.g_sd)} [{choice.layer}]")
        rows.append(row)
    return ["model", "accuracy", *(f"g {metric}, {split}" for split, metric in names)], rows


def to_markdown(summary: Summary) -> str:
    """`paper_table` as a Markdown table."""
    return markdown_of(*paper_table(summary), text=["model"])


def markdown_of(head: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[str]) -> str:
    """A Markdown table; columns with a heading in `text` are left-aligned, the others right-aligned."""
    lines = [head, ["---" if heading in text else "---:" for heading in head], *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def to_latex(summary: Summary) -> str:
    """`paper_table` as a LaTeX tabular that needs the package booktabs."""
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
    r"""Text with LaTeX's special characters escaped.

    >>> latex("a_b ± 5 %")
    'a\\_b $\\pm$ 5 \\%'
    """
    escaped = re.sub(r"[&%$#_{}~^\\]", lambda match: LATEX_SPECIAL[match.group()], text)
    return escaped.replace("±", r"$\pm$")


def number(value: float | None, sd: float | None = None) -> str:
    """A number with three decimals, and ± its standard deviation if given; `-` for None."""
    if value is None:
        return "-"
    return f"{value:.3f}" if sd is None else f"{value:.3f} ± {sd:.3f}"


def in_brackets(interval: Interval | None) -> str:
    """An interval in brackets, to follow its number; empty for None."""
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def csv_of(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as CSV, with spreadsheet formulas escaped."""
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
    # A leading quote keeps spreadsheets from running text as a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
