"""Safe loading of values that training programs store with weights, without running code."""

import argparse
import datetime
import io
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raysep.models.pickles import unpickled

PLAIN = [
    argparse.Namespace(lr=0.1, layers=[1, 2], device=torch.device("cpu")),
    SimpleNamespace(lr=0.1),
    OrderedDict(a=1),
    defaultdict(list, a=[1]),
    Counter("aab"),
    {1, 2},
    frozenset({1}),
    slice(1, 2),
    range(3),
    complex(1, 2),
    datetime.datetime(2024, 1, 2, 3, 4, tzinfo=datetime.UTC),
    datetime.timedelta(days=1),
    np.float64(1.5),
    np.float32(1.5),
    np.int64(3),
    np.bool_(True),
    np.str_("a"),
    np.dtype("float16"),
    PureWindowsPath("a/b"),
]


def written(content: object, zipped: bool = True) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink, _use_new_zipfile_serialization=zipped)
    return sink.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_are_restored(value: object, zipped: bool) -> None:
    assert unpickled(written({"args": value}, zipped))["args"] == value


def test_a_deque_becomes_a_list() -> None:
    assert unpickled(written({"losses": deque([1.0, 2.0], maxlen=5)})) == {"losses": [1.0, 2.0]}


def test_arrays_and_paths_are_restored() -> None:
    found = unpickled(written({"a": np.arange(3), "rng": np.random.get_state(), "p": Path("a") / "b"}))
    np.testing.assert_array_equal(found["a"], np.arange(3))
    np.testing.assert_array_equal(found["rng"][1], np.random.get_state()[1])
    # Paths are portable between systems.
    assert found["p"] == PurePosixPath("a/b")


def test_files_of_numpy_1_are_read() -> None:
    content = written({"best": np.float64(1.5)}, zipped=False)
    older = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert unpickled(older)["best"] == 1.5


class Settings:
    """A class of the training program."""


def test_unknown_classes_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"more than tensors and plain values \(tests\.models\.test_pickles\.Settings\)"
    ):
        unpickled(written({"state_dict": {}, "config": Settings()}))
