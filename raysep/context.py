"""A run that is being worked on, as every stage is given it."""

from dataclasses import dataclass

import pyarrow as pa

from raysep.config import RunConfig
from raysep.data.sources import Source
from raysep.storage import Storage
from raysep.telemetry import Telemetry


@dataclass(frozen=True)
class Run:
    """A run that may be worked on: checked, and with its directory begun."""

    config: RunConfig
    storage: Storage
    source: Source
    split: pa.Table
    telemetry: Telemetry
    verbose: bool = False
