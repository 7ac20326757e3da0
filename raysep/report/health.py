"""Warnings about layers whose embeddings are degenerate, so that the report shows them beside the scores."""

from collections.abc import Iterable, Sequence
from typing import Any

from raysep.config.names import DIAGNOSTIC, DIAGNOSTICS
from raysep.models.layers import STEM
from raysep.report.curves import mean_and_sd
from raysep.report.schema import LayerHealth
from raysep.scoring.table import Row

# Below this mean adjusted Rand index, k-means starts find different clusterings.
MIN_AGREEMENT = 0.5
MAX_CONSTANT_SHARE, MAX_DUPLICATE_SHARE = 0.5, 0.05


def health_of(rows: Iterable[Row], classes: dict[str, int]) -> list[LayerHealth]:
    """The health of each layer of one model, per split and step: the worst value over trials.

    Args:
        rows: scores of one model; only those of protocol `diagnostic` are used.
        classes: true number of classes of each split.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if row["protocol"] == DIAGNOSTIC:
            key = (row["split"], row["step"], row["layer"])
            groups.setdefault(key, {}).setdefault(row["metric"], []).append(row)
    return [_health(group, classes.get(key[0], 0)) for key, group in sorted(groups.items())]


def _health(group: dict[str, list[Row]], classes: int) -> LayerHealth:
    row = next(iter(group.values()))[0]
    known = {name: [r["value"] for r in group.get(name, []) if r["value"] is not None] for name in DIAGNOSTICS}
    worst: dict[str, Any] = {
        name: int(max(known[name])) if known[name] else None
        for name in ("nonfinite_rows", "constant_features", "duplicate_rows", "empty_clusters")
    }
    worst |= {name: min(known[name]) if known[name] else None for name in ("effective_rank", "start_agreement")}
    return LayerHealth(
        split=row["split"],
        step=row["step"],
        layer=row["layer"],
        name=row["layer_name"],
        pooling=row["pooling"],
        estimated_classes=mean_and_sd(known["estimated_classes"])[0],
        warnings=list(_warnings(worst, row, classes)),
        **worst,
    )


def _warnings(worst: dict[str, Any], row: Row, classes: int) -> Sequence[str]:
    n, dim = row["n"], row["dim"]
    warnings = []
    if worst["nonfinite_rows"]:
        warnings.append(f"{worst['nonfinite_rows']} of {n} embeddings have NaN or infinity, so the layer is not scored")
    constant, duplicates, rank = worst["constant_features"], worst["duplicate_rows"], worst["effective_rank"]
    if constant is not None and constant == dim:
        return [*warnings, f"all images have the same embedding: {_cause_of_constant(row)}"]
    if constant is not None and constant > MAX_CONSTANT_SHARE * dim:
        warnings.append(f"{constant} of {dim} features are constant over the images")
    if duplicates is not None and duplicates > MAX_DUPLICATE_SHARE * n:
        warnings.append(
            f"{duplicates} of {n} images share an embedding with another (duplicate or nearly black images)"
        )
    if rank is not None and rank < classes - 1:
        warnings.append(f"the effective rank is {rank:.1f}, for {classes} classes")
    if worst["empty_clusters"]:
        warnings.append(f"{worst['empty_clusters']} of {classes} clusters are empty")
    agreement = worst["start_agreement"]
    if agreement is not None and agreement < MIN_AGREEMENT:
        warnings.append(f"k-means starts disagree (adjusted Rand index {agreement:.2f})")
    return warnings


def _cause_of_constant(row: Row) -> str:
    """Possible causes of a constant layer, depending on layer and pooling."""
    alike = "the images are alike (one colour, nearly black, duplicates; `raysep validate` shows that)"
    if row["pooling"] == "none":
        return alike
    if row["layer_name"] == STEM and row["pooling"] == "cls":
        return "before the first block the class token is independent of the image"
    if row["layer_name"] == STEM and row["pooling"] == "token0":
        return "before the first block, the vector of the first token or position is almost independent of the image"
    return f"either {alike}, or the layer is dead (mismatched weights, activations that are all 0)"
