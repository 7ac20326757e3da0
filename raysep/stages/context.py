"""`RunContext`, the run that stages work on, and `Stage`, their interface."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from raysep.config import RunConfig
from raysep.data.source import Reader
from raysep.distributed.cluster_shape import Resources
from raysep.stages.executor import Executor
from raysep.storage.store import Storage
from raysep.telemetry import Telemetry


@dataclass(frozen=True)
class RunContext:
    """A validated run.

    Attributes:
        readers: image readers, by role; the role of a domain is its name.
    """

    config: RunConfig
    store: Storage
    readers: Mapping[str, Reader]
    split: pa.Table
    telemetry: Telemetry
    executor: Executor
    verbose: bool = False


class Stage(Protocol):
    """A stage of the pipeline: a module with these two functions."""

    def pending(self, run: RunContext) -> bool:
        """Whether the stage has pending work."""
        ...

    def perform(self, run: RunContext, cluster: Resources) -> None:
        """Do the pending work. Raises StageError; results that are already committed stay valid."""
        ...
