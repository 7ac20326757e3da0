"""Where a trial stands between two steps: all that training needs to go on from there as if nothing had been.

Written now and then while a trial runs, in one file, and gone when the trial has ended. A trial that is begun again,
by Ray Tune in the same call or by the next call, goes on from it: on CPUs to the same weights, bit for bit.
"""

import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from raysep.finetune.trials import Trial
from raysep.models.pickles import unpickled
from raysep.storage.store import Storage

FILE = "state.pt"
# So much work is lost at most where a trial loses its process; shorter trials begin anew.
KEEP_INTERVAL_S = 60.0


@dataclass(frozen=True)
class Progress:
    """How far a trial has come.

    Attributes:
        step: optimizer steps that are done.
        seconds: since its beginning, without the time in which it stood still.
        losses: since the last evaluation.
        evaluations: all by now, as dictionaries.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


class State:
    """The state of one trial, in its process and in its file.

    Args:
        store: the run directory.
        trial: which.
        parts: what has a `state_dict` of its own.
        device: whose generators are drawn from.
    """

    def __init__(self, store: Storage, trial: Trial, parts: Mapping[str, Any], device: str) -> None:
        self._store, self._trial, self._parts, self._device = store, trial, parts, device
        self._kept = time.monotonic()

    def restored(self) -> Progress:
        """Put all parts where they were last, and say how far that was; where nothing was kept, at the beginning."""
        found = load(self._store, self._trial)
        if found is None:
            return Progress()
        for name, part in self._parts.items():
            part.load_state_dict(found["parts"][name])
        torch.set_rng_state(found["random"]["cpu"])
        if found["random"]["cuda"]:
            torch.cuda.set_rng_state_all(found["random"]["cuda"])
        return Progress(**found["progress"])

    def is_due(self) -> bool:
        """Whether it was kept so long ago that it should be again."""
        return time.monotonic() - self._kept >= KEEP_INTERVAL_S

    def keep(self, progress: Progress) -> None:
        """Write it, in place of what was kept before."""
        cuda = torch.cuda.get_rng_state_all() if self._device.startswith("cuda") else []
        content = {
            "progress": asdict(progress),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }
        sink = io.BytesIO()
        torch.save(content, sink)
        self._store.write_bytes(_path(self._trial), sink.getvalue())
        self._kept = time.monotonic()


def load(store: Storage, trial: Trial) -> dict[str, Any] | None:
    """What was kept, on the CPU; None where there is nothing that can be read. Nothing is unpickled but data."""
    try:
        found = unpickled(store.read_bytes(_path(trial)))
    except (FileNotFoundError, ValueError):
        # A trial can always begin anew.
        return None
    whole = isinstance(found, dict) and found.keys() == {"progress", "random", "parts"}
    return found if whole else None


def forget(store: Storage, trial: Trial) -> None:
    """The trial has ended."""
    store.delete(_path(trial))


def _path(trial: Trial) -> str:
    return f"{trial.directory}/{FILE}"
