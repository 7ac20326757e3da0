"""A whole run, ended at each of its file operations in turn, and run again: the same results, and nothing wrong.

One process, without Ray: an operation that fails takes all later ones with it, as a process that is killed does
nothing more.
"""

from pathlib import Path

import pytest

from raysep import pipeline
from raysep.embedding import ledger
from raysep.finetune import resume
from raysep.integrity import verify
from raysep.stages import worklist
from raysep.stages.executor import LocalExecutor
from raysep.storage.store import Storage
from tests.crashing import CrashError, Crashes
from tests.serial import configuration, results


@pytest.mark.slow
def test_wherever_a_run_is_ended_it_goes_on_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SAVE_INTERVAL_S", 0.0)
    # A layer's scores are one file operation, however many they are.
    monkeypatch.setattr(worklist, "DIAGNOSTICS", ("nonfinite_rows",))
    config = configuration(tmp_path)
    crashes = Crashes(monkeypatch, tmp_path / "run")
    # A picture takes longer than all the rest: one of them stands for all.
    monkeypatch.setattr("raysep.report.html.draw", lambda summary: iter([("figure", "A figure", b"png")]))

    def go(name: str, at: int | None = None) -> Storage:
        crashes.begin(at)
        run = Storage(str(tmp_path / name))
        pipeline.run(config.model_copy(update={"run_dir": str(tmp_path / name)}), executor=LocalExecutor())
        return run

    expected = results(go("run"))
    changes = crashes.changes
    assert changes > 60
    kept = 0
    for at in range(1, changes + 1):
        with pytest.raises(CrashError):
            go(f"run{at}", at)
        crashes.begin()
        left = Storage(str(tmp_path / f"run{at}"))
        if left.exists("config.yaml"):
            assert verify(left).findings == [], at
        kept += any(path.rpartition("/")[2].startswith(ledger.PREFIX) for path in left.files())
        run = go(f"run{at}")
        assert results(run) == expected, at
        found = verify(run)
        assert (found.findings, found.unfinished) == ([], []), at
    assert kept > 0
