"""Messages about everything that a run's summary lacks."""

from collections.abc import Iterable, Mapping, Sequence

from raysep.config import RunConfig
from raysep.config.names import DIAGNOSTIC
from raysep.config.registry import METRICS
from raysep.finetune.trials import Trial, TrialResult, choose
from raysep.report.text import class_counts
from raysep.scoring.table import Row


def left_out(
    config: RunConfig,
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    rows: Sequence[Row],
    unreadable: dict[str, str],
    sizes: Mapping[str, Mapping[str, int]],
) -> Iterable[str]:
    """One line for each failed or stopped trial, each unevaluated model, the unreadable images and undefined scores."""
    ended = {(result.model_id, result.number): result for result in results}
    for trial in trials:
        result = ended.get((trial.model.id, trial.number))
        settings = f"seed {trial.seed}, {trial.hyperparameters}" if trial.hyperparameters else "not fine-tuned"
        name = f"{trial.model.id}, trial {trial.number} ({settings})"
        if result is None:
            yield f"{name}: not trained"
        elif result.state == "failed":
            yield f"{name}: failed: {result.error}"
        elif result.state == "stopped":
            last = max(result.val_accuracy, default=0)
            yield f"{name}: stopped early at step {last} by successive halving"
    chosen = {result.model_id for result in choose(results)}
    for model in config.models:
        if model.id not in chosen:
            yield f"{model.id}: no trial finished, so it was not evaluated"
    if unreadable:
        examples = ", ".join(list(unreadable)[:3])
        yield f"{len(unreadable)} unreadable images were left out, for example {examples}"
    yield from _undefined(config, rows, sizes)


def _undefined(config: RunConfig, rows: Sequence[Row], sizes: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    """Undefined scores: one line for all metrics that are undefined for the same layers."""
    models = {model.id for model in config.models}
    layers_of: dict[tuple[str, str, str, str], set[str]] = {}
    for row in rows:
        if row["value"] is None and row["protocol"] != DIAGNOSTIC and row["model"] in models:
            key = (row["model"], row["split"], row["protocol"], row["metric"])
            layers_of.setdefault(key, set()).add(row["layer_name"])
    together: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = {}
    for (model_id, split, protocol, metric), layers in layers_of.items():
        together.setdefault((model_id, split, protocol, tuple(sorted(layers))), []).append(metric)
    for (model_id, split, protocol, names), metrics in together.items():
        where = ", ".join(names) if len(names) < 4 else f"{len(names)} layers"
        verb = "isn't" if len(metrics) == 1 else "aren't"
        why = _why_undefined(metrics, sizes[split])
        yield f"{model_id}, {split}: {', '.join(metrics)} (protocol {protocol}) {verb} defined for {where} ({why})"


def _why_undefined(metrics: Sequence[str], sizes: Mapping[str, int]) -> str:
    if len(sizes) < 2:
        return f"fewer than two classes: {next(iter(sizes), 'none')}"
    needed = min(METRICS[metric].least_images for metric in metrics)
    small = {name: count for name, count in sizes.items() if count < needed}
    if small:
        return f"too few images per class: {needed} or more are needed; {class_counts(small)}"
    return "NaN or infinity in the embeddings"
