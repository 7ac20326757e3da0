"""The summary of each model, from its scores and trials.

As in the paper: mean and population standard deviation over trials first, then the maximum over layers. Its
uncertainty comes from split halves of the images (`selection.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from raysep.config import ModelConfig, RunConfig
from raysep.embedding.shards import Manifest, ShardSet
from raysep.finetune.trials import Trial, TrialResult, pixels_id
from raysep.models.meta import CheckpointMeta
from raysep.report.curves import curves_of, mean_and_sd
from raysep.report.health import health_of
from raysep.report.left_out import left_out
from raysep.report.schema import Baseline, ModelSummary, Summary, find_curve
from raysep.report.text import findings, headline, why_not_compared
from raysep.scoring.table import Row

# Number of images by split and class.
Sizes = Mapping[str, Mapping[str, int]]


def summarize(
    config: RunConfig,
    metas: Sequence[CheckpointMeta],
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    manifests: dict[ShardSet, Manifest],
    rows: Sequence[Row],
    sizes: Sizes,
    unfinished: Sequence[str] = (),
) -> Summary:
    """The summary of a run, complete or not.

    Args:
        metas: the evaluated checkpoints.
        trials, results: all trials, and the results of those that ended.
        manifests: the shard sets that are complete.
        rows: the scores of their layers.
        sizes: number of images by split and class.
        unfinished: messages about unfinished stages.
    """
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    models = [
        _model(config, model, [meta for meta in metas if meta.model.id == model.id], by_model, sizes)
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
        unseen_classes=len(sizes["unseen"]),
        unseen_images=sum(sizes["unseen"].values()),
        models=models,
        findings=findings(models, config.report.metric),
        unreadable_images=dict(sorted(unreadable.items())),
        left_out=[*unfinished, *left_out(config, trials, results, rows, unreadable, sizes)],
    )


def _model(
    config: RunConfig,
    model: ModelConfig,
    metas: Sequence[CheckpointMeta],
    rows: Mapping[str, Sequence[Row]],
    sizes: Sizes,
) -> ModelSummary:
    model_rows = rows.get(model.id, [])
    classes = {split: len(of_class) for split, of_class in sizes.items()}
    steps = sorted({meta.step for meta in metas})
    curves = curves_of(model_rows)
    health = health_of(model_rows, classes)
    accuracies = {step: mean_and_sd([meta.seen_accuracy for meta in metas if meta.step == step]) for step in steps}
    curve = find_curve(curves, config.score.protocols[0], config.report.metric, "unseen", steps[-1])
    best = curve.choice if curve is not None else None
    layers = len(curve.layers) if curve is not None else 0
    best_health = [h for h in health if best and (h.split, h.step, h.layer) == ("unseen", steps[-1], best.layer)]
    warnings = [warning for layer in best_health for warning in layer.warnings]
    several_poolings = curve is not None and len(curve.poolings) > 1
    accuracy, accuracy_sd = accuracies[steps[-1]]
    kinds: list[tuple[Literal["untrained", "pixels"], str]] = [
        ("untrained", f"{model.id}--untrained"),
        ("pixels", pixels_id(config, model)),
    ]
    return ModelSummary(
        model=model.id,
        timm_name=model.name,
        trials=len({meta.trial for meta in metas}),
        seeds=sorted({meta.seed for meta in metas}),
        rotations=len({meta.rotation for meta in metas}),
        hyperparameters=metas[0].hyperparameters,
        step=steps[-1],
        steps=steps,
        # None without fine-tuning: no classifier was trained on the seen classes.
        seen_accuracy=accuracy,
        seen_accuracy_sd=accuracy_sd,
        accuracy_by_step={step: mean for step, (mean, _) in accuracies.items()},
        classes=classes,
        layers=layers,
        best=best,
        headline=headline(
            model.id,
            config.report.metric,
            best,
            layers,
            warnings,
            several_poolings,
            config.score.protocols[0],
            why_not_compared(config.report.metric, sizes["unseen"], config.score.resamples),
        ),
        curves=curves,
        health=health,
        baselines=[Baseline(kind=kind, curves=curves_of(rows[name])) for kind, name in kinds if rows.get(name)],
    )
