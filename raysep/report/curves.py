"""Curves of scores over layers: first average over trials, then find the best layer.

T trials, L layers, S random splits of the images into halves.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from raysep.config.names import DIAGNOSTIC
from raysep.config.registry import METRICS
from raysep.models.layers import OWN
from raysep.report.schema import Choice, Curve, LayerScore
from raysep.report.selection import Selection, select
from raysep.scoring.intervals import interval
from raysep.scoring.table import Row


def curves_of(rows: Iterable[Row]) -> list[Curve]:
    """The curves of one model, sorted by protocol, metric (in the order of `METRICS`), split and step."""
    groups: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in rows:
        if row["protocol"] != DIAGNOSTIC:
            key = (row["protocol"], row["metric"], row["split"], row["step"])
            groups.setdefault(key, {}).setdefault(row["layer"], []).append(row)
    order_of = {name: position for position, name in enumerate(METRICS)}
    order = sorted(groups, key=lambda key: (key[0], order_of[key[1]], *key[2:]))
    return [_curve(key, [groups[key][layer] for layer in sorted(groups[key])]) for key in order]


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation of the values that aren't None; no deviation for a single value."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known)) if len(known) > 1 else None


def _curve(key: tuple[Any, ...], layers: Sequence[list[Row]]) -> Curve:
    """One curve, from the rows of each layer, one row per trial."""
    protocol, metric, split, step = key
    means = [mean_and_sd([row["value"] for row in group]) for group in layers]
    known = [position for position, (mean, _) in enumerate(means) if mean is not None]
    best = max(known, key=lambda position: (means[position][0], -position)) if known else None
    last = _last(layers, best)
    selection, compared = selection_of([layers[position] for position in known], known, last, metric)
    points = []
    for position, group in enumerate(layers):
        mean, sd = means[position]
        row = group[0]
        index = compared.index(position) if position in compared else None
        se = float(selection.se[index]) if selection and index is not None else _single_trial_se(group)
        span = float(selection.span[index]) if selection and index is not None else math.inf
        points.append(
            LayerScore(
                layer=row["layer"],
                name=row["layer_name"],
                pooling=row["pooling"],
                same_as=row["same_as"],
                depth=row["depth"],
                dim=row["dim"],
                mean=mean,
                sd=sd,
                se=se,
                interval=interval(metric, mean, se, row["n"], span) if mean is not None and se is not None else None,
                starts_sd=mean_and_sd([row["starts_sd"] for row in group])[0],
                shuffled=mean_and_sd([row["shuffled"] for row in group])[0],
                p_best=float(selection.p_best[index]) if selection and index is not None else None,
                tied=index in selection.tied if selection and index is not None else None,
            )
        )
    choice = None if best is None else _choice(points, best, last, selection, compared)
    return Curve(protocol=protocol, metric=metric, split=split, step=step, layers=points, choice=choice)


def _single_trial_se(group: Sequence[Row]) -> float | None:
    """The standard error of a single trial; None for several, whose errors are correlated."""
    se: float | None = group[0]["se"] if len(group) == 1 else None
    return se


def _last(layers: Sequence[list[Row]], best: int | None) -> int:
    """Position of the head, else of the last layer with the pooling of the best layer."""
    pooling = layers[best if best is not None else -1][0]["pooling"]
    return max(position for position, group in enumerate(layers) if group[0]["pooling"] in {pooling, OWN})


def selection_of(
    layers: Sequence[list[Row]], known: list[int], last: int, metric: str
) -> tuple[Selection | None, list[int]]:
    """Compare the layers that have split-half scores in every trial; also returns their positions in the curve."""
    trials = max((len(group) for group in layers), default=0)
    usable = [
        (position, group)
        for position, group in zip(known, layers, strict=True)
        if len(group) == trials and all(row["halves"] for row in group)
    ]
    if not usable or trials == 0:
        return None, []
    groups = [sorted(group, key=lambda row: row["trial"]) for _, group in usable]
    values = np.array([[row["value"] for row in group] for group in groups]).T
    errors = np.array([[row["se"] for row in group] for group in groups]).T
    halves = np.array([[row["halves"] for row in group] for group in groups], dtype=np.float64)
    halves = halves.reshape(*halves.shape[:2], -1, 2).swapaxes(0, 1)
    compared = [position for position, _ in usable]
    end = compared.index(last) if last in compared else len(compared) - 1
    return select(metric, values, halves, errors, groups[0][0]["n"], end), compared


def _choice(
    points: Sequence[LayerScore], best: int, last: int, selection: Selection | None, compared: list[int]
) -> Choice:
    point = points[best]
    assert point.mean is not None
    comparison = {}
    if selection is not None and best in compared:
        comparison = {
            "corrected_g": selection.corrected,
            "corrected_interval": selection.corrected_interval,
            "tied_layers": [points[compared[index]].layer for index in selection.tied],
        }
        if last in compared and last != best:
            comparison |= {"loss": selection.loss, "loss_interval": selection.loss_interval}
    return Choice(
        layer=point.layer,
        name=point.name,
        pooling=point.pooling,
        same_as=point.same_as,
        depth=point.depth,
        g=point.mean,
        g_sd=point.sd,
        interval=point.interval,
        starts_sd=point.starts_sd,
        shuffled=point.shuffled,
        p_best=point.p_best,
        last_layer=points[last].layer,
        last_g=points[last].mean,
        **comparison,
    )
