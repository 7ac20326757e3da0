"""`raysep history` and `raysep compare` on shared results tables."""

from pathlib import Path
from typing import Any

import pytest

from raysep.cli import main
from raysep.storage.store import Storage
from raysep.sweeps import results
from tests.sweeps.test_results import row

SAME: dict[str, Any] = {"data_sha256": "x", "metric": "nmi", "headline_protocol": "default"}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("COLUMNS", "200")
    store = Storage(str(tmp_path / "table"))
    for name, g in (("nightly", 0.5), ("weekly", 0.9)):
        for day, label in enumerate(("r1", "r2")):
            results.put(store, row(sweep=name, round=label, day=day, g=g + 0.01 * day, **SAME))
    return store


def called(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        main(list(arguments))
        code: object = 0
    except SystemExit as ended:
        code = ended.code
    output = capfd.readouterr()
    assert isinstance(code, int)
    assert "Traceback" not in output.err
    return code, output.out, output.err


def test_the_history_of_a_shared_table_names_the_sweeps(table: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    table.write_bytes("date=2026-11-24/cut.parquet", b"PAR1")
    code, out, err = called(capfd, "history", table.root)
    assert code == 0
    assert [line.split("│")[2].strip() for line in out.splitlines() if "vit_a" in line] == [
        *["nightly"] * 2,
        *["weekly"] * 2,
    ]
    # `history` reports the damaged file, but moves nothing.
    assert "cut.parquet is damaged and left out" in err
    assert table.exists("date=2026-11-24/cut.parquet")


def test_cells_are_compared_within_their_sweep(table: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(capfd, "compare", "r1", "r2", "--sweep", table.root)
    assert code == 0
    lines = [line for line in out.splitlines() if "vit_a" in line]
    assert ["nightly: vit_a" in lines[0], "weekly: vit_a" in lines[1]] == [True, True]
    assert all("+0.010" in line for line in lines)


def test_incomparable_cells_have_no_change_and_exit_code_3(table: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    results.put(table, row(sweep="nightly", round="r3", day=2, g=0.021, **{**SAME, "data_sha256": "y"}))
    code, out, err = called(capfd, "compare", "r1", "r3", "--sweep", table.root)
    assert code == 3
    assert "vit_a: not comparable: other images" in err
    assert "-0.4" not in out
    # Rounds of different sweeps have no cell in common: the error names the sweeps.
    results.put(table, row(sweep="weekly", round="r4", day=3, **SAME))
    code, _, err = called(capfd, "compare", "r3", "r4", "--sweep", table.root)
    assert code == 2
    assert "r3 belongs to the sweep nightly, r4 to weekly" in err
