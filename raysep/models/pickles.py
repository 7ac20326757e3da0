"""What torch itself saves: tensors and plain values are read, and no code is run."""

import argparse
import datetime
import io
import pathlib
import re
import types
from typing import Any

import numpy as np
import torch


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """In place of a defaultdict."""
    return {}


def _plain_list(*_: Any) -> list[Any]:
    """In place of a deque."""
    return []


# Training programs keep their arguments and figures beside the weights. Making one of these runs no code of the
# file's. numpy 1 and 2, Python before and after 3.13, and Windows call the same things by different names.
_SAFE: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    *(frozenset, slice, range),
    # torch's reader fills no others than dicts and lists. What a defaultdict makes of a missing key is a type.
    (_plain_dict, "collections.defaultdict"),
    (_plain_list, "collections.deque"),
    *(dict, list, set, tuple, int, float, str, bool),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    *(pathlib.PurePosixPath, pathlib.PureWindowsPath),
    *(np.ndarray, np.dtype, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (
            ("scalar", np.float64(0).__reduce__()[0]),
            ("_reconstruct", np.zeros(1).__reduce__()[0]),
        )
    ),
]
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
_INSTEAD = "save the weights alone: torch.save(model.state_dict(), path)"


def unpickled(content: bytes) -> Any:
    """Tensors, on the CPU, and plain values.

    Raises:
        ValueError: of what is damaged, or holds anything that would run code: what, and what to do.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # Of damaged bytes the reader may raise anything.
        raise ValueError(_in_words(content, error)) from error


def _in_words(content: bytes, error: Exception) -> str:
    """torch's own text is about its options, and steers terminals."""
    text = str(error)
    if "TorchScript" in text:
        return (
            f"it is a TorchScript archive, a program and not a state dict; of the model that it was made of, {_INSTEAD}"
        )
    if classes := _classes(content, text):
        which = ", ".join(classes[:6]) + (f" and {len(classes) - 6} more" if len(classes) > 6 else "")
        if any(re.match(r"(torch\.nn\.modules|timm\.(models|layers)|torchvision\.models)\.", name) for name in classes):
            return f"it is a whole model ({which}), which only runs with the code that it was saved with; {_INSTEAD}"
        return f"it holds more than tensors and plain values ({which}), and reading that may run code; {_INSTEAD}"
    return f"it is damaged, or was not written by torch.save ({len(content)} bytes)"


def _classes(content: bytes, text: str) -> list[str]:
    """What the file asks for beside tensors and plain values: all of it where torch can tell, else the first."""
    try:
        with torch.serialization.safe_globals(_SAFE):
            if found := torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)):
                return sorted(found)
    except Exception:  # noqa: BLE001  (of the older format, or damaged: then there is the text)
        pass
    return _REFUSED.findall(text)[:1]
