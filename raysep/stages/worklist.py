"""Finished and pending work of each stage, from the files of a run directory. Imports neither torch nor Ray."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from raysep.config import RunConfig, ScoreConfig
from raysep.config.base import key_fields
from raysep.config.names import DIAGNOSTIC, DIAGNOSTICS, Wanted
from raysep.data import splits
from raysep.embedding.shards import Manifest, ShardSet, key_of, read_manifest
from raysep.finetune.trials import Trial, TrialResult, baseline_models, choose, plan, read_result
from raysep.models.layers import OWN, Layer
from raysep.models.meta import META, CheckpointMeta, directory, read_meta
from raysep.scoring import table
from raysep.stages.context import RunContext
from raysep.storage.store import Storage


def role_of(split: str) -> str:
    """The role whose images a split evaluates: `seen_test` for the split `seen`, else the name of the split."""
    return splits.SEEN_TEST if split == "seen" else split


def checkpoints_of(run: RunContext) -> list[CheckpointMeta]:
    """The existing checkpoints of the chosen trials."""
    _, results = trials_of(run.store, run.config)
    return chosen_checkpoints(run.store, run.config, list(results.values()))


def tasks_of(run: RunContext) -> list[table.Task]:
    """Scoring tasks of all committed shard sets, finished or pending."""
    metas = checkpoints_of(run)
    _, manifests = pending_shard_sets(run.store, run.config, metas, run.split)
    return score_tasks(run.config, metas, manifests)


def steps_of(config: RunConfig, trial: Trial | TrialResult) -> list[int]:
    """Steps of a trial that have a checkpoint."""
    return config.finetune.evaluate_at if config.finetune is not None and trial.hyperparameters else [0]


def planned_trials(config: RunConfig) -> list[Trial]:
    """All trials of a run."""
    return plan(config, _sample)


def trials_of(store: Storage, config: RunConfig) -> tuple[list[Trial], dict[tuple[str, int], TrialResult]]:
    """All trials of the run, and the results of those that have ended, by model id and number."""
    trials = planned_trials(config)
    results = {
        (trial.model.id, trial.number): result
        for trial in trials
        if (result := read_result(store, trial, steps_of(config, trial))) is not None
    }
    return trials, results


def chosen_checkpoints(store: Storage, config: RunConfig, results: Sequence[TrialResult]) -> list[CheckpointMeta]:
    """The existing checkpoints of every step of the chosen trials, model by model, baselines last."""
    chosen = choose(results)
    ids = [model.id for model in [*config.models, *baseline_models(config)]]
    order = {model_id: position for position, model_id in enumerate(ids)}
    directories = [
        (order[result.model_id], result.number, step, directory(result.model_id, result.number, step))
        for result in chosen
        for step in steps_of(config, result)
    ]
    return [read_meta(store, path) for *_, path in sorted(directories) if store.exists(f"{path}/{META}")]


def splits_of(config: RunConfig, split: pa.Table) -> list[str]:
    """The splits to evaluate that have images, among unseen, seen and the domains."""
    roles = set(split["role"].unique().to_pylist())
    return [name for name in [*config.embed.splits, *(d.name for d in config.data.domains)] if role_of(name) in roles]


def shard_set_of(meta: CheckpointMeta, split: str) -> ShardSet:
    """The shard set of a checkpoint and a split."""
    return ShardSet(meta.model.id, meta.trial, meta.step, split)


def embedding_key(config: RunConfig, meta: CheckpointMeta, split: str, data: str) -> str:
    """Cache key of a shard set: a hash of its weights, images, layers, preprocessing and precision."""
    return key_of(
        weights=meta.sha256,
        data=data,
        split=_split_content(config, split),
        preprocessing=asdict(meta.preprocessing),
        model=key_fields(meta.model),
        embed=key_fields(config.embed),
        values=key_fields(config.data),
    )


def pending_shard_sets(
    store: Storage, config: RunConfig, metas: Sequence[CheckpointMeta], split: pa.Table
) -> tuple[list[tuple[CheckpointMeta, str]], dict[ShardSet, Manifest]]:
    """Shard sets to embed, and the manifests of up-to-date shard sets."""
    data = splits.fingerprint(split)
    pending, manifests = [], {}
    for meta in metas:
        for name in splits_of(config, split):
            manifest = read_manifest(store, shard_set_of(meta, name))
            if manifest is not None and manifest.key == embedding_key(config, meta, name, data):
                manifests[shard_set_of(meta, name)] = manifest
            else:
                pending.append((meta, name))
    return pending, manifests


def wanted_of(config: ScoreConfig, layer: Layer | None = None) -> list[Wanted]:
    """Protocol and metric of every configured score, and every diagnostic, of a layer.

    The paper has no layers behind the last block, so that protocol `paper` doesn't score them.
    """
    protocols = config.protocols
    if layer is not None and layer.pooling == OWN and not layer.same_as:
        protocols = [protocol for protocol in protocols if protocol != "paper"]
    scores = [(protocol, metric) for protocol in protocols for metric in config.metrics]
    return [*scores, *((DIAGNOSTIC, name) for name in DIAGNOSTICS)]


def score_tasks(
    config: RunConfig, metas: Sequence[CheckpointMeta], manifests: dict[ShardSet, Manifest]
) -> list[table.Task]:
    """A task for each layer of each shard set, with every configured score."""
    seeds = {(meta.model.id, meta.trial): meta.seed for meta in metas}
    return [
        table.Task(
            shard_set=shard_set,
            manifest=manifest,
            layer=layer,
            seed=seeds[shard_set.model_id, shard_set.trial],
            key=key_of(embedding=manifest.key, score=key_fields(config.score)),
            wanted=wanted_of(config.score, layer),
        )
        for shard_set, manifest in manifests.items()
        for layer in manifest.layers
    ]


def _split_content(config: RunConfig, split: str) -> object:
    """For a domain its configuration section, which determines the images; else the name of the split."""
    return next((domain.model_dump(mode="json") for domain in config.data.domains if domain.name == split), split)


def _sample(space: str, arguments: Any, seed: int) -> float:
    """Draw from a search space of Ray Tune, which is imported only if needed."""
    from raysep.distributed.connect import prepare

    prepare()
    from raysep.distributed.tune import sample

    return sample(space, arguments, seed)
