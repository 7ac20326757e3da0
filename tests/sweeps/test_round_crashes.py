"""A round that crashes at each of its file operations in turn, and resumes, in a table shared with another sweep.

All cells have the outcome of one real run: tests/test_crashes.py tests crashes of runs.
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

# Joined with dots, the rows of both sweeps would have the same file names.
OURS, OURS_ROUND, THEIRS, THEIR_ROUND = "nightly.v1", "2", "nightly", "v1.2"
MODELS = [{**TINY_CNN, "id": name, "layers": ["act1", "layer4"]} for name in ("a", "b")]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """summary.json of a run, and the configuration that the cells share."""
    directory = tmp_path_factory.mktemp("cell")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysep.report.html.draw", lambda summary: iter([]))
        config = configuration(directory).model_copy(update={"run_dir": str(directory / "run")})
        result = pipeline.run(config, executor=LocalExecutor())
    assert result is not None
    base = config.model_dump(mode="json", exclude={"run_dir", "models", "name"})
    # The gate requires intervals in the configuration, though the run has none.
    base["score"]["resamples"] = 20
    return result.model_dump_json(), base


def test_no_row_is_lost_wherever_a_round_crashes(
    summary: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, base = summary

    def outcomes(sweep: SweepConfig, root: Storage, label: str, todo: Sequence[Any], *_: Any) -> Iterator[Any]:
        for item in todo:
            yield item, Outcome(text, None, 1.0)

    monkeypatch.setattr(rounds, "_outcomes", outcomes)
    crashes = Crashes(monkeypatch, tmp_path)
    theirs = [row(cell, sweep=THEIRS, round=THEIR_ROUND) for cell in ("a", "b")]

    def fresh(name: str) -> SweepConfig:
        """A table with two rows of the other sweep, one in a file of an early version, and a damaged file."""
        crashes.begin()
        store = Storage(str(tmp_path / name / "table"))
        results.put(store, theirs[0])
        write_file(store, f"date={theirs[1]['date']}/{THEIRS}.{THEIR_ROUND}.b.parquet", as_table(theirs[1]))
        store.write_bytes("date=2026-11-24/cut.parquet", b"PAR1")
        values = {"name": OURS, "root": str(tmp_path / name / "root"), "results": store.root, "base": base}
        values |= {"matrix": {"models": MODELS}, "monitoring": {"port": None}, "baseline": {}}
        return SweepConfig.model_validate(values)

    def check(sweep: SweepConfig, when: object) -> None:
        table = results.read(Storage(sweep.results))
        assert [each for each in table.rows if each["sweep"] == THEIRS] == theirs, when
        ours = [each for each in table.rows if each["sweep"] == OURS]
        identities = [tuple(each[key] for key in results.IDENTITY) for each in ours]
        assert len(identities) == len(set(identities)), when
        assert all(each["state"] == results.DONE for each in ours), when

    def perform(sweep: SweepConfig, at: int | None = None) -> None:
        crashes.begin(at)
        done = rounds.perform(sweep, OURS_ROUND, Telemetry())
        assert (done.failed, done.verdict.regressions) == ([], [])

    perform(fresh("whole"))
    changes = crashes.changes
    assert changes > 20
    for stop in range(1, changes + 1):
        sweep = fresh(f"at{stop}")
        with pytest.raises(CrashError):
            perform(sweep, stop)
        crashes.begin()
        check(sweep, stop)
        perform(sweep)
        check(sweep, stop)
        store = Storage(sweep.results)
        assert len([each for each in results.rows(store) if each["sweep"] == OURS]) == 2, stop
        # The damaged file was moved with its content.
        (quarantined,) = store.files("_damaged")
        assert store.read_bytes(quarantined) == b"PAR1", stop
        root = Storage(sweep.root)
        assert root.exists(notes.SUCCESS), stop
        assert root.exists(f"report/{OURS_ROUND}/index.html"), stop
