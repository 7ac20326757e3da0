"""summary.json: the answer for each model, from the scores and the trials.

As the paper does it: mean and population standard deviation over trials first, then the maximum over
layers. Not computed yet, and so None: intervals and the set of tied layers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from raysep.config import RunConfig
from raysep.embed.shards import Manifest, ShardSet
from raysep.finetune.trials import Trial, TrialResult, choose
from raysep.models.meta import CheckpointMeta
from raysep.separability.names import METRICS, Metric, Protocol
from raysep.separability.table import Row

FILE = "summary.json"


class Part(BaseModel):
    """A frozen part of the summary."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerScore(Part):
    """g_i of one layer: mean over trials, and population standard deviation (None for one trial)."""

    layer: int
    name: str
    depth: float
    dim: int
    mean: float | None
    sd: float | None


class Curve(Part):
    """All layers under one protocol, metric and split at one step."""

    protocol: Protocol
    metric: Metric
    split: str
    step: int
    layers: list[LayerScore]

    def best(self) -> LayerScore | None:
        """The layer with the highest mean, the earliest of equals; None if no layer has a value."""
        known = [layer for layer in self.layers if layer.mean is not None]
        return max(known, key=lambda layer: (layer.mean, -layer.layer)) if known else None


class ModelSummary(Part):
    """One model at the last step of its training.

    Attributes:
        seen_accuracy: mean over trials of the accuracy on seen_test, 0 to 1; None if it wasn't fine-tuned.
        g: highest g_i of the headline's protocol and metric over the layers, on the unseen images.
        interval: 95 % interval of g; None: not computed.
        tied_layers: layers that can't be told from the best one; None: not computed.
        accuracy_by_step: mean over trials.
    """

    model: str
    timm_name: str
    trials: int
    seeds: list[int]
    hyperparameters: dict[str, float]
    step: int
    seen_accuracy: float | None
    seen_accuracy_sd: float | None
    g: float | None
    g_sd: float | None
    best_layer: int | None
    best_layer_name: str | None
    best_depth: float | None
    layers: int
    g_last_layer: float | None
    interval: tuple[float, float] | None = None
    tied_layers: list[int] | None = None
    accuracy_by_step: dict[int, float | None]
    curves: list[Curve]

    def curve(self, protocol: Protocol, metric: Metric, split: str, step: int) -> Curve | None:
        """One curve, or None where it wasn't scored."""
        wanted = (protocol, metric, split, step)
        return next((c for c in self.curves if (c.protocol, c.metric, c.split, c.step) == wanted), None)


class Summary(Part):
    """A whole run. `left_out` says in words what failed, was stopped, can't be read or isn't defined."""

    name: str
    headline_protocol: Protocol
    headline_metric: Metric
    unseen_classes: int
    unseen_images: int
    models: list[ModelSummary]
    unreadable_images: dict[str, str]
    left_out: list[str]


def summarize(
    config: RunConfig,
    metas: Sequence[CheckpointMeta],
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    manifests: dict[ShardSet, Manifest],
    rows: Sequence[Row],
    unseen: tuple[int, int],
    unfinished: Sequence[str] = (),
) -> Summary:
    """The summary of what a run has, complete or not.

    Args:
        metas: the checkpoints that are evaluated.
        trials, results: all trials, and how they ended so far.
        manifests: the shard sets that are there.
        rows: the scores of those.
        unseen: number of unseen classes and images.
        unfinished: what the stages before have not done yet, in words.
    """
    models = [
        _model(config, [meta for meta in metas if meta.model.id == model.id], rows)
        for model in config.models
        if any(meta.model.id == model.id for meta in metas)
    ]
    unreadable: dict[str, str] = {}
    for result in results:
        unreadable |= result.unreadable
    for manifest in manifests.values():
        unreadable |= manifest.failed
    return Summary(
        name=config.name,
        headline_protocol=config.score.protocols[0],
        headline_metric=config.report.metric,
        unseen_classes=unseen[0],
        unseen_images=unseen[1],
        models=models,
        unreadable_images=dict(sorted(unreadable.items())),
        left_out=[*unfinished, *_left_out(config, trials, results, rows, unreadable)],
    )


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation of what is known; no deviation of a single value."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known)) if len(known) > 1 else None


def _model(config: RunConfig, metas: Sequence[CheckpointMeta], rows: Sequence[Row]) -> ModelSummary:
    first = metas[0]
    own = [row for row in rows if row["model"] == first.model.id]
    steps = sorted({meta.step for meta in metas})
    curves = _curves(own)
    accuracies = {step: mean_and_sd([meta.seen_accuracy for meta in metas if meta.step == step]) for step in steps}
    headline = next(
        (
            curve
            for curve in curves
            if (curve.protocol, curve.metric, curve.split, curve.step)
            == (config.score.protocols[0], config.report.metric, "unseen", steps[-1])
        ),
        None,
    )
    best = headline.best() if headline else None
    accuracy, accuracy_sd = accuracies[steps[-1]]
    return ModelSummary(
        model=first.model.id,
        timm_name=first.model.name,
        trials=len({meta.trial for meta in metas}),
        seeds=sorted({meta.seed for meta in metas}),
        hyperparameters=first.hyperparameters,
        step=steps[-1],
        # Without fine-tuning there is no classifier that was trained on the seen classes.
        seen_accuracy=accuracy,
        seen_accuracy_sd=accuracy_sd,
        g=best.mean if best else None,
        g_sd=best.sd if best else None,
        best_layer=best.layer if best else None,
        best_layer_name=best.name if best else None,
        best_depth=best.depth if best else None,
        layers=len(headline.layers) if headline else 0,
        g_last_layer=headline.layers[-1].mean if headline else None,
        accuracy_by_step={step: mean for step, (mean, _) in accuracies.items()},
        curves=curves,
    )


def _curves(rows: Sequence[Row]) -> list[Curve]:
    groups: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in rows:
        place = (row["protocol"], row["metric"], row["split"], row["step"])
        groups.setdefault(place, {}).setdefault(row["layer"], []).append(row)
    curves = []
    # Metrics in the order in which they are documented, not by their names.
    for (protocol, metric, split, step), layers in sorted(
        groups.items(), key=lambda item: (item[0][0], METRICS.index(item[0][1]), *item[0][2:])
    ):
        points = []
        for layer, group in sorted(layers.items()):
            mean, sd = mean_and_sd([row["value"] for row in group])
            row = group[0]
            points.append(
                LayerScore(layer=layer, name=row["layer_name"], depth=row["depth"], dim=row["dim"], mean=mean, sd=sd)
            )
        curves.append(Curve(protocol=protocol, metric=metric, split=split, step=step, layers=points))
    return curves


def _left_out(
    config: RunConfig,
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    rows: Sequence[Row],
    unreadable: dict[str, str],
) -> Iterable[str]:
    ended = {(result.model_id, result.number): result for result in results}
    for trial in trials:
        result = ended.get((trial.model.id, trial.number))
        what = f"{trial.model.id}, trial {trial.number} (seed {trial.seed}, {trial.hyperparameters})"
        if result is None:
            yield f"{what}: not trained"
        elif result.state == "failed":
            yield f"{what}: failed: {result.error}"
        elif result.state == "stopped":
            last = max(result.val_accuracy, default=0)
            yield f"{what}: stopped early at step {last} by successive halving"
    chosen = {result.model_id for result in choose(results)}
    for model in config.models:
        if model.id not in chosen:
            yield f"{model.id}: no trial finished, so it was not evaluated"
    if unreadable:
        examples = ", ".join(list(unreadable)[:3])
        yield f"{len(unreadable)} images can't be read and were left out, for example {examples}"
    undefined: dict[tuple[str, str, str, str], set[str]] = {}
    for row in rows:
        if row["value"] is None:
            place = (row["model"], row["split"], row["metric"], row["protocol"])
            undefined.setdefault(place, set()).add(row["layer_name"])
    for (model_id, split, metric, protocol), layers in undefined.items():
        where = ", ".join(sorted(layers)) if len(layers) < 4 else f"{len(layers)} layers"
        why = "NaN or infinity, or too few images a class"
        yield f"{model_id}, {split}: {metric} (protocol {protocol}) isn't defined for {where} ({why})"
