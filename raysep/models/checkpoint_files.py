"""Files of weights as training programs write them: which sets of named tensors they hold, and where in the file."""

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

# How deep state dicts lie in dicts of dicts.
MOST_LEVELS = 5
# What people give in place of weights, by its first bytes, and what to do then.
OTHER_KINDS = (
    (b"\x89HDF", "is an HDF5 file (Keras): weights of torch are wanted"),
    (b"\x1f\x8b", "is a gzip archive: unpack it and give the file of weights in it"),
    (b"version https://git-lfs", "is a pointer of Git LFS: fetch the file itself (git lfs pull)"),
    (b"<!DOCTYPE", "is a web page: download the file itself"),
    (b"<!doctype", "is a web page: download the file itself"),
    (b"<html", "is a web page: download the file itself"),
    (b"{", "is JSON, as the index of weights in several files: join them into one, and give that"),
)


@dataclass(frozen=True)
class Container:
    """Named tensors that lie together in a file.

    Attributes:
        path: the keys that lead there; empty for the file itself.
        tensors: by name, as they are stored.
    """

    path: tuple[str, ...]
    tensors: dict[str, torch.Tensor]

    @property
    def name(self) -> str:
        """The keys with dots between them."""
        return ".".join(self.path)


@dataclass(frozen=True)
class CheckpointFile:
    """What a file holds.

    Attributes:
        containers: in the order of the file, at least one.
        pickled: it is a pickle, not safetensors.
    """

    containers: list[Container]
    pickled: bool


def read_checkpoint(path: str, name: str) -> CheckpointFile:
    """Read a safetensors file or one of torch's own, whatever its suffix. No code in it is run.

    Args:
        path: local path or URI.
        name: of the model, for messages.

    Raises:
        ConfigError: it is damaged, of another kind, or holds no named tensors.
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
    problem = next((words for start, words in OTHER_KINDS if head.startswith(start)), None)
    if not head:
        problem = "is empty"
    if problem is not None:
        raise ConfigError([f"{where} {problem}"])
    if _is_safetensors(head, path):
        try:
            tensors = load(read_file(path)) if is_uri(path) else load_file(Path(path).expanduser())
        except Exception as error:
            # Of damaged bytes the reader may raise anything.
            words = " ".join(str(error).split())[:200]
            raise ConfigError([f"{where} is not a whole safetensors file ({words})"]) from error
        if not tensors:
            raise ConfigError([f"{where} holds no tensors"])
        return CheckpointFile([Container((), tensors)], pickled=False)
    content = read_file(path)
    if head.startswith(b"PK") and _is_numpy(path):
        raise ConfigError([f"{where} is a NumPy archive (JAX weights): save it as a state dict of the timm model"])
    try:
        found = unpickled(content)
    except ValueError as error:
        raise ConfigError([f"{where} can't be read as a state dict: {error}"]) from None
    if containers := list(_containers(found, ())):
        return CheckpointFile(containers, pickled=True)
    raise ConfigError([f"{where} holds no state dict (names and tensors): {_what_it_is(found)}"])


def _head(path: str) -> bytes:
    if is_uri(path):
        return read_file(path)[:512]
    with Path(path).expanduser().open("rb") as file:
        return file.read(512)


def _is_safetensors(head: bytes, path: str) -> bool:
    """By content (the length of a JSON header, then the header), else by name."""
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


def _containers(found: Any, path: tuple[str, ...]) -> Iterator[Container]:
    """A dict's own tensors, then those of the dicts in it. An optimizer's tensors are no weights."""
    if not isinstance(found, Mapping) or "param_groups" in found or len(path) > MOST_LEVELS:
        return
    # Some programs keep arrays of numpy in their place.
    values = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fib" else value
        for key, value in found.items()
        if isinstance(key, str)
    }
    tensors = {
        key: value for key, value in values.items() if isinstance(value, torch.Tensor) and value.layout is torch.strided
    }
    if tensors:
        yield Container(path, tensors)
    for key, value in found.items():
        if isinstance(key, str):
            yield from _containers(value, (*path, key))


def _what_it_is(found: Any) -> str:
    if not isinstance(found, Mapping):
        return f"it is a {'list' if isinstance(found, list | tuple) else type(found).__name__}"
    if not found:
        return "it is an empty dict"
    if "param_groups" in found:
        return "it is the state of an optimizer"
    keys = [str(key) for key in found]
    rest = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
    optimizer = any(isinstance(value, Mapping) and "param_groups" in value for value in found.values())
    beside = "; the state of an optimizer is there, and no weights" if optimizer else ""
    return f"its keys are {', '.join(keys[:12])}{rest}{beside}"
