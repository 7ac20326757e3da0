"""Ray Data around the embedder: references to images in, names of finished shards out.

A block of work is a table of image references of one unit, and ends as one Parquet file per checkpoint.
Pixels and embeddings stay inside the actor: nothing but file names travels through the object store, and
the plan has no read operator that could wait for a CPU which the actors hold. (Measured on 2 CPUs: with
separate operators for reading, decoding and the model this ran at 0.45 of a plain loop, and with actors
on all CPUs it never ended.)
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from raysep.cluster import errors_of
from raysep.config import EmbedConfig
from raysep.data.sources import Reader
from raysep.embed.shards import ShardSet
from raysep.models.layers import Layer
from raysep.models.meta import CheckpointMeta, directory, read_meta
from raysep.planning import Pool
from raysep.storage import Storage


@dataclass(frozen=True)
class Unit:
    """Checkpoints of one model and the images of one split: what shares each decoded image."""

    metas: Sequence[CheckpointMeta]
    shard_sets: Sequence[ShardSet]
    rows: pa.Table
    reader: Reader


@dataclass(frozen=True)
class Block:
    """What became of one block of work.

    Attributes:
        unit: position among the units.
        images: how many it had.
        files: for each shard set of the unit, what its manifest will say of the file.
        failed: image_id and reason of each image that could not be read.
        layers: of the model.
    """

    unit: int
    images: int
    files: list[dict[str, Any]]
    failed: dict[str, str]
    layers: list[Layer]


class EmbedActor:
    """Reads, decodes, embeds and writes blocks. Keeps the models of the last one."""

    def __init__(self, readers: Sequence[Reader], run: Storage, config: EmbedConfig, pool: Pool) -> None:
        import torch

        # Ray sets OMP_NUM_THREADS to the CPUs that an actor asks for, which need not be what it may use.
        torch.set_num_threads(pool.threads)
        self._readers, self._run, self._config = readers, run, config
        self._device = "cuda" if pool.gpus > 0 else "cpu"
        self._loaded: list[str] = []

    def __call__(self, block: pa.Table) -> pa.Table:
        """One block of references to one row that says what became of it."""
        from raysep.embed.embedder import Embedder
        from raysep.embed.shards import write_part

        work = json.loads(block["work"][0].as_py())
        if self._loaded != work["checkpoints"]:
            metas = [read_meta(self._run, where) for where in work["checkpoints"]]
            self._embedder = Embedder(self._run, metas, self._device, self._config.precision)
            self._loaded = work["checkpoints"]
        ids, labels = block["image_id"].to_pylist(), block["label"].to_pylist()
        places = list(zip(block["path"].to_pylist(), block["row"].to_pylist(), strict=True))
        embedded = self._embedder.embed(self._readers[work["reader"]], places, self._config.batch_size)
        layers = self._embedder.layers
        files = []
        if embedded.good:
            files = [
                write_part(
                    self._run,
                    where,
                    [ids[position] for position in embedded.good],
                    [labels[position] for position in embedded.good],
                    vectors,
                    layers,
                    self._config.dtype,
                )
                for where, vectors in zip(work["directories"], embedded.vectors, strict=True)
            ]
        outcome = {
            "unit": work["unit"],
            "images": len(ids),
            "files": files,
            "failed": {ids[position]: reason for position, reason in embedded.failed.items()},
            "layers": [vars(layer) for layer in layers],
        }
        return pa.table({"outcome": [json.dumps(outcome)]})


def _blocks(number: int, unit: Unit, reader: int, rows: int) -> Iterator[pa.Table]:
    """A unit's image references in blocks, each with all that an actor has to know of the unit."""
    work = {
        "unit": number,
        "reader": reader,
        "checkpoints": [directory(meta.model.id, meta.trial, meta.step) for meta in unit.metas],
        "directories": [shard_set.directory for shard_set in unit.shard_sets],
    }
    references = unit.rows.select(["image_id", "path", "row", "label"])
    for first in range(0, references.num_rows, rows):
        block = references.slice(first, rows)
        same = pa.DictionaryArray.from_arrays(pa.array([0] * block.num_rows, pa.int32()), [json.dumps(work)])
        yield block.append_column("work", same)


def embed_all(
    units: Sequence[Unit],
    run: Storage,
    config: EmbedConfig,
    pool: Pool,
    verbose: bool = False,
) -> Iterator[Block]:
    """Stream the images of all units through a pool of actors; yields each block when it is written.

    Args:
        units: in an order in which units of the same checkpoints follow each other.
        run: the run directory.
        config: batch size, storage type, rows of a block.
        pool: the actors; they must fit the cluster.
    """
    if not verbose:
        DataContext.get_current().enable_progress_bars = False
        DataContext.get_current().print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    readers = list({id(unit.reader): unit.reader for unit in units}.values())
    blocks = [
        block
        for number, unit in enumerate(units)
        for block in _blocks(number, unit, readers.index(unit.reader), config.shard_rows)
    ]
    outcomes = ray.data.from_arrow(blocks).map_batches(
        EmbedActor,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_constructor_args=(readers, run, config, pool),
        compute=ActorPoolStrategy(size=min(pool.processes, len(blocks))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    with errors_of("embed"):
        for row in outcomes.iter_rows():
            plain = json.loads(row["outcome"])
            yield Block(**{**plain, "layers": [Layer(**layer) for layer in plain["layers"]]})
