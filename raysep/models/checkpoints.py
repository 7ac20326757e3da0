"""The weights of a run's checkpoints, as safetensors."""

import hashlib
from dataclasses import replace

import torch
from safetensors.torch import load, save
from torch import nn

from raysep.models.build import create
from raysep.models.meta import META, WEIGHTS, CheckpointMeta, directory, to_json
from raysep.storage.store import Storage


def save_checkpoint(store: Storage, model: nn.Module, meta: CheckpointMeta) -> None:
    """Write weights, then meta: a checkpoint is there when its meta is."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # safetensors refuses tensors that share memory; a model's tied weights are stored twice.
    seen: set[int] = set()
    for key, value in state.items():
        if value.data_ptr() in seen:
            state[key] = value.clone()
        seen.add(value.data_ptr())
    content = save(state)
    where = directory(meta.model.id, meta.trial, meta.step)
    store.write_bytes(f"{where}/{WEIGHTS}", content)
    store.write_json(f"{where}/{META}", to_json(replace(meta, sha256=hashlib.sha256(content).hexdigest())))


def load_checkpoint(store: Storage, meta: CheckpointMeta) -> nn.Module:
    """The model of a checkpoint, in evaluation mode, on the CPU."""
    model = create(meta.model, num_classes=len(meta.classes), weights=False)
    state: dict[str, torch.Tensor] = load(
        store.read_bytes(f"{directory(meta.model.id, meta.trial, meta.step)}/{WEIGHTS}")
    )
    model.load_state_dict(state)
    return model.eval()
