"""Verify and repair a run directory from its files alone: every image, checkpoint and score exists exactly once.

Missing results are unfinished, not damaged: `raysep run` resumes them. A finding names the file to delete so that
`raysep run` recomputes the damaged result and nothing else. Imports neither torch nor Ray.
"""

import hashlib
from collections.abc import Sequence

import yaml
from pydantic import ValidationError

from raysep.config import RunConfig
from raysep.data import splits
from raysep.embedding.shards import Manifest, ShardSet
from raysep.errors import RaysepError, UsageError
from raysep.integrity.checkpoints import checkpoints
from raysep.integrity.embeddings import check_shard_set
from raysep.integrity.findings import UNREADABLE, Finding, Verification, short
from raysep.integrity.scores import scores
from raysep.report.schema import FILE as SUMMARY
from raysep.report.schema import Summary
from raysep.stages import run_directory, worklist
from raysep.storage.store import Storage

__all__ = ["Finding", "Verification", "repair", "verify"]


def verify(store: Storage) -> Verification:
    """Check every file of a run.

    Raises:
        UsageError: the directory holds no run, or its configuration is unreadable.
    """
    found = Verification()
    config = _config(store)
    try:
        run_directory.check_format(store)
        split = splits.from_parquet(store.read_bytes(run_directory.SPLITS))
        manifest = store.read_json(run_directory.MANIFEST)
    except (FileNotFoundError, *UNREADABLE) as error:
        found.findings.append(Finding(run_directory.MANIFEST, f"with {run_directory.SPLITS}: {short(error)}", None))
        return found
    data = splits.fingerprint(split)
    if manifest.get("data_sha256") != data:
        what = "the images differ from those recorded in manifest.json"
        found.findings.append(Finding(run_directory.SPLITS, what, None))
    if manifest.get("config_sha256") != hashlib.sha256(store.read_bytes(run_directory.CONFIG)).hexdigest():
        found.findings.append(
            Finding(run_directory.CONFIG, "the configuration differs from the one recorded in manifest.json", None)
        )
    metas = checkpoints(store, config, found)
    manifests: dict[ShardSet, Manifest] = {}
    for meta in metas:
        for name in worklist.splits_of(config, split):
            shards = check_shard_set(store, config, meta, name, split, data, found)
            if shards is not None:
                manifests[worklist.shard_set_of(meta, name)] = shards
    scores(store, worklist.score_tasks(config, metas, manifests), found)
    _summary(store, found)
    found.strays += store.temporary()
    return found


def repair(store: Storage, findings: Sequence[Finding]) -> list[str]:
    """Delete damaged files, so that `raysep run` recomputes them.

    Returns:
        Paths of the deleted files.

    Raises:
        RaysepError: a damaged file can't be recomputed; nothing is deleted.
    """
    unrepairable = [finding for finding in findings if finding.remedy is None]
    if unrepairable:
        lines = [f"  - {finding.path}: {finding.what}" for finding in unrepairable]
        head = f"{store.display()} can't be repaired, so use another --run-dir; damaged:"
        raise RaysepError("\n".join([head, *lines]))
    removed = list(dict.fromkeys(finding.remedy for finding in findings if finding.remedy is not None))
    for path in removed:
        store.delete(path)
    return removed


def _config(store: Storage) -> RunConfig:
    try:
        return RunConfig.model_validate(yaml.safe_load(store.read_bytes(run_directory.CONFIG)))
    except FileNotFoundError:
        raise UsageError(f"{store.display()} holds no run: there is no {run_directory.CONFIG}") from None
    except (ValidationError, yaml.YAMLError) as error:
        raise UsageError(
            f"{store.display(run_directory.CONFIG)} is not a run's configuration: {short(error)}"
        ) from None


def _summary(store: Storage, found: Verification) -> None:
    try:
        Summary.model_validate_json(store.read_bytes(SUMMARY))
    except FileNotFoundError:
        found.unfinished.append("there is no report yet")
    except ValidationError as error:
        found.findings.append(Finding(SUMMARY, short(error), SUMMARY))
