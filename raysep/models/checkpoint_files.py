"""Reader of checkpoint files: finds all state dicts in a safetensors file or a pickle of torch."""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, load_file

from raysep.errors import ConfigError, RaysepError
from raysep.models.pickles import unpickled
from raysep.storage.store import is_uri
from raysep.storage.uris import read_file

# Maximum nesting of state dicts.
MAX_DEPTH = 5
# Files of other kinds, by first bytes, with advice.
OTHER_KINDS = (
    (b"\x89HDF", "is an HDF5 file (Keras): expected weights of torch"),
    (b"\x1f\x8b", "is a gzip archive: unpack it and set the path of the weights in it"),
    (b"version https://git-lfs", "is a Git LFS pointer: fetch the file itself (git lfs pull)"),
    (b"<!DOCTYPE", "is a web page: download the file itself"),
    (b"<!doctype", "is a web page: download the file itself"),
    (b"<html", "is a web page: download the file itself"),
    (b"{", "is JSON, like the index of sharded weights: merge the shards into one file"),
)


@dataclass(frozen=True)
class Container:
    """A dict of named tensors in a checkpoint file.

    Attributes:
        path: keys that lead to the dict; empty for the top level.
        tensors: by name, as stored.
    """

    path: tuple[str, ...]
    tensors: dict[str, torch.Tensor]

    @property
    def name(self) -> str:
        """Keys that lead to the tensors in the nested checkpoint, joined by dots."""
        return ".".join(self.path)


@dataclass(frozen=True)
class CheckpointFile:
    """The content of a checkpoint file.

    Attributes:
        containers: at least one, in file order.
        pickled: the file is a pickle, not safetensors.
    """

    containers: list[Container]
    pickled: bool


def read_checkpoint(path: str, name: str) -> CheckpointFile:
    """Read a safetensors file or a pickle of torch, detected by content. Runs no code of the file.

    Args:
        path: local path or URI.
        name: name of the model, for messages.

    Raises:
        ConfigError: the file is damaged, of another kind, or has no named tensors.
    """
    where = f"models: {name}: {path}"
    try:
        return _read(path, where)
    except RaysepError:
        raise
    except OSError as error:
        raise ConfigError([f"{where} can't be read: {error.strerror or error}"]) from error


def _read(path: str, where: str) -> CheckpointFile:
    head = _head(path)
    problem = next((text for start, text in OTHER_KINDS if head.startswith(start)), None)
    if not head:
        problem = "is empty"
    if problem is not None:
        raise ConfigError([f"{where} {problem}"])
    if _is_safetensors(head, path):
        try:
            tensors = load(read_file(path)) if is_uri(path) else load_file(Path(path).expanduser())
        except Exception as error:
            # For damaged files, the reader may raise anything.
            reason = " ".join(str(error).split())[:200]
            raise ConfigError([f"{where} is a damaged or incomplete safetensors file ({reason})"]) from error
        if not tensors:
            raise ConfigError([f"{where} contains no tensors"])
        return CheckpointFile([Container((), tensors)], pickled=False)
    content = read_file(path)
    if head.startswith(b"PK") and _is_numpy(path):
        raise ConfigError([f"{where} is a NumPy archive (JAX weights): save it as a state dict of the timm model"])
    try:
        value = unpickled(content)
    except ValueError as error:
        raise ConfigError([f"{where} can't be read as a state dict: {error}"]) from None
    if containers := list(_containers(value, ())):
        return CheckpointFile(containers, pickled=True)
    raise ConfigError([f"{where} contains no state dict (names and tensors): {_description(value)}"])


def _head(path: str) -> bytes:
    if is_uri(path):
        return read_file(path)[:512]
    with Path(path).expanduser().open("rb") as file:
        return file.read(512)


def _is_safetensors(head: bytes, path: str) -> bool:
    """Detect safetensors by content (length of a JSON header, then the header), else by suffix."""
    if head[8:9] == b"{" and not head.startswith((b"PK", b"\x80")):
        return True
    return path.lower().partition("?")[0].endswith(".safetensors") and not head.startswith((b"PK", b"\x80\x02"))


def _is_numpy(path: str) -> bool:
    if is_uri(path):
        return False
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _containers(value: Any, path: tuple[str, ...]) -> Iterator[Container]:
    """The tensors of a dict, then those of nested dicts. Optimizer states are skipped."""
    if not isinstance(value, Mapping) or "param_groups" in value or len(path) > MAX_DEPTH:
        return
    # Some programs store NumPy arrays instead of tensors.
    items = {
        key: torch.from_numpy(item) if isinstance(item, np.ndarray) and item.dtype.kind in "fib" else item
        for key, item in value.items()
        if isinstance(key, str)
    }
    tensors = {
        key: item for key, item in items.items() if isinstance(item, torch.Tensor) and item.layout is torch.strided
    }
    if tensors:
        yield Container(path, tensors)
    for key, item in value.items():
        if isinstance(key, str):
            yield from _containers(item, (*path, key))


def _description(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"it is a {'list' if isinstance(value, list | tuple) else type(value).__name__}"
    if not value:
        return "it is an empty dict"
    if "param_groups" in value:
        return "it is an optimizer state"
    keys = [str(key) for key in value]
    rest = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
    optimizer = any(isinstance(item, Mapping) and "param_groups" in item for item in value.values())
    note = "; it contains an optimizer state but no weights" if optimizer else ""
    return f"its keys are {', '.join(keys[:12])}{rest}{note}"
