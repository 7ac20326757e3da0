"""The report stage: write the summary and the report from the results so far, also of an unfinished run."""

from collections import Counter

from raysep.data import splits
from raysep.errors import StageError
from raysep.finetune.trials import TrialResult
from raysep.report.schema import FILE, Ran, Retried, Summary
from raysep.report.summary import summarize
from raysep.scoring import table
from raysep.stages import run_directory, worklist
from raysep.stages.context import RunContext
from raysep.telemetry.prometheus import Metrics


def perform(run: RunContext) -> Summary:
    """Write the summary and the report, unless they are up to date; return the summary."""
    from raysep.report.html import PAGE, write_report

    config, storage = run.config, run.store
    if not storage.exists(run_directory.MANIFEST):
        raise StageError(f"report: {storage.display()} holds no run yet: run `raysep run` first")
    trials, results = worklist.trials_of(storage, config)
    metas = worklist.checkpoints_of(run)
    not_embedded, manifests = worklist.pending_shard_sets(storage, config, metas, run.split)
    tasks = worklist.score_tasks(config, metas, manifests)
    rows = table.belonging(tasks, table.read(storage))
    not_scored = table.missing(tasks, rows)
    unfinished = []
    if not_embedded:
        unfinished.append(
            f"{len(not_embedded)} of {len(not_embedded) + len(manifests)} shard sets are not embedded yet"
        )
    if not_scored:
        unfinished.append(f"{len(not_scored)} of {len(tasks)} layers are not scored yet")
    manifest = storage.read_json(run_directory.MANIFEST)
    ended = {(result.model_id, result.number): result for result in results.values()}
    for plain in manifest["stages"].get("finetune", {}).get("failed", []):
        ended.setdefault((plain["model_id"], plain["number"]), TrialResult(**plain))
    summary = summarize(config, metas, trials, list(ended.values()), manifests, rows, _sizes(run), unfinished)
    ran = [
        Ran(stage=stage, node=node, pieces=int(entry["pieces"]), worker_seconds=entry["seconds"])
        for stage, state in manifest["stages"].items()
        for node, entry in sorted(state.get("nodes", {}).items())
    ]
    retried = [
        Retried(stage=stage, why=why, times=times)
        for stage, counts in manifest.get("retries", {}).items()
        for why, times in sorted(counts.items())
    ]
    # Recorded by the first call, so that the same scores give the same report.
    data = manifest.get("data", {})
    summary = summary.model_copy(
        update={
            "left_out": [*summary.left_out, *data.get("left_out", [])],
            "data_notes": data.get("notes", []),
            "machines": manifest.get("machines", {}),
            "ran": ran,
            "retried": retried,
        }
    )
    publish(summary, run.telemetry.metrics)
    text = summary.model_dump_json(indent=2) + "\n"
    if storage.exists(FILE) and storage.exists(PAGE) and storage.read_bytes(FILE) == text.encode():
        run.telemetry.line("report", "nothing left to do")
        return summary
    write_report(storage, summary)
    run_directory.record(storage, "report", models=len(summary.models))
    run.telemetry.line("report", f"written to {storage.display(PAGE)}")
    return summary


def publish(summary: Summary, metrics: Metrics) -> None:
    """Set the gauges of the results: accuracy and separability of each model (g) and of each layer (g_i)."""
    for model in summary.models:
        if model.seen_accuracy is not None:
            metrics.accuracy.labels(model.model).set(model.seen_accuracy)
        curve = model.curve(summary.headline_protocol, summary.headline_metric, "unseen", model.step)
        if curve is None or curve.choice is None:
            continue
        metrics.g.labels(model.model).set(curve.choice.g)
        if curve.choice.corrected_g is not None:
            metrics.corrected_g.labels(model.model).set(curve.choice.corrected_g)
        for layer in curve.layers:
            if layer.mean is not None:
                metrics.layer_g.labels(model.model, str(layer.layer)).set(layer.mean)


def _sizes(run: RunContext) -> dict[str, Counter[str]]:
    """Number of images per class of each split, in the first draw of unseen classes."""
    return {
        name: Counter(splits.select(run.split, worklist.role_of(name))["class_name"].to_pylist())
        for name in worklist.splits_of(run.config, run.split)
    }
