"""The score stage: compute missing scores."""

import time

from raysep.distributed import placement
from raysep.distributed.cluster_shape import Resources
from raysep.errors import StageError
from raysep.scoring import table
from raysep.scoring.backends import may_use_gpu
from raysep.stages import run_directory, worklist
from raysep.stages.context import RunContext

# The score table is written often, so that a stopped run loses little, but a long table takes at most a twentieth of
# the stage's time.
SAVE_INTERVAL_S, SAVE_SHARE = 2.0, 1 / 20


def pending(run: RunContext) -> bool:
    """Whether a score is missing or obsolete, or nothing is embedded yet."""
    tasks = worklist.tasks_of(run)
    rows = table.read(run.store, names_only=True)
    return not tasks or bool(table.missing(tasks, rows)) or len(table.belonging(tasks, rows)) < len(rows)


def perform(run: RunContext, cluster: Resources) -> None:
    """Compute the missing scores."""
    config, telemetry = run.config, run.telemetry
    tasks = worklist.tasks_of(run)
    if not tasks:
        raise StageError("score: there are no embeddings: run `raysep embed` first")
    rows = table.belonging(tasks, table.read(run.store))
    missing = table.missing(tasks, rows)
    # Large layers first, so that no actor is left alone with one at the end.
    missing.sort(key=lambda task: -task.layer.dim * task.manifest.rows)
    largest = max((4 * task.layer.dim * task.manifest.rows for task in missing), default=0)
    needs_gpu_memory = (
        missing and cluster.gpus and may_use_gpu(config.score.backend) and config.compute.gpus_per_score_actor is None
    )
    gpu_bytes = run.executor.gpu_memory() if needs_gpu_memory else None
    pool = placement.score_pool(config.compute, cluster, config.score, largest, gpu_bytes)
    if short := placement.shortage("score", pool, cluster, placement.score_bytes(config.score, largest)):
        telemetry.line("score", short)
    saved, took = time.monotonic(), 0.0
    with telemetry.stage("score", len(missing), "layers") as bar:

        def on_retry(task: table.Task) -> None:
            telemetry.retried("score", "process")
            telemetry.line("score", f"retrying {task.layer.name}: lost worker", **task.coordinates)

        try:
            for task, new, worker in run.executor.score_all(run.store, config.score, missing, pool, on_retry):
                rows += new
                shard_set = task.shard_set
                telemetry.worked("score", worker, shard_set.model_id)
                telemetry.metrics.scores.labels(shard_set.model_id, shard_set.split).inc(len(new))
                telemetry.metrics.layers_scored.labels(shard_set.model_id, shard_set.split).inc()
                telemetry.event("score", f"{task.layer.name}: {len(new)} scores", **task.coordinates)
                bar.advance(1, f"{shard_set.model_id} step {shard_set.step} {shard_set.split} {task.layer.name}")
                start = time.monotonic()
                if start - saved > max(SAVE_INTERVAL_S, took / SAVE_SHARE):
                    table.write(run.store, rows)
                    saved = time.monotonic()
                    took = saved - start
        finally:
            # A call that is stopped or fails keeps the scores of all finished layers.
            table.write(run.store, rows)
    telemetry.line("score", f"scored {len(missing)} of {len(tasks)} layers; {len(rows)} scores in total")
    run_directory.record(run.store, "score", telemetry.node_work.get("score"), layers=len(tasks), scores=len(rows))
