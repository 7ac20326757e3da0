"""Resumable training state of a running trial.

The state is saved periodically to one file, which is deleted when the trial ends. Ray Tune in the same run, or the next
run, restarts an interrupted trial, which resumes from the file; on CPUs, the final weights are bit-identical.
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
# Interval between saves, and thus the most work to lose with a process. Shorter trials restart.
SAVE_INTERVAL_S = 60.0


@dataclass(frozen=True)
class Progress:
    """Progress of a trial at a save.

    Attributes:
        step: number of finished optimizer steps.
        seconds: training time, without interruptions.
        losses: training losses since the last evaluation.
        evaluations: all evaluations so far, as dictionaries.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


class TrainingState:
    """Saves and restores the training state of one trial.

    Args:
        store: the run directory.
        trial: the trial.
        parts: objects with a `state_dict`, by name.
        device: the torch device whose random generators are used.
    """

    def __init__(self, store: Storage, trial: Trial, parts: Mapping[str, Any], device: str) -> None:
        self._store, self._trial, self._parts, self._device = store, trial, parts, device
        self._saved_at = time.monotonic()

    def restore(self) -> Progress:
        """Load the last saved state into all parts, and return its progress; if none is saved, return step 0."""
        saved = load(self._store, self._trial)
        if saved is None:
            return Progress()
        for name, part in self._parts.items():
            part.load_state_dict(saved["parts"][name])
        torch.set_rng_state(saved["random"]["cpu"])
        if saved["random"]["cuda"]:
            torch.cuda.set_rng_state_all(saved["random"]["cuda"])
        return Progress(**saved["progress"])

    def is_due(self) -> bool:
        """Whether `SAVE_INTERVAL_S` has passed since the last save."""
        return time.monotonic() - self._saved_at >= SAVE_INTERVAL_S

    def save(self, progress: Progress) -> None:
        """Replace the saved state."""
        cuda = torch.cuda.get_rng_state_all() if self._device.startswith("cuda") else []
        content = {
            "progress": asdict(progress),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }
        sink = io.BytesIO()
        torch.save(content, sink)
        self._store.write_bytes(_path(self._trial), sink.getvalue())
        self._saved_at = time.monotonic()


def load(store: Storage, trial: Trial) -> dict[str, Any] | None:
    """Read the saved state to the CPU; None if missing or invalid. Unpickles plain data and tensors only."""
    try:
        content = unpickled(store.read_bytes(_path(trial)))
    except (FileNotFoundError, ValueError):
        # The trial then restarts from step 0.
        return None
    valid = isinstance(content, dict) and content.keys() == {"progress", "random", "parts"}
    return content if valid else None


def delete(store: Storage, trial: Trial) -> None:
    """Delete the saved state of a finished trial."""
    store.delete(_path(trial))


def _path(trial: Trial) -> str:
    return f"{trial.directory}/{FILE}"
