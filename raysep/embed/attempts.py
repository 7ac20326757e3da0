"""How often a block may be begun: one that ends every process it is given to is given up, and named."""

from collections.abc import Callable
from typing import Any

from raysep.errors import StageError
from raysep.storage.retries import PIECE_RETRIES
from raysep.telemetry.worker_stats import Meter

# Asked before a step of a block, by the step's name: how often it was begun by now, with this time.
Begin = Callable[[str], int]


def first_time(step: str) -> int:  # noqa: ARG001
    """Where no other process could have begun it before."""
    return 1


def note_begin(step: str, work: dict[str, Any], first_id: str, begin: Begin, meter: Meter) -> None:
    """Count that a step of a block is begun.

    Args:
        step: `decode` or `embed`.
        work: what the block says of itself.
        first_id: of its first image.
        begin: who counts.
        meter: is told how often it was begun before.

    Raises:
        StageError: too often; which block that is, and what may be wrong with it.
    """
    before = begin(f"{step} {work['unit']} {work['first']}") - 1
    if before > PIECE_RETRIES:
        raise StageError(
            f"the images of {work['directories'][0]} from number {work['first']} on ({first_id}, ...) were "
            f"given to {before} processes, and each was lost with them: there may be too little memory (a smaller "
            "embed.batch_size or embed.shard_rows, fewer actors by section compute), or an image that ends its decoder"
        )
    meter.again("process", before)
