"""Safe loading of torch pickles: tensors and plain values only, without running code."""

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
    """Stands in for `collections.defaultdict`."""
    return {}


def _plain_list(*_: Any) -> list[Any]:
    """Stands in for `collections.deque`."""
    return []


# Types of arguments and figures that training programs store with the weights. Creating them runs no code of the file.
# Their names differ between NumPy 1 and 2, Python before and after 3.13, and Windows and other systems.
_SAFE: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    *(frozenset, slice, range),
    # torch's reader can fill only dicts and lists, and a defaultdict would need its factory type.
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
_ADVICE = "save the weights alone: torch.save(model.state_dict(), path)"


def unpickled(content: bytes) -> Any:
    """Load tensors, on the CPU, and plain values.

    Raises:
        ValueError: the content is damaged, or would run code; the message has advice.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # For damaged content, the reader may raise anything.
        raise ValueError(_problem(content, error)) from error


def _problem(content: bytes, error: Exception) -> str:
    """A message for users instead of torch's own, which describes torch's options and contains terminal escapes."""
    text = str(error)
    if "TorchScript" in text:
        return f"it is a TorchScript archive, a program and not a state dict; from the original model, {_ADVICE}"
    if classes := _classes(content, text):
        names = ", ".join(classes[:6]) + (f" and {len(classes) - 6} more" if len(classes) > 6 else "")
        if any(re.match(r"(torch\.nn\.modules|timm\.(models|layers)|torchvision\.models)\.", name) for name in classes):
            return f"it is a pickled model ({names}), which requires its original code; {_ADVICE}"
        return f"it contains more than tensors and plain values ({names}), which may run code; {_ADVICE}"
    return f"it is damaged, or not written by torch.save ({len(content)} bytes)"


def _classes(content: bytes, text: str) -> list[str]:
    """The unsafe classes in a file: all of them if torch can list them, else the first, from its error text."""
    try:
        with torch.serialization.safe_globals(_SAFE):
            if classes := torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)):
                return sorted(classes)
    except Exception:  # noqa: BLE001  (damaged or of the older format: fall back to the text)
        pass
    return _REFUSED.findall(text)[:1]
