"""Where a trial stands between two steps: all that training needs to go on from there as if nothing had been.

Written now and then while a trial runs, in one file, and gone when the trial has ended. A trial that is begun again,
by Ray Tune in the same call or by the next call, goes on from it: on CPUs to the same weights, bit for bit.
"""

import io
from typing import Any

import torch

from raysep.finetune.trials import Trial
from raysep.models.pickles import unpickled
from raysep.storage import Storage

FILE = "state.pt"


def save(run: Storage, trial: Trial, state: dict[str, Any]) -> None:
    """Replace the state of a trial: tensors, numbers, strings, and lists and dictionaries of them."""
    sink = io.BytesIO()
    torch.save(state, sink)
    run.write_bytes(_path(trial), sink.getvalue())


def load(run: Storage, trial: Trial) -> dict[str, Any] | None:
    """The state of a trial, on the CPU; None where there is none that can be read. Nothing is unpickled but data."""
    try:
        found = unpickled(run.read_bytes(_path(trial)))
    except (FileNotFoundError, ValueError):
        # A trial can always begin anew.
        return None
    return found if isinstance(found, dict) else None


def forget(run: Storage, trial: Trial) -> None:
    """The trial has ended."""
    run.delete(_path(trial))


def random_state(device: str) -> dict[str, Any]:
    """Of torch's generators, which draw augmentation and dropout."""
    cuda = torch.cuda.get_rng_state_all() if device.startswith("cuda") else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """What `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _path(trial: Trial) -> str:
    return f"{trial.directory}/{FILE}"
