import pickle
from pathlib import Path
from typing import Any

import pytest

from raysep.errors import UsageError
from raysep.storage.store import TEMPORARY_PREFIX, Storage


def test_written_files_are_read_back(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "run"))
    assert not storage.exists()
    assert storage.files() == []
    storage.write_json("a/b.json", {"é": [1, None]})
    storage.write_bytes("a/c", b"first")
    storage.write_bytes("a/c", b"second")
    assert storage.read_json("a/b.json") == {"é": [1, None]}
    assert storage.read_bytes("a/c") == b"second"
    assert storage.files() == ["a/b.json", "a/c"]
    assert storage.files("a", name="c") == ["a/c"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("none")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("x", b"old")

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(type(storage)(str(tmp_path)).fs, name)

        def move(self, source: str, target: str) -> None:
            raise OSError("no")

    monkeypatch.setattr(storage, "fs", Broken())
    with pytest.raises(OSError, match="no"):
        storage.write_bytes("x", b"new")
    again = Storage(str(tmp_path))
    assert again.read_bytes("x") == b"old"
    assert again.files() == ["x"]
    assert not any(path.name.startswith(TEMPORARY_PREFIX) for path in tmp_path.iterdir())


def test_file_uris_equal_paths(tmp_path: Path) -> None:
    by_path, by_uri = Storage(str(tmp_path)), Storage(tmp_path.as_uri())
    by_path.write_bytes("d/x", b"1")
    assert by_uri.files() == ["d/x"]
    assert pickle.loads(pickle.dumps(by_path)).read_bytes("d/x") == b"1"


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UsageError, match="nosuch://x"):
        Storage("nosuch://x")
