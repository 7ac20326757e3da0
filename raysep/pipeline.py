"""The stages in order. Each reads what the one before it wrote, and does only what is missing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysep import checks, planning, runs, work
from raysep.cluster import Resources, connection
from raysep.config import RunConfig, Split
from raysep.data import splits
from raysep.data.images import check_share
from raysep.data.sources import Source
from raysep.embed.shards import Manifest, ShardSet, commit
from raysep.errors import StageError
from raysep.finetune.trials import Trial, TrialResult, choose, write_result
from raysep.models.meta import CheckpointMeta
from raysep.report.summary import FILE as SUMMARY
from raysep.report.summary import Summary, summarize
from raysep.separability import table
from raysep.storage import Storage
from raysep.telemetry import Telemetry

STAGES = ("finetune", "embed", "score", "report")
# Checkpoints of a model that one actor holds at once, so that they share each decoded image.
CHECKPOINTS_AT_ONCE = 8
# The table of scores is rewritten at most this often, so that a stopped run loses little.
SAVE_INTERVAL_S = 2.0


@dataclass(frozen=True)
class Run:
    """A run that may be worked on: checked, and with its directory begun."""

    config: RunConfig
    storage: Storage
    source: Source
    split: pa.Table
    telemetry: Telemetry
    verbose: bool = False


def run(
    config: RunConfig,
    stages: Sequence[str] = STAGES,
    *,
    config_name: str = "configuration",
    verbose: bool = False,
    telemetry: Telemetry | None = None,
) -> Summary | None:
    """Do what is missing of the stages.

    Ray is started, or joined, only if there is work for it.

    Args:
        config: the run.
        stages: of `STAGES`, in their order.
        config_name: for messages.
        verbose: let Ray's own lines through.
        telemetry: where progress goes.

    Returns:
        The summary if `report` is among the stages.

    Raises:
        UsageError: refused before any work, with nothing written.
        StageError: a stage failed; what was committed before it stays valid.
    """
    telemetry = telemetry or Telemetry()
    storage = Storage(config.run_dir)
    # A directory that is this run's already was checked when it was begun: its models need no second look.
    if storage.exists(runs.CONFIG):
        source, split = checks.check_data(config)
        begun = runs.check_belongs(storage, config, split)
    else:
        fetched = sum(model.pretrained is True for model in config.models)
        hub = f", weights of {fetched} from the hub" if fetched else ""
        telemetry.line("checks", f"images and {len(config.models)} model(s){hub}")
        source, split = checks.check_all(config, config_name)
        begun = runs.check_belongs(storage, config, split)
    current = Run(_with_absolute_paths(config), storage, source, split, telemetry, verbose)
    if any(PENDING[stage](current) for stage in stages if stage in WORK):
        telemetry.line("ray", "starting")
        with connection(verbose) as cluster:
            planning.check(config.compute, cluster)
            telemetry.line("ray", f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs on {len(cluster.nodes)} node(s)")
            if not begun:
                runs.begin(storage, config, split)
            counts = {role: splits.with_role(split, role).num_rows for role in ("seen_train", "seen_test", "unseen")}
            telemetry.line("data", ", ".join(f"{role} {count}" for role, count in counts.items()) + " images")
            for stage in stages:
                # Asked again at its turn: what a stage before it did may have left it something to do.
                if stage in WORK and PENDING[stage](current):
                    WORK[stage](current, cluster)
                elif stage in WORK:
                    telemetry.line(stage, "nothing left to do")
    else:
        for stage in stages:
            if stage in WORK:
                telemetry.line(stage, "nothing left to do")
    return report(current) if "report" in stages else None


def finetune(run: Run, cluster: Resources) -> None:
    """Train the trials that have not ended."""
    from raysep.finetune.tune import Job, fit, sample

    config, telemetry = run.config, run.telemetry
    trials, found = work.trials_of(run.storage, config, sample)
    pending = [trial for trial in trials if (trial.model.id, trial.number) not in found]
    job = Job(config.finetune, run.storage, run.split, run.source, config.data.max_failed_share)
    failed: list[TrialResult] = []

    def train(trials: Sequence[Trial], job: Job) -> None:
        pool = planning.trial_pool(config.compute, cluster, len(trials))
        steps = max(work.steps_of(config)[-1], 1)
        reached = {(trial.model.id, trial.number): 0 for trial in trials}
        with telemetry.stage("finetune", steps * len(trials), "steps") as bar:

            def on_report(trial: Trial, report: dict[str, Any]) -> None:
                place = (trial.model.id, trial.number)
                rate = trial.hyperparameters.get("learning_rate")
                setting = f" lr {rate:g} seed {trial.seed}" if rate is not None else ""
                accuracy = f", validation accuracy {report['val_accuracy']:.3f}" if report.get("val") else ""
                bar.advance(
                    report["step"] - reached[place], f"{trial.model.id}{setting} step {report['step']}{accuracy}"
                )
                reached[place] = report["step"]

            for trial, result in zip(trials, fit(trials, job, pool, on_report, run.verbose), strict=True):
                if result.state == "failed":
                    failed.append(result)
                    telemetry.line("finetune", f"{trial.model.id} trial {trial.number} failed: {result.error}")
                else:
                    write_result(run.storage, trial, result)

    if pending:
        train(pending, job)
        # Trials of the chosen setting that were stopped early for another seed's sake run to their end.
        _, found = work.trials_of(run.storage, config, sample)
        chosen = {(result.model_id, tuple(result.hyperparameters.items())) for result in choose(found.values())}
        cut = [
            trial
            for trial in trials
            if (trial.model.id, tuple(trial.hyperparameters.items())) in chosen
            and (result := found.get((trial.model.id, trial.number)))
            and result.state == "stopped"
        ]
        if cut and config.finetune is not None:
            config_to_end = config.finetune.model_copy(update={"asha": None})
            train(cut, Job(config_to_end, run.storage, run.split, run.source, config.data.max_failed_share))
    _, found = work.trials_of(run.storage, config, sample)
    best = choose(found.values())
    for model in config.models:
        own = [result for result in best if result.model_id == model.id]
        if own and config.finetune is not None:
            last = [result.val_accuracy[max(result.val_accuracy)] for result in own if result.val_accuracy]
            setting = ", ".join(f"{name} {value:g}" for name, value in own[0].hyperparameters.items())
            telemetry.line(
                "finetune",
                f"{model.id}: {setting} chosen, validation accuracy {sum(last) / max(1, len(last)):.3f}",
            )
    runs.record(
        run.storage,
        "finetune",
        trials=len(trials),
        finished=sum(result.state == "finished" for result in found.values()),
        failed=[vars(result) for result in failed],
    )
    if not best:
        reasons = "; ".join(sorted({str(result.error) for result in failed})) or "no trial ended"
        raise StageError(f"finetune: no trial finished: {reasons}")


def embed(run: Run, cluster: Resources) -> None:
    """Embed the shard sets that are missing, all of them in one stream."""
    from raysep.embed.stream import Block, Unit, embed_all

    config, telemetry = run.config, run.telemetry
    metas = _checkpoints(run)
    if not metas:
        raise StageError("embed: there are no finished trials: run `raysep finetune` first")
    pending, _ = work.pending_shard_sets(run.storage, config, metas, run.split)
    units = [
        Unit(tuple(chunk), tuple(work.shard_set_of(meta, name) for meta in chunk), _rows(run, name))
        for name, chunk in _sharing(pending)
    ]
    total = sum(unit.rows.num_rows * len(unit.metas) for unit in units)
    blocks_of = [-(-unit.rows.num_rows // config.embed.shard_rows) for unit in units]
    pool = planning.embed_pool(config.compute, cluster, sum(blocks_of))
    data = splits.fingerprint(run.split)
    done: list[list[Block]] = [[] for _ in units]
    if units:
        with telemetry.stage("embed", total, "embeddings") as bar:
            for block in embed_all(units, run.source, run.storage, config.embed, pool, run.verbose):
                unit = units[block.unit]
                done[block.unit].append(block)
                bar.advance(block.images * len(unit.metas), f"{unit.metas[0].model.id} {unit.shard_sets[0].split}")
                if len(done[block.unit]) == blocks_of[block.unit]:
                    _commit_unit(run, unit.metas, unit.shard_sets, done[block.unit], data)
    sets = len(metas) * len(work.splits_of(config, run.split))
    telemetry.line("embed", f"{total} embeddings, {len(pending)} of {sets} shard sets new")
    runs.record(run.storage, "embed", shard_sets=sets)


def score(run: Run, cluster: Resources) -> None:
    """Compute the scores that are missing."""
    from raysep.separability.actors import score_all

    config, telemetry = run.config, run.telemetry
    tasks = _tasks(run)
    if not tasks:
        raise StageError("score: there are no embeddings: run `raysep embed` first")
    rows = table.belonging(tasks, table.read(run.storage))
    pending = table.missing(tasks, rows)
    # Long layers first, so that the last actor doesn't work alone at the end.
    pending.sort(key=lambda task: -task.layer.dim * task.manifest.rows)
    saved = time.monotonic()
    with telemetry.stage("score", len(pending), "layers") as bar:
        for task, new in score_all(
            run.storage, config.score, pending, planning.score_pool(config.compute, cluster, config.score)
        ):
            rows += new
            place = task.shard_set
            bar.advance(1, f"{place.model_id} step {place.step} {place.split} {task.layer.name}")
            if time.monotonic() - saved > SAVE_INTERVAL_S:
                table.write(run.storage, rows)
                saved = time.monotonic()
    table.write(run.storage, rows)
    telemetry.line("score", f"{len(pending)} of {len(tasks)} layers new, {len(rows)} scores")
    runs.record(run.storage, "score", layers=len(tasks), scores=len(rows))


def report(run: Run) -> Summary:
    """Write the summary and the report, or read the summary back where they are up to date."""
    from raysep.report.html import PAGE, write_report

    config, storage = run.config, run.storage
    if not storage.exists(runs.MANIFEST):
        raise StageError(f"report: {storage.display()} holds no run yet: run `raysep run` first")
    trials, found = work.trials_of(storage, config, _sample)
    metas = _checkpoints(run)
    not_embedded, manifests = work.pending_shard_sets(storage, config, metas, run.split)
    tasks = work.score_tasks(config, metas, manifests)
    rows = table.belonging(tasks, table.read(storage))
    not_scored = table.missing(tasks, rows)
    unfinished = []
    if not_embedded:
        unfinished.append(
            f"{len(not_embedded)} of {len(not_embedded) + len(manifests)} shard sets are not embedded yet"
        )
    if not_scored:
        unfinished.append(f"{len(not_scored)} of {len(tasks)} layers are not scored yet")
    manifest = storage.read_json(runs.MANIFEST)
    ended = {(result.model_id, result.number): result for result in found.values()}
    for plain in manifest["stages"].get("finetune", {}).get("failed", []):
        ended.setdefault((plain["model_id"], plain["number"]), TrialResult(**plain))
    unseen = splits.with_role(run.split, "unseen")
    counts = (len(set(unseen["class_name"].to_pylist())), unseen.num_rows)
    summary = summarize(config, metas, trials, list(ended.values()), manifests, rows, counts, unfinished)
    text = summary.model_dump_json(indent=2) + "\n"
    if storage.exists(SUMMARY) and storage.exists(PAGE) and storage.read_bytes(SUMMARY) == text.encode():
        run.telemetry.line("report", "nothing left to do")
        return summary
    write_report(storage, summary)
    runs.record(storage, "report", models=len(summary.models))
    run.telemetry.line("report", f"written to {storage.display(PAGE)}")
    return summary


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """Paths of weights as workers must know them: theirs is another working directory."""
    models = [
        model.model_copy(update={"pretrained": str(Path(model.pretrained).resolve())})
        if isinstance(model.pretrained, str)
        else model
        for model in config.models
    ]
    return config.model_copy(update={"models": models})


def _commit_unit(
    run: Run,
    metas: Sequence[CheckpointMeta],
    shard_sets: Sequence[ShardSet],
    blocks: Sequence[Any],
    data: str,
) -> None:
    """All blocks of a unit are written: say which files make up each of its shard sets."""
    failed: dict[str, str] = {}
    for block in blocks:
        failed |= block.failed
    check_share(failed, sum(block.images for block in blocks), run.config.data.max_failed_share)
    for position, (meta, shard_set) in enumerate(zip(metas, shard_sets, strict=True)):
        files = [block.files[position] for block in blocks if block.files]
        manifest = Manifest(
            key=work.embedding_key(run.config, meta, shard_set.split, data),
            rows=sum(file["rows"] for file in files),
            files=files,
            layers=blocks[0].layers,
            failed=failed,
            dtype=run.config.embed.dtype,
            checkpoint_sha256=meta.sha256,
            versions=runs.versions(),
        )
        commit(run.storage, shard_set, manifest)


def _sharing(pending: Sequence[tuple[CheckpointMeta, Split]]) -> list[tuple[Split, list[CheckpointMeta]]]:
    """Pending shard sets in groups that share images and a model, with groups of a model side by side."""
    by_model: dict[str, dict[Split, list[CheckpointMeta]]] = {}
    for meta, name in pending:
        by_model.setdefault(meta.model.id, {}).setdefault(name, []).append(meta)
    groups = [
        (name, metas[first : first + CHECKPOINTS_AT_ONCE], first)
        for by_split in by_model.values()
        for name, metas in by_split.items()
        for first in range(0, len(metas), CHECKPOINTS_AT_ONCE)
    ]
    # The same checkpoints follow each other, so that an actor that holds them needs no others in between.
    order = {model: position for position, model in enumerate(by_model)}
    groups.sort(key=lambda group: (order[group[1][0].model.id], group[2]))
    return [(name, metas) for name, metas, _ in groups]


def _rows(run: Run, name: Split) -> pa.Table:
    return splits.with_role(run.split, work.ROLE_OF_SPLIT[name])


def _checkpoints(run: Run) -> list[CheckpointMeta]:
    _, found = work.trials_of(run.storage, run.config, _sample)
    return work.chosen_checkpoints(run.storage, run.config, list(found.values()))


def _tasks(run: Run) -> list[table.Task]:
    metas = _checkpoints(run)
    _, manifests = work.pending_shard_sets(run.storage, run.config, metas, run.split)
    return work.score_tasks(run.config, metas, manifests)


def _sample(space: str, arguments: Any, seed: int) -> float:
    """Draws from Ray Tune's spaces, imported only where a configuration has one."""
    from raysep.finetune.tune import sample

    return sample(space, arguments, seed)


def _finetune_pending(run: Run) -> bool:
    trials, found = work.trials_of(run.storage, run.config, _sample)
    return len(found) < len(trials)


def _embed_pending(run: Run) -> bool:
    metas = _checkpoints(run)
    return not metas or bool(work.pending_shard_sets(run.storage, run.config, metas, run.split)[0])


def _score_pending(run: Run) -> bool:
    tasks = _tasks(run)
    if not tasks:
        return True
    rows = table.read(run.storage)
    return bool(table.missing(tasks, rows)) or len(table.belonging(tasks, rows)) < len(rows)


PENDING: dict[str, Callable[[Run], bool]] = {
    "finetune": _finetune_pending,
    "embed": _embed_pending,
    "score": _score_pending,
}
WORK: dict[str, Callable[[Run, Resources], None]] = {"finetune": finetune, "embed": embed, "score": score}
