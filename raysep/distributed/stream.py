"""Embed blocks with Ray Data: the input is references to images, the output is names of finished shards.

A block is a table of image references of one work group, and becomes one Parquet file per checkpoint. On CPUs pixels
and embeddings stay inside one actor: only file names pass through the object store, and the plan has no read operator
that could wait for a CPU which the actors hold. (Measured on 2 CPUs: separate operators for reading, decoding and the
model reached 0.45 of the throughput of a plain loop, and with actors on all CPUs they deadlocked.) For GPU actors, CPU
actors on all nodes decode, and pass on uint8 pixels.
"""

import logging
from collections.abc import Container, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from raysep.config import EmbedConfig
from raysep.data.source import Reader
from raysep.distributed.connect import stage_errors
from raysep.distributed.placement import EmbedPlan, Pool
from raysep.embedding.blocks import CountAttempt, Decoding, Embedding
from raysep.embedding.work import RESULT, BlockResult, WorkGroup, parse_result, references
from raysep.storage.retries import Attempts
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter


def _meter() -> Meter:
    return Meter(ray.util.get_node_ip_address())


def _count(attempts: Any) -> CountAttempt:
    return lambda step: int(ray.get(attempts.count.remote(step)))


class EmbedActor(Embedding):
    """`Embedding` as a Ray actor."""

    def __init__(
        self, readers: Sequence[Reader], store: Storage, config: EmbedConfig, attempts: Any, pool: Pool
    ) -> None:
        import torch

        # Override Ray's OMP_NUM_THREADS, the number of CPUs that the actor requests: with a GPU that may be 0.
        torch.set_num_threads(pool.threads)
        super().__init__(readers, store, config, "cuda" if pool.gpus > 0 else "cpu", _meter(), _count(attempts))


class DecodeActor(Decoding):
    """`Decoding` as a Ray actor."""

    def __init__(self, readers: Sequence[Reader], store: Storage, config: EmbedConfig, attempts: Any) -> None:
        import torch

        torch.set_num_threads(1)
        super().__init__(readers, store, config.batch_size, _meter(), _count(attempts))


def embed_all(
    groups: Sequence[WorkGroup],
    store: Storage,
    config: EmbedConfig,
    plan: EmbedPlan,
    verbose: bool = False,
    done: Sequence[Container[int]] | None = None,
) -> Iterator[BlockResult]:
    """Stream the images of all work groups through a pool of actors; yields each block once it is written.

    Args:
        groups: work groups; those with the same checkpoints are adjacent.
        store: the run directory.
        config: batch size, storage type, rows of a block.
        plan: the actor pools; they must fit the cluster.
        verbose: show Ray Data's log.
        done: per group, the positions of the first images of the blocks to skip.
    """
    if not verbose:
        DataContext.get_current().enable_progress_bars = False
        DataContext.get_current().print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    readers = list({id(group.reader): group.reader for group in groups}.values())
    blocks: list[pa.Table] = [
        block
        for index, group in enumerate(groups)
        for block in references(
            index, group, readers.index(group.reader), config.shard_rows, () if done is None else done[index]
        )
    ]
    if not blocks:
        return
    # `from_arrow` would compute the metadata of each table in workers, which takes a second.
    data = ray.data.from_blocks(blocks)
    # Ray Data retries lost blocks without limit and without a log line, so this actor counts the attempts.
    attempts: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
    common = (readers, store, config, attempts)
    if plan.decode is not None:
        data = _map_actors(data, DecodeActor, plan.decode, len(blocks), common)
    data = _map_actors(data, EmbedActor, plan.embed, len(blocks), (*common, plan.embed))
    with stage_errors("embed"):
        for row in data.iter_rows():
            yield parse_result(row[RESULT])


def _map_actors(data: Any, actor: type, pool: Pool, blocks: int, arguments: tuple[object, ...]) -> Any:
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
