"""A round, ended at each of its file operations in turn, and run again, in a table that it shares with another sweep.

The cells' runs are one real run, done once: what a run leaves when it is ended is tested in tests/test_crashes.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raysep import pipeline
from raysep.stages.executor import LocalExecutor
from raysep.storage.store import Storage
from raysep.sweeps import notes, results, rounds
from raysep.sweeps.config import SweepConfig
from raysep.sweeps.launch import Outcome
from raysep.telemetry import Telemetry
from tests.conftest import TINY_CNN
from tests.crashing import CrashError, Crashes
from tests.serial import configuration
from tests.sweeps.test_results import as_table, row, write_file

# Joined with dots, the rows of both sweeps would have the same names.
OURS, OURS_ROUND, THEIRS, THEIR_ROUND = "nightly.v1", "2", "nightly", "v1.2"
MODELS = [{**TINY_CNN, "id": name, "layers": ["act1", "layer4"]} for name in ("a", "b")]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a cell's run says, and what the cells share."""
    directory = tmp_path_factory.mktemp("cell")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysep.report.html.draw", lambda summary: iter([]))
        config = configuration(directory).model_copy(update={"run_dir": str(directory / "run")})
        found = pipeline.run(config, executor=LocalExecutor())
    assert found is not None
    base = config.model_dump(mode="json", exclude={"run_dir", "models", "name"})
    # The gate asks for intervals; that the run had none is the gate's to say.
    base["score"]["resamples"] = 20
    return found.model_dump_json(), base


def test_no_row_of_anybody_is_lost_wherever_a_round_is_ended(
    summary: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text, base = summary

    def outcomes(sweep: SweepConfig, root: Storage, label: str, todo: Sequence[Any], *_: Any) -> Iterator[Any]:
        for item in todo:
            yield item, Outcome(text, None, 1.0)

    monkeypatch.setattr(rounds, "_outcomes", outcomes)
    crashes = Crashes(monkeypatch, tmp_path)
    theirs = [row(cell, sweep=THEIRS, round=THEIR_ROUND) for cell in ("a", "b")]

    def fresh(name: str) -> SweepConfig:
        """A table with rows of the other sweep, one as early versions named it, and a damaged file."""
        crashes.begin()
        store = Storage(str(tmp_path / name / "table"))
        results.put(store, theirs[0])
        write_file(store, f"date={theirs[1]['date']}/{THEIRS}.{THEIR_ROUND}.b.parquet", as_table(theirs[1]))
        store.write_bytes("date=2026-11-24/cut.parquet", b"PAR1")
        values = {"name": OURS, "root": str(tmp_path / name / "root"), "results": store.root, "base": base}
        values |= {"matrix": {"models": MODELS}, "monitoring": {"port": None}, "baseline": {}}
        return SweepConfig.model_validate(values)

    def check(sweep: SweepConfig, when: object) -> None:
        found = results.read(Storage(sweep.results))
        assert [each for each in found.rows if each["sweep"] == THEIRS] == theirs, when
        ours = [each for each in found.rows if each["sweep"] == OURS]
        identities = [tuple(each[key] for key in results.IDENTITY) for each in ours]
        assert len(identities) == len(set(identities)), when
        assert all(each["state"] == results.DONE for each in ours), when

    def go(sweep: SweepConfig, at: int | None = None) -> None:
        crashes.begin(at)
        done = rounds.perform(sweep, OURS_ROUND, Telemetry())
        assert (done.failed, done.verdict.regressions) == ([], [])

    go(fresh("whole"))
    changes = crashes.changes
    assert changes > 20
    for stop in range(1, changes + 1):
        sweep = fresh(f"at{stop}")
        with pytest.raises(CrashError):
            go(sweep, stop)
        crashes.begin()
        check(sweep, stop)
        go(sweep)
        check(sweep, stop)
        store = Storage(sweep.results)
        assert len([each for each in results.rows(store) if each["sweep"] == OURS]) == 2, stop
        # The damaged file is somewhere, and its bytes with it.
        (aside,) = store.files("_damaged")
        assert store.read_bytes(aside) == b"PAR1", stop
        root = Storage(sweep.root)
        assert root.exists(notes.SUCCESS), stop
        assert root.exists(f"report/{OURS_ROUND}/index.html"), stop
