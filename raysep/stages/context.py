"""A run that is being worked on, as every stage is given it."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from raysep.config import RunConfig
from raysep.data.source import Reader
from raysep.stages.executor import Executor
from raysep.storage.store import Storage
from raysep.telemetry import Telemetry


@dataclass(frozen=True)
class RunContext:
    """A run that may be worked on: checked, and with its directory begun.

    Attributes:
        readers: where the images of each role of the split are read: of every domain, and of the rest.
    """

    config: RunConfig
    store: Storage
    readers: Mapping[str, Reader]
    split: pa.Table
    telemetry: Telemetry
    executor: Executor
    verbose: bool = False
