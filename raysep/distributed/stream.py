"""Ray Data around the embedding of blocks: references to images in, names of finished shards out.

A block of work is a table of image references of one unit, and ends as one Parquet file per checkpoint. On CPUs
pixels and embeddings stay inside one actor: nothing but file names travels through the object store, and the plan
has no read operator that could wait for a CPU which the actors hold. (Measured on 2 CPUs: with separate operators
for reading, decoding and the model this ran at 0.45 of a plain loop, and with actors on all CPUs it never ended.)
For GPU actors the CPUs of all nodes decode, and hand over uint8.
"""

import logging
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from raysep.config import EmbedConfig
from raysep.data.sources import Reader
from raysep.distributed.connect import errors_of
from raysep.distributed.placement import EmbedPlan, Pool
from raysep.embed.blocks import Block, Decoding, Embedding, Unit, block_from_json, references
from raysep.storage.retries import Attempts
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter


def _meter() -> Meter:
    return Meter(ray.util.get_node_ip_address())


def _begin(attempts: Any) -> Callable[[str], int]:
    return lambda piece: int(ray.get(attempts.begin.remote(piece)))


class EmbedActor(Embedding):
    """`Embedding` in a process of its own."""

    def __init__(
        self, readers: Sequence[Reader], store: Storage, config: EmbedConfig, attempts: Any, pool: Pool
    ) -> None:
        import torch

        # Ray sets OMP_NUM_THREADS to the CPUs that an actor asks for, which need not be what it may use.
        torch.set_num_threads(pool.threads)
        super().__init__(readers, store, config, "cuda" if pool.gpus > 0 else "cpu", _meter(), _begin(attempts))


class DecodeActor(Decoding):
    """`Decoding` in a process of its own."""

    def __init__(self, readers: Sequence[Reader], store: Storage, config: EmbedConfig, attempts: Any) -> None:
        import torch

        torch.set_num_threads(1)
        super().__init__(readers, store, config.batch_size, _meter(), _begin(attempts))


def embed_all(
    units: Sequence[Unit],
    store: Storage,
    config: EmbedConfig,
    plan: EmbedPlan,
    verbose: bool = False,
    done: Sequence[Container[int]] | None = None,
) -> Iterator[Block]:
    """Stream the images of all units through a pool of actors; yields each block when it is written.

    Args:
        units: in an order in which units of the same checkpoints follow each other.
        store: the run directory.
        config: batch size, storage type, rows of a block.
        plan: the actors; they must fit the cluster.
        verbose: let Ray Data's own lines through.
        done: of each unit, the first images of blocks that are there already.
    """
    if not verbose:
        DataContext.get_current().enable_progress_bars = False
        DataContext.get_current().print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    readers = list({id(unit.reader): unit.reader for unit in units}.values())
    blocks: list[pa.Table] = [
        block
        for number, unit in enumerate(units)
        for block in references(
            number, unit, readers.index(unit.reader), config.shard_rows, () if done is None else done[number]
        )
    ]
    if not blocks:
        return
    # Tables are blocks as they are: `from_arrow` would ask workers for what is known of them, which takes a second.
    data = ray.data.from_blocks(blocks)
    # Ray Data begins what is lost again without an end and without a word: who counts is asked before each block.
    attempts: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    common = (readers, store, config, attempts)
    if plan.decode is not None:
        data = _through(data, DecodeActor, plan.decode, len(blocks), common)
    data = _through(data, EmbedActor, plan.embed, len(blocks), (*common, plan.embed))
    with errors_of("embed"):
        for row in data.iter_rows():
            yield block_from_json(row["outcome"])


def _through(data: Any, actor: type, pool: Pool, blocks: int, arguments: tuple[object, ...]) -> Any:
    return data.map_batches(
        actor,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=min(pool.processes, blocks)),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
