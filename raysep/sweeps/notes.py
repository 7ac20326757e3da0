"""Notes in the directory of a sweep: its owner, and the results of its last rounds."""

import contextlib

from raysep.errors import StorageError, UsageError
from raysep.storage.store import Storage
from raysep.sweeps.config import SweepConfig
from raysep.telemetry.prometheus import Metrics

# Failed rounds and schedules publish them again, as alerts query the time since the last successful round.
SUCCESS, LAST = "last_success.json", "last_round.json"
# The name of the sweep that owns the directory.
OWNER = "sweep.json"


def check_owner(root: Storage, name: str) -> None:
    """Raise UsageError if another sweep owns the directory, as this one would replace its reports."""
    try:
        with root.understood(OWNER):
            owner = root.read_json(OWNER)["sweep"]
    except (FileNotFoundError, StorageError):
        # Without a readable owner, this sweep becomes the owner.
        owner = name
        root.write_json(OWNER, {"sweep": name})
    if owner != name:
        raise UsageError(
            f"{root.display()} belongs to the sweep {owner!r}, not to {name!r}: give each sweep its own `root`. "
            "Sweeps may share a results table (`results`)."
        )


def publish_last(sweep: SweepConfig, metrics: Metrics) -> None:
    """Set the metrics of finished rounds: time of the last success, cells and regressions of the last round."""
    root = Storage(sweep.root)
    # A damaged note must not fail a round, which writes it again.
    with contextlib.suppress(FileNotFoundError, StorageError), root.understood(SUCCESS):
        # Read before `labels`, which creates the gauge with the value 0.
        at = root.read_json(SUCCESS)["at"]
        metrics.sweep_success.labels(sweep.name).set(at)
    with contextlib.suppress(FileNotFoundError, StorageError), root.understood(LAST):
        last = root.read_json(LAST)
        regressions, counts = last["regressions"], last["cells"].items()
        metrics.regressions.labels(sweep.name).set(regressions)
        for state, cells in counts:
            metrics.sweep_cells.labels(sweep.name, state).set(cells)
