"""A whole run, ended at each of its file operations in turn, and run again: the same results, and nothing wrong.

One process, without Ray: an operation that fails takes all later ones
with it, as a process that is killed does nothing more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from raysep import claims, pipeline, work
from raysep.embed import progress
from raysep.finetune import state
from raysep.storage import Storage
from raysep.telemetry import Telemetry
from raysep.verification import verify
from tests.serial import configuration, results, without_ray


class CrashError(BaseException):
    """The process is gone."""


class Crashing:
    """A file system that is there until a given change of it, and does nothing from then on.

    A file that is being written then is cut in half.
    """

    def __init__(self, fs: pafs.FileSystem, at: int | None) -> None:
        self._fs, self._at, self.changes = fs, at, 0

    def __getattr__(self, name: str) -> Any:
        if name in {"move", "delete_file"}:
            return lambda *arguments: self._change(lambda: getattr(self._fs, name)(*arguments))
        return getattr(self._fs, name)

    def _change(self, work: Any) -> Any:
        self._count()
        return work()

    def _count(self) -> None:
        self.changes += 1
        if self._at is not None and self.changes >= self._at:
            raise CrashError

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[Any]:
        self._count()
        outer = self
        with self._fs.open_output_stream(path) as stream:

            class Half:
                def write(self, content: bytes) -> None:
                    try:
                        outer._count()
                    except CrashError:
                        stream.write(content[: len(content) // 2])
                        raise
                    stream.write(content)

            yield Half()


@pytest.mark.slow
def test_wherever_a_run_is_ended_it_goes_on_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without_ray(monkeypatch)
    monkeypatch.setattr(state, "KEEP_INTERVAL_S", 0.0)
    # A layer's scores are one file operation, however many they are.
    monkeypatch.setattr(work, "DIAGNOSTICS", ("nonfinite_rows",))
    # The process that crashed is this one: its lock must look like one that is gone.
    monkeypatch.setattr(claims.Claim, "alive", lambda claim, now: False)
    config = configuration(tmp_path)
    made: list[Crashing] = []
    at: int | None = None
    plain = Storage.__init__

    def wrapped(self: Storage, uri: str) -> None:
        plain(self, uri)
        if self.root.startswith(str(tmp_path / "run")):
            made.append(Crashing(self.fs, None) if not made else made[0])
            self.fs = made[0]

    monkeypatch.setattr(Storage, "__init__", wrapped)
    # A picture takes longer than all the rest: one of them stands for all.
    monkeypatch.setattr("raysep.report.html.draw", lambda summary: iter([("figure", "A figure", b"png")]))

    def go(name: str) -> Storage:
        made.clear()
        run = Storage(str(tmp_path / name))
        made[0]._at = at
        pipeline.run(config.model_copy(update={"run_dir": str(tmp_path / name)}), telemetry=Telemetry())
        return run

    expected = results(go("run"))
    changes = made[0].changes
    assert changes > 60
    kept = 0
    for at in range(1, changes + 1):
        with pytest.raises(CrashError):
            go(f"run{at}")
        before, at = at, None
        made.clear()
        left = Storage(str(tmp_path / f"run{before}"))
        if left.exists("config.yaml"):
            assert verify(left).findings == [], before
        kept += any(path.rpartition("/")[2].startswith(progress.PREFIX) for path in left.files())
        run = go(f"run{before}")
        assert results(run) == expected, before
        found = verify(run)
        assert (found.findings, found.unfinished) == ([], []), before
    assert kept > 0
