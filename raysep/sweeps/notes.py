"""What the directory of a sweep notes about itself: whose it is, and how its last rounds ended."""

import contextlib

from raysep.errors import StorageError, UsageError
from raysep.storage.store import Storage
from raysep.sweeps.config import SweepConfig
from raysep.telemetry.prometheus import Metrics

# Said again by rounds that fail, and by schedules: what alerts ask is how long ago the last good one was.
SUCCESS, LAST = "last_success.json", "last_round.json"
# Which sweep a directory is of.
OWNER = "sweep.json"


def check_owner(root: Storage, name: str) -> None:
    """Raise UsageError where a directory has the runs and reports of another sweep, which a round could replace."""
    try:
        with root.understood(OWNER):
            owner = root.read_json(OWNER)["sweep"]
    except (FileNotFoundError, StorageError):
        # It was nobody's, or nobody can say any more whose it was: it is this one's from now on.
        owner = name
        root.write_json(OWNER, {"sweep": name})
    if owner != name:
        raise UsageError(
            f"{root.display()} is the directory of the sweep {owner!r}, and this one is called {name!r}: give it a "
            "`root` of its own. A results table (`results`) may be shared."
        )


def report_last(sweep: SweepConfig, metrics: Metrics) -> None:
    """The metrics of rounds that are over: when the last good one was, and what the last one of all was worse in."""
    root = Storage(sweep.root)
    # They are notes for metrics: one that is damaged is written anew by this round, and ends none.
    with contextlib.suppress(FileNotFoundError, StorageError), root.understood(SUCCESS):
        # Read first: a gauge with these labels is there, at 0, as soon as it is asked for.
        at = root.read_json(SUCCESS)["at"]
        metrics.sweep_success.labels(sweep.name).set(at)
    with contextlib.suppress(FileNotFoundError, StorageError), root.understood(LAST):
        last = root.read_json(LAST)
        regressions, counts = last["regressions"], last["cells"].items()
        metrics.regressions.labels(sweep.name).set(regressions)
        for state, cells in counts:
            metrics.sweep_cells.labels(sweep.name, state).set(cells)
