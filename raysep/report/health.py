"""Which layers are sick, and in words why: a sick layer is never compared with the others in silence."""

from collections.abc import Iterable, Sequence
from typing import Any

from raysep.config.names import DIAGNOSTIC, DIAGNOSTICS
from raysep.models.layers import STEM
from raysep.report.curves import mean_and_sd
from raysep.report.schema import LayerHealth
from raysep.scoring.table import Row

# Below this agreement (adjusted Rand index) a k-means start hardly says what another one does.
MIN_AGREEMENT = 0.5
MAX_CONSTANT_SHARE, MAX_DUPLICATE_SHARE = 0.5, 0.05


def health_of(rows: Iterable[Row], classes: dict[str, int]) -> list[LayerHealth]:
    """The health of each layer of one model, by split and step, the worst over trials.

    Args:
        rows: of one model; those of protocol `diagnostic` count.
        classes: true number of classes of each split.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        if row["protocol"] == DIAGNOSTIC:
            place = (row["split"], row["step"], row["layer"])
            groups.setdefault(place, {}).setdefault(row["metric"], []).append(row)
    return [_health(group, classes.get(place[0], 0)) for place, group in sorted(groups.items())]


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
    found = []
    if worst["nonfinite_rows"]:
        found.append(f"{worst['nonfinite_rows']} of {n} images have NaN or infinity, so it is not scored")
    constant, duplicates, rank = worst["constant_features"], worst["duplicate_rows"], worst["effective_rank"]
    if constant is not None and constant == dim:
        return [*found, f"it is the same for every image: {_cause_of_one_value(row)}"]
    if constant is not None and constant > MAX_CONSTANT_SHARE * dim:
        found.append(f"{constant} of {dim} features are the same for every image")
    if duplicates is not None and duplicates > MAX_DUPLICATE_SHARE * n:
        found.append(
            f"{duplicates} of {n} images have the same vector as another (the same picture twice, or too dark)"
        )
    if rank is not None and rank < classes - 1:
        found.append(f"its effective rank is {rank:.1f}, for {classes} classes")
    if worst["empty_clusters"]:
        found.append(f"{worst['empty_clusters']} of {classes} clusters are empty")
    agreement = worst["start_agreement"]
    if agreement is not None and agreement < MIN_AGREEMENT:
        found.append(f"k-means starts disagree (adjusted Rand index {agreement:.2f})")
    return found


def _cause_of_one_value(row: Row) -> str:
    """What can make a layer constant, for this layer and pooling."""
    alike = "the images look alike (one colour, nearly black, one picture: `raysep validate` says so)"
    if row["pooling"] == "none":
        return alike
    if row["layer_name"] == STEM and row["pooling"] == "cls":
        return "the class token before the first block has seen nothing of an image yet"
    if row["layer_name"] == STEM and row["pooling"] == "token0":
        return "the first token or corner before the first block has seen next to nothing of an image yet"
    return f"either {alike}, or the layer is dead (weights that don't fit the model, activations that are all 0)"
