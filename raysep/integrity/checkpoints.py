"""Verify the results of trials and the weights of their checkpoints."""

import hashlib
from collections.abc import Iterator

from raysep.config import RunConfig
from raysep.finetune.trials import RESULT, TrialResult, read_result
from raysep.integrity.findings import UNREADABLE, Finding, Verification, short
from raysep.models.meta import META, WEIGHTS, CheckpointMeta, directory, read_meta
from raysep.stages import worklist
from raysep.storage.store import Storage


def checkpoints(store: Storage, config: RunConfig, found: Verification) -> list[CheckpointMeta]:
    """Check all trials; returns the undamaged checkpoints of the chosen trials."""
    ended: list[TrialResult] = []
    planned = worklist.planned_trials(config)
    for trial in planned:
        path = f"{trial.directory}/{RESULT}"
        try:
            result = read_result(store, trial, worklist.steps_of(config, trial))
        except UNREADABLE as error:
            found.findings.append(Finding(path, short(error), path))
            continue
        if result is None:
            continue
        damage = [] if result.state == "stopped" else list(_weights(store, config, result))
        found.findings += [Finding(where, what, path) for where, what in damage]
        if not damage:
            ended.append(result)
    found.counts["trials"] = len(ended)
    if len(ended) < len(planned):
        found.unfinished.append(f"{len(planned) - len(ended)} of {len(planned)} trials have no valid result")
    return worklist.chosen_checkpoints(store, config, ended)


def _weights(store: Storage, config: RunConfig, result: TrialResult) -> Iterator[tuple[str, str]]:
    """Yield path and description of each fault in the checkpoints of a finished trial."""
    for step in worklist.steps_of(config, result):
        where = directory(result.model_id, result.number, step)
        try:
            meta = read_meta(store, where)
        except (FileNotFoundError, *UNREADABLE) as error:
            yield f"{where}/{META}", short(error)
            continue
        if hashlib.sha256(store.read_bytes(f"{where}/{WEIGHTS}")).hexdigest() != meta.sha256:
            yield f"{where}/{WEIGHTS}", "the weights differ from those recorded in meta.json"
