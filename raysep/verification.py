"""Whether a run directory is what it says it is, from its files alone: every image, checkpoint and score exactly once.

What is not there yet is unfinished and no damage: `raysep run` goes on with it. For what is wrong, a finding names the
file that has to go for `raysep run` to do that piece, and no other, again. No torch and no Ray here.
"""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from raysep import runs, work
from raysep.config import RunConfig
from raysep.data import splits
from raysep.embed import progress
from raysep.embed.shards import MANIFEST, Manifest, ShardSet, read_manifest, schema
from raysep.errors import RaysepError, UsageError
from raysep.finetune.trials import RESULT, TrialResult, read_result
from raysep.models.meta import META, WEIGHTS, CheckpointMeta, directory, read_meta
from raysep.report.schema import FILE as SUMMARY
from raysep.report.schema import Summary
from raysep.separability import table
from raysep.separability.names import DIAGNOSTIC, LOWEST
from raysep.storage import Storage

# What a file that can't be understood makes its reader raise.
UNREADABLE = (ValueError, KeyError, TypeError, RaysepError, pa.ArrowException)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        path: of the file, relative to the run.
        what: is wrong with it.
        remedy: the file without which `raysep run` does this piece again; None where nothing but a copy helps.
    """

    path: str
    what: str
    remedy: str | None


@dataclass
class Verification:
    """What was looked at, and what came of it.

    Attributes:
        findings: what is wrong.
        unfinished: what is not there yet, in words.
        strays: files that no manifest names: left by what was stopped or done twice, and never read.
        counts: of what is right: trials, shard sets, rows, scores.
    """

    findings: list[Finding] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def verify(run: Storage) -> Verification:
    """Look at every file of a run.

    Raises:
        UsageError: there is no run, or its configuration can't be read.
    """
    found = Verification()
    config = _config(run)
    try:
        split = splits.from_parquet(run.read_bytes(runs.SPLITS))
        manifest = run.read_json(runs.MANIFEST)
    except (FileNotFoundError, *UNREADABLE) as error:
        found.findings.append(Finding(runs.MANIFEST, f"with {runs.SPLITS}: {_short(error)}", None))
        return found
    data = splits.fingerprint(split)
    if manifest.get("data_sha256") != data:
        found.findings.append(Finding(runs.SPLITS, "not the images that manifest.json was written for", None))
    if manifest.get("config_sha256") != hashlib.sha256(run.read_bytes(runs.CONFIG)).hexdigest():
        found.findings.append(Finding(runs.CONFIG, "not the configuration that manifest.json was written for", None))
    metas = _checkpoints(run, config, found)
    manifests: dict[ShardSet, Manifest] = {}
    for meta in metas:
        for name in work.splits_of(config, split):
            own = _shard_set(run, config, meta, name, split, data, found)
            if own is not None:
                manifests[work.shard_set_of(meta, name)] = own
    _scores(run, work.score_tasks(config, metas, manifests), found)
    _summary(run, found)
    return found


def repair(run: Storage, findings: Sequence[Finding]) -> list[str]:
    """Remove what keeps `raysep run` from doing broken pieces again.

    Returns:
        The files that were removed.

    Raises:
        RaysepError: something that only a copy of it mends.
    """
    hopeless = [finding for finding in findings if finding.remedy is None]
    if hopeless:
        lines = [f"  - {finding.path}: {finding.what}" for finding in hopeless]
        raise RaysepError("\n".join([f"{run.display()} can't be repaired; take another --run-dir:", *lines]))
    removed = list(dict.fromkeys(finding.remedy for finding in findings if finding.remedy is not None))
    for path in removed:
        run.delete(path)
    return removed


def _config(run: Storage) -> RunConfig:
    try:
        return RunConfig.model_validate(yaml.safe_load(run.read_bytes(runs.CONFIG)))
    except FileNotFoundError:
        raise UsageError(f"{run.display()} holds no run: there is no {runs.CONFIG}") from None
    except (ValidationError, yaml.YAMLError) as error:
        raise UsageError(f"{run.display(runs.CONFIG)} is not a run's configuration: {_short(error)}") from None


def _checkpoints(run: Storage, config: RunConfig, found: Verification) -> list[CheckpointMeta]:
    """The checkpoints that are evaluated and right."""
    ended: list[TrialResult] = []
    planned = work.planned_trials(config)
    for trial in planned:
        path = f"{trial.directory}/{RESULT}"
        try:
            result = read_result(run, trial, work.steps_of(config, trial))
        except UNREADABLE as error:
            found.findings.append(Finding(path, _short(error), path))
            continue
        if result is None:
            continue
        wrong = [] if result.state == "stopped" else list(_weights(run, config, result))
        found.findings += [Finding(where, what, path) for where, what in wrong]
        if not wrong:
            ended.append(result)
    found.counts["trials"] = len(ended)
    if len(ended) < len(planned):
        found.unfinished.append(f"{len(planned) - len(ended)} of {len(planned)} trials have not ended well")
    return work.chosen_checkpoints(run, config, ended)


def _weights(run: Storage, config: RunConfig, result: TrialResult) -> Iterator[tuple[str, str]]:
    """What is wrong with the checkpoints of a finished trial: where, and what."""
    for step in work.steps_of(config, result):
        where = directory(result.model_id, result.number, step)
        try:
            meta = read_meta(run, where)
        except (FileNotFoundError, *UNREADABLE) as error:
            yield f"{where}/{META}", _short(error)
            continue
        if hashlib.sha256(run.read_bytes(f"{where}/{WEIGHTS}")).hexdigest() != meta.sha256:
            yield f"{where}/{WEIGHTS}", "not the weights that meta.json was written for"


def _shard_set(
    run: Storage, config: RunConfig, meta: CheckpointMeta, name: str, split: pa.Table, data: str, found: Verification
) -> Manifest | None:
    """The manifest of a shard set, right or not: scores are looked at all the same."""
    shard_set = work.shard_set_of(meta, name)
    path = f"{shard_set.directory}/{MANIFEST}"
    try:
        there = run.exists(path)
        manifest = read_manifest(run, shard_set)
    except UNREADABLE as error:
        found.findings.append(Finding(path, _short(error), path))
        return None
    named = {file["name"] for file in manifest.files} if manifest is not None else set()
    found.strays += [
        file
        for file in run.files(shard_set.directory)
        if (base := file.rpartition("/")[2]) not in named
        and base != MANIFEST
        and (manifest is not None or not base.startswith(progress.PREFIX))
    ]
    if manifest is None:
        if there:
            found.findings.append(Finding(path, "names files that are gone or of another size", path))
        else:
            found.unfinished.append(f"{shard_set.directory} is not embedded yet")
        return None
    rows = splits.select(split, work.role_of(name), meta.rotation)
    wrong = list(_rows(run, shard_set, manifest, rows))
    if manifest.key != work.embedding_key(config, meta, name, data) or manifest.checkpoint_sha256 != meta.sha256:
        wrong.append((path, "of other weights, images or settings than the run's"))
    found.findings += [Finding(where, what, path) for where, what in wrong]
    if not wrong:
        found.counts.update({"shard sets": 1, "rows": manifest.rows})
    return manifest


def _rows(run: Storage, shard_set: ShardSet, manifest: Manifest, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """What is wrong with the files of a shard set: where, and what."""
    expected = dict(zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    ids: list[str] = []
    for file in manifest.files:
        where = f"{shard_set.directory}/{file['name']}"
        content = run.read_bytes(where)
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            yield where, "not the content that the manifest was written for (SHA-256)"
            continue
        opened = pq.ParquetFile(io.BytesIO(content))
        if not opened.schema_arrow.equals(schema(manifest.layers, manifest.dtype)):
            yield where, "columns other than image_id, label and the layers of the manifest"
            continue
        part = opened.read(columns=["image_id", "label"], use_threads=False)
        own = part["image_id"].to_pylist()
        ids += own
        if part.num_rows != file["rows"]:
            yield where, f"{part.num_rows} rows, {file['rows']} in the manifest"
        if any(expected.get(image) != label for image, label in zip(own, part["label"].to_pylist(), strict=True)):
            yield where, "images or labels that are not those of the split"
    path = f"{shard_set.directory}/{MANIFEST}"
    twice = [image for image, count in Counter([*ids, *manifest.failed]).items() if count > 1]
    if twice:
        yield path, f"{len(twice)} images come twice, as {twice[0]!r}"
    if missing := set(expected) - set(ids) - set(manifest.failed):
        yield path, f"{len(missing)} images are neither there nor listed as failed, as {min(missing)!r}"


def _scores(run: Storage, tasks: Sequence[table.Task], found: Verification) -> None:
    try:
        rows = table.read(run)
    except UNREADABLE as error:
        found.findings.append(Finding(table.FILE, _short(error), table.FILE))
        return
    own = table.belonging(tasks, rows)
    counts = Counter(tuple(row[name] for name in table.NAMES) for row in own)
    twice = sum(count > 1 for count in counts.values())
    if twice:
        found.findings.append(Finding(table.FILE, f"{twice} scores come twice", table.FILE))
    size = {(task.shard_set, task.layer.index): task.manifest.rows for task in tasks}
    for row in own:
        place = ShardSet(row["model"], row["trial"], row["step"], row["split"])
        what = _wrong_score(row, size[place, row["layer"]])
        if what is not None:
            where = f"{row['metric']} of {place.directory}, layer {row['layer']}"
            found.findings.append(Finding(table.FILE, f"{where}: {what}", table.FILE))
    found.counts["scores"] = len(counts)
    if len(own) < len(rows):
        found.unfinished.append(f"{len(rows) - len(own)} scores are of embeddings that are not there any more")
    if missing := table.missing(tasks, rows):
        found.unfinished.append(f"{len(missing)} of {len(tasks)} layers are not scored yet")


def _wrong_score(row: table.Row, images: int) -> str | None:
    if row["n"] != images:
        return f"of {row['n']} images, where there are {images}"
    value, low, high = row["value"], row["ci_low"], row["ci_high"]
    if value is None:
        return None
    if not math.isfinite(value):
        return f"is {value}"
    if row["protocol"] != DIAGNOSTIC and not LOWEST.get(row["metric"], 0.0) - 1e-9 <= value <= 1 + 1e-9:
        return f"is {value}, outside its range"
    if low is not None and high is not None and not low - 1e-9 <= value <= high + 1e-9:
        return f"is {value}, outside its interval {low} to {high}"
    return None


def _summary(run: Storage, found: Verification) -> None:
    try:
        Summary.model_validate_json(run.read_bytes(SUMMARY))
    except FileNotFoundError:
        found.unfinished.append("there is no report yet")
    except ValidationError as error:
        found.findings.append(Finding(SUMMARY, _short(error), SUMMARY))


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if len(text) < 200 else f"{type(error).__name__}: {text[:197]}..."
