"""What is missing from a run's answer, in words."""

from collections.abc import Iterable, Mapping, Sequence

from raysep.config import RunConfig
from raysep.config.names import DIAGNOSTIC
from raysep.config.registry import METRICS
from raysep.finetune.trials import Trial, TrialResult, choose
from raysep.report.text import counted
from raysep.scoring.table import Row


def left_out(
    config: RunConfig,
    trials: Sequence[Trial],
    results: Sequence[TrialResult],
    rows: Sequence[Row],
    unreadable: dict[str, str],
    sizes: Mapping[str, Mapping[str, int]],
) -> Iterable[str]:
    """What failed, was stopped early, can't be read or isn't defined, a line each."""
    ended = {(result.model_id, result.number): result for result in results}
    for trial in trials:
        result = ended.get((trial.model.id, trial.number))
        of = f"seed {trial.seed}, {trial.hyperparameters}" if trial.hyperparameters else "as it is"
        what = f"{trial.model.id}, trial {trial.number} ({of})"
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
    yield from _undefined(config, rows, sizes)


def _undefined(config: RunConfig, rows: Sequence[Row], sizes: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    """Scores that aren't defined: metrics that are missing for the same layers in one line."""
    models = {model.id for model in config.models}
    layers_of: dict[tuple[str, str, str, str], set[str]] = {}
    for row in rows:
        if row["value"] is None and row["protocol"] != DIAGNOSTIC and row["model"] in models:
            place = (row["model"], row["split"], row["protocol"], row["metric"])
            layers_of.setdefault(place, set()).add(row["layer_name"])
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
        return f"there is one class, {next(iter(sizes), 'none')}"
    needed = min(METRICS[metric].least_images for metric in metrics)
    small = {name: count for name, count in sizes.items() if count < needed}
    if small:
        return f"too few images a class: {needed} or more are needed; {counted(small)}"
    return "NaN or infinity in the embeddings"
