"""Writing and reading the checkpoints of a run, as safetensors."""

import hashlib
from dataclasses import replace

import torch
from safetensors.torch import load, save
from torch import nn

from raysep.models.build import create
from raysep.models.meta import META, WEIGHTS, CheckpointMeta, directory, to_json
from raysep.storage.store import Storage


def save_checkpoint(store: Storage, model: nn.Module, meta: CheckpointMeta) -> None:
    """Write weights, then metadata: a checkpoint exists once its metadata does."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # safetensors rejects tensors that share memory, so tied weights are stored twice.
    seen: set[int] = set()
    for key, value in state.items():
        if value.data_ptr() in seen:
            state[key] = value.clone()
        seen.add(value.data_ptr())
    content = save(state)
    path = directory(meta.model.id, meta.trial, meta.step)
    store.write_bytes(f"{path}/{WEIGHTS}", content)
    store.write_json(f"{path}/{META}", to_json(replace(meta, sha256=hashlib.sha256(content).hexdigest())))


def load_checkpoint(store: Storage, meta: CheckpointMeta) -> nn.Module:
    """Load the model of a checkpoint, in evaluation mode, on the CPU."""
    model = create(meta.model, num_classes=len(meta.classes), weights=False)
    state: dict[str, torch.Tensor] = load(
        store.read_bytes(f"{directory(meta.model.id, meta.trial, meta.step)}/{WEIGHTS}")
    )
    model.load_state_dict(state)
    return model.eval()
