"""Verify shard sets: every image exactly once, in the files of the manifest."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from raysep.config import RunConfig
from raysep.data import splits
from raysep.embedding import ledger
from raysep.embedding.shards import MANIFEST, Manifest, ShardSet, read_manifest, schema
from raysep.integrity.findings import UNREADABLE, Finding, Verification, short
from raysep.models.meta import CheckpointMeta
from raysep.stages import worklist
from raysep.storage.store import Storage


def check_shard_set(
    store: Storage, config: RunConfig, meta: CheckpointMeta, name: str, split: pa.Table, data: str, found: Verification
) -> Manifest | None:
    """Check a shard set; return its manifest (None if unreadable), which the checks of scores need."""
    shard_set = worklist.shard_set_of(meta, name)
    path = f"{shard_set.directory}/{MANIFEST}"
    try:
        exists = store.exists(path)
        manifest = read_manifest(store, shard_set)
    except UNREADABLE as error:
        found.findings.append(Finding(path, short(error), path))
        return None
    named = {file.name for file in manifest.files} if manifest is not None else set()
    found.strays += [
        file
        for file in store.files(shard_set.directory)
        if (base := file.rpartition("/")[2]) not in named
        and base != MANIFEST
        and (manifest is not None or not base.startswith(ledger.PREFIX))
    ]
    if manifest is None:
        if exists:
            found.findings.append(Finding(path, "lists files that are gone or of another size", path))
        else:
            found.unfinished.append(f"{shard_set.directory} is not embedded yet")
        return None
    rows = splits.select(split, worklist.role_of(name), meta.rotation)
    damage = list(_rows(store, shard_set, manifest, rows))
    if manifest.key != worklist.embedding_key(config, meta, name, data) or manifest.checkpoint_sha256 != meta.sha256:
        damage.append((path, "computed from other weights, images or settings than the run's"))
    found.findings += [Finding(where, what, path) for where, what in damage]
    if not damage:
        found.counts.update({"shard sets": 1, "rows": manifest.rows})
    return manifest


def _rows(store: Storage, shard_set: ShardSet, manifest: Manifest, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield path and description of each fault in the files of a shard set."""
    expected = dict(zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    ids: list[str] = []
    for file in manifest.files:
        where = f"{shard_set.directory}/{file.name}"
        content = store.read_bytes(where)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            yield where, "the content differs from the manifest's SHA-256"
            continue
        opened = pq.ParquetFile(io.BytesIO(content))
        if not opened.schema_arrow.equals(schema(manifest.layers, manifest.dtype)):
            yield where, "the columns are not image_id, label and the layers of the manifest"
            continue
        part = opened.read(columns=["image_id", "label"], use_threads=False)
        part_ids = part["image_id"].to_pylist()
        ids += part_ids
        if part.num_rows != file.rows:
            yield where, f"{part.num_rows} rows, {file.rows} in the manifest"
        if any(expected.get(image) != label for image, label in zip(part_ids, part["label"].to_pylist(), strict=True)):
            yield where, "the images or labels differ from those of the split"
    path = f"{shard_set.directory}/{MANIFEST}"
    twice = [image for image, count in Counter([*ids, *manifest.failed]).items() if count > 1]
    if twice:
        yield path, f"{len(twice)} images occur more than once, such as {twice[0]!r}"
    if missing := set(expected) - set(ids) - set(manifest.failed):
        yield path, f"{len(missing)} images are neither embedded nor listed as failed, such as {min(missing)!r}"
