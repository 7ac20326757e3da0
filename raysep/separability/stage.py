"""The stage: compute the scores that are missing."""

import time

from raysep import planning, runs, work
from raysep.cluster import Resources
from raysep.context import Run
from raysep.errors import StageError
from raysep.separability import table

# The table of scores is rewritten at most this often, so that a stopped run loses little.
SAVE_INTERVAL_S = 2.0


def pending(run: Run) -> bool:
    """Whether a score is missing, is one too many, or there is nothing yet to score."""
    tasks = work.tasks_of(run)
    rows = table.read(run.storage)
    return not tasks or bool(table.missing(tasks, rows)) or len(table.belonging(tasks, rows)) < len(rows)


def perform(run: Run, cluster: Resources) -> None:
    """Compute the scores that are missing."""
    from raysep.separability.actors import score_all

    config, telemetry = run.config, run.telemetry
    tasks = work.tasks_of(run)
    if not tasks:
        raise StageError("score: there are no embeddings: run `raysep embed` first")
    rows = table.belonging(tasks, table.read(run.storage))
    missing = table.missing(tasks, rows)
    # Long layers first, so that the last actor doesn't work alone at the end.
    missing.sort(key=lambda task: -task.layer.dim * task.manifest.rows)
    pool = planning.score_pool(config.compute, cluster, config.score)
    saved = time.monotonic()
    with telemetry.stage("score", len(missing), "layers") as bar:
        for task, new in score_all(run.storage, config.score, missing, pool):
            rows += new
            place = task.shard_set
            bar.advance(1, f"{place.model_id} step {place.step} {place.split} {task.layer.name}")
            if time.monotonic() - saved > SAVE_INTERVAL_S:
                table.write(run.storage, rows)
                saved = time.monotonic()
    table.write(run.storage, rows)
    telemetry.line("score", f"{len(missing)} of {len(tasks)} layers new, {len(rows)} scores")
    runs.record(run.storage, "score", layers=len(tasks), scores=len(rows))
