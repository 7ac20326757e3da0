"""Results table, comparison, gate and leaderboard."""

import csv
import io
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysep.report.tables import markdown_of
from raysep.storage.store import Storage
from raysep.sweeps import compare, leaderboard, results
from raysep.sweeps.config import GateConfig

START = datetime(2026, 11, 24, 3, tzinfo=UTC)


def row(cell: str = "vit_a", day: int = 0, g: float | None = 0.5, **changes: Any) -> results.Row:
    at = START + timedelta(days=day)
    half = 0.03
    base: dict[str, Any] = dict.fromkeys(results.SCHEMA.names)
    values = {
        "date": f"{at:%Y-%m-%d}",
        "at": at,
        "sweep": "s",
        "round": f"{at:%Y-%m-%d}",
        "cell": cell,
        "key": "k",
        "state": results.DONE,
        "model": cell.partition("_")[0],
        "domain": cell.partition("_")[2],
        "seed": 0,
        "protocol": "",
        "override": "",
        "g": g,
        "corrected_g": g,
        "corrected_low": None if g is None else g - half,
        "corrected_high": None if g is None else g + half,
        "best_layer": 2,
        "last_layer": 4,
        "tied_layers": [1, 2],
        "seconds": 10.0,
    }
    return {**base, **values, **changes}


def test_rows_round_trip_and_replace_their_predecessors(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    first, later = row(), row(day=1)
    results.put(store, later)
    results.put(store, first)
    assert results.rows(store) == [first, later]
    # The same cell of the same round on the next day replaces the row.
    again = row(g=0.6, date="2026-11-25", at=START + timedelta(hours=23))
    results.put(store, again)
    assert results.rows(store) == [again, later]
    assert [path.partition("/")[0] for path in store.files()] == ["date=2026-11-25"] * 2
    assert results.rounds(results.rows(store), "s") == ["2026-11-24", "2026-11-25"]
    assert results.select(results.rows(store), round="2026-11-24") == [again]
    assert results.select(results.rows(store), date="2026-11-25") == [later]


NAMES = st.text(st.sampled_from("ab._-"), min_size=1, max_size=6)


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=6, unique=True))
def test_rows_of_any_names_get_distinct_files(identities: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = Storage(directory)
        for name, label, cell in identities:
            results.put(store, row(cell, sweep=name, round=label))
        stored = {tuple(each[key] for key in results.IDENTITY) for each in results.rows(store)}
    assert stored == set(identities)


def write_file(store: Storage, path: str, table: pa.Table | bytes) -> None:
    sink = io.BytesIO()
    if isinstance(table, pa.Table):
        pq.write_table(table, sink)
    store.write_bytes(path, table if isinstance(table, bytes) else sink.getvalue())


def as_table(*rows: results.Row, without: tuple[str, ...] = ()) -> pa.Table:
    schema = pa.schema([field for field in results.SCHEMA if field.name not in {"date", *without}])
    return pa.Table.from_pylist([{name: each[name] for name in schema.names} for each in rows], schema=schema)


def test_files_of_early_versions_are_read_and_replaced_only_by_their_own_row(tmp_path: Path) -> None:
    """Their names were ambiguous: `nightly`, `v1.2` and `nightly.v1`, `2` had the same one."""
    store = Storage(str(tmp_path))
    old = row(sweep="nightly", round="v1.2")
    write_file(store, f"date={old['date']}/nightly.v1.2.vit_a.parquet", as_table(old))
    results.put(store, row(sweep="nightly.v1", round="2", day=1))
    assert {each["sweep"] for each in results.rows(store)} == {"nightly", "nightly.v1"}
    again = row(sweep="nightly", round="v1.2", g=0.7, day=2)
    results.put(store, again)
    assert [each for each in results.rows(store) if each["sweep"] == "nightly"] == [again]
    assert len(store.files()) == 2


def test_missing_and_additional_columns_are_read(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    early, late = row("early"), row("late", day=1)
    write_file(store, "date=2026-11-24/a.parquet", as_table(early, without=("metric", "tied_layers", "machines")))
    newer = as_table(late).append_column("from_a_newer_version", pa.array([1]))
    index = newer.column_names.index("best_layer")
    newer = newer.set_column(index, "best_layer", newer["best_layer"].cast(pa.int64()))
    write_file(store, "date=2026-11-25/b.parquet", newer)
    table = results.read(store)
    assert (table.damaged, table.foreign) == ({}, [])
    assert table.rows == [{**early, "metric": None, "tied_layers": None, "machines": None}, late]
    assert compare.points_of_rows(table.rows)[0].metric is None


def test_damaged_files_are_reported_and_quarantined(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    good = row("good")
    results.put(store, good)
    (path,) = store.files()
    whole = store.read_bytes(path)
    nameless = as_table(row("x")).drop_columns("cell").append_column("cell", pa.nulls(1, pa.string()))
    damaged = {
        "date=2026-11-24/cut.parquet": whole[: len(whole) // 2],
        "date=2026-11-24/empty.parquet": b"",
        "date=2026-11-24/letters.parquet": as_table(row()).drop_columns("g").append_column("g", pa.array(["much"])),
        "date=2026-11-24/nobody.parquet": nameless,
        "date=2026-11-24/none.parquet": as_table(row()).slice(0, 0),
    }
    for name, content in damaged.items():
        write_file(store, name, content)
    write_file(store, "date=2026-11-24/other.parquet", pa.table({"a": [1]}))
    table = results.read(store)
    assert table.rows == [good]
    assert set(table.damaged) == set(damaged)
    assert table.foreign == ["date=2026-11-24/other.parquet"]
    assert all(any(name in line for line in table.remarks(store)) for name in damaged)
    moved = results.quarantine(store, table.damaged, "s")
    assert set(moved) == set(damaged)
    assert results.read(store).damaged == {}
    cut = "date=2026-11-24/cut.parquet"
    assert moved[cut].startswith(f"_damaged/{cut}.")
    assert store.read_bytes(moved[cut]) == whole[: len(whole) // 2]
    # Another sweep may be writing its file again.
    theirs = f"date=2026-11-24/{results.file_name(row(sweep='other'))}"
    write_file(store, theirs, b"PAR1")
    assert results.quarantine(store, [theirs], "s") == {}
    assert store.exists(theirs)
    store.delete(theirs)
    # Other readers ignore quarantined files.
    import pyarrow.dataset as ds

    store.delete("date=2026-11-24/other.parquet")
    assert ds.dataset(str(tmp_path), partitioning="hive").to_table(use_threads=False)["cell"].to_pylist() == ["good"]


def test_an_intact_file_is_not_quarantined(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    results.put(store, row())
    (path,) = store.files()
    assert results.quarantine(store, [path], "s") == {}
    assert results.rows(store) == [row()]


def test_storage_errors_are_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(str(tmp_path))
    results.put(store, row())

    def fail(*_: object) -> bytes:
        raise ConnectionResetError(104, "reset")

    monkeypatch.setattr(Storage, "read_bytes", fail)
    with pytest.raises(ConnectionResetError):
        results.read(store)


def test_the_later_row_counts_after_an_interrupted_replacement(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    first, second = row(), row(g=0.9, date="2026-11-25", at=START + timedelta(days=1))
    results.put(store, second)
    write_file(store, f"date=2026-11-24/{results.file_name(first)}", as_table(first))
    assert results.rows(store) == [second]


def test_other_tools_read_the_table(tmp_path: Path) -> None:
    import pyarrow.dataset as ds

    for day in (0, 1):
        results.put(Storage(str(tmp_path)), row(day=day))
    table = ds.dataset(str(tmp_path), partitioning="hive").to_table(use_threads=False)
    assert sorted(table["date"].to_pylist()) == ["2026-11-24", "2026-11-25"]


def test_a_change_is_significant_beyond_the_margin_of_both_intervals() -> None:
    (same,) = compare.differences(compare.points_of_rows([row(g=0.50)]), compare.points_of_rows([row(g=0.54)]))
    assert same.change == pytest.approx(0.04)
    # sqrt(0.03^2 + 0.03^2) = 0.0424.
    assert same.margin == pytest.approx(0.0424, abs=1e-4)
    assert same.beyond is False
    (other,) = compare.differences(compare.points_of_rows([row(g=0.50)]), compare.points_of_rows([row(g=0.55)]))
    assert other.beyond is True
    unknown = row(g=0.9, corrected_low=None, corrected_high=None)
    (difference,) = compare.differences(compare.points_of_rows([row()]), compare.points_of_rows([unknown]))
    assert (difference.margin, difference.beyond) == (None, None)
    assert compare.differences(compare.points_of_rows([row("a_b")]), compare.points_of_rows([row("c_d")])) == []


def test_the_gate_reports_lower_g_and_slow_cells() -> None:
    same: dict[str, Any] = {"data_sha256": "x", "metric": "nmi", "headline_protocol": "default"}
    gate, before = GateConfig(), [row(day=day, seconds=10.0 + day, **same) for day in range(3)]

    def worse(**changes: Any) -> list[str]:
        return compare.judge(gate, before[-1:], [row(day=3, **same, **changes)], before).regressions

    assert worse() == []
    assert worse(g=0.46) == []
    assert worse(g=0.9) == []
    (fell,) = worse(g=0.45)
    assert fell == "vit_a: g fell by 0.050, from 0.500 to 0.450, more than the combined margin of both intervals, 0.042"
    # Without intervals the cell is not judged.
    without_interval = row(day=3, **same, g=0.1, corrected_low=None, corrected_high=None)
    assert compare.judge(gate, before[-1:], [without_interval], before) == compare.Verdict(
        unjudged=["vit_a: g can't be compared: one of the intervals is unknown"]
    )
    assert compare.judge(gate, [], [row(day=3)], []).unjudged == ["vit_a: the baseline has no such cell"]
    uncorrected = row(day=3, **same, g_low=0.4, g_high=0.6, corrected_g=None, corrected_low=None, corrected_high=None)
    (line,) = compare.judge(gate, before[-1:], [uncorrected], before).incomparable
    assert line.endswith("one g is corrected for selection bias and the other is not")
    assert worse(seconds=16.0) == []
    (slow,) = worse(seconds=17.0)
    assert slow == "vit_a: took 17.0 s, 1.5 times the median of 3 earlier round(s)"
    # With a large spread, 1.5 times the median is not slow.
    varied = [row(day=day, seconds=seconds) for day, seconds in enumerate((5.0, 10.0, 16.0))]
    assert compare.judge(gate, varied[-1:], [row(day=3, seconds=17.0)], varied) == compare.Verdict()
    without_speed = GateConfig(speed_ratio=None)
    assert compare.judge(without_speed, before[-1:], [row(day=3, seconds=99.0)], before) == compare.Verdict()


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"data_sha256": "x"}, {"data_sha256": "y"}, "other images"),
        ({"metric": "nmi"}, {"metric": "knn_accuracy"}, "another metric (nmi, now knn_accuracy)"),
        ({"protocol": "paper"}, {"headline_protocol": "default"}, "another protocol (paper, now default)"),
        ({"headline_protocol": "paper"}, {"headline_protocol": "default"}, "another protocol (paper, now default)"),
        (
            {"data_sha256": "x", "metric": "nmi"},
            {"data_sha256": "y", "metric": "ari"},
            "other images, another metric (nmi, now ari)",
        ),
    ],
)
def test_incomparable_cells_are_no_regressions(before: dict[str, str], now: dict[str, str], words: str) -> None:
    baseline, later = row(g=0.9, seconds=1.0, **before), row(day=1, g=0.021, seconds=99.0, **now)  # type: ignore[arg-type]
    verdict = compare.judge(GateConfig(speed_ratio=None), [baseline], [later], [baseline])
    assert verdict == compare.Verdict([], [f"vit_a: not comparable: {words}"])
    # Their difference has no change of g either.
    (difference,) = compare.differences(compare.points_of_rows([baseline]), compare.points_of_rows([later]))
    assert (difference.change, difference.margin, difference.beyond) == (None, None, None)


def test_rows_of_early_versions_are_compared_with_a_remark() -> None:
    (line,) = compare.judge(
        GateConfig(), [row(g=0.9)], [row(day=1, g=0.1, data_sha256="x", metric="nmi")], []
    ).regressions
    assert line.endswith("; not known to be the same: images, metric, protocol")


def test_seconds_are_compared_for_the_same_images_only() -> None:
    before = [row(seconds=1.0, data_sha256="few"), row(day=1, seconds=10.0, data_sha256="many")]
    now = row(day=2, seconds=11.0, data_sha256="many")
    assert compare.judge(GateConfig(), before[-1:], [now], before) == compare.Verdict()


def test_models_are_ranked_by_corrected_g_for_each_question() -> None:
    rows = [
        row("vit_a", g=0.5),
        row("vit_a_seed1", g=0.7, domain="a", seed=1, seen_accuracy=0.9),
        row("cnn_a", g=0.55, seconds=None),
        row("cnn_b", g=0.1),
        row("old_b", state=results.FAILED, error="<b>no</b>", g=None),
    ]
    entries = leaderboard.ranked(rows)
    assert [(e.question, e.rank, e.model) for e in entries] == [("a", 1, "vit"), ("a", 2, "cnn"), ("b", 1, "cnn")]
    vit = entries[0]
    assert (vit.g, vit.g_sd, vit.seeds, vit.seconds) == (pytest.approx(0.6), pytest.approx(0.1), 2, 20.0)
    assert (vit.g_low, vit.g_high) == (pytest.approx(0.57), pytest.approx(0.63))
    assert vit.seen_accuracy == 0.9
    written = list(csv.DictReader(io.StringIO(leaderboard.to_csv(entries).decode())))
    hostile = replace(entries[0], model="=1+1", question="@x")
    assert b"'=1+1" in leaderboard.to_csv([hostile])
    assert b"'@x" in leaderboard.to_csv([hostile])
    assert [line["model"] for line in written] == ["vit", "cnn", "cnn"]
    markdown = markdown_of(leaderboard.HEAD, map(leaderboard.cells, entries), text=["question", "model"]).splitlines()
    assert markdown[1] == "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert markdown[2].startswith("| 1 | a | vit | 0.600 ± 0.100 (0.570 to 0.630) |")


def test_the_page_lists_failed_cells_and_escapes_them(tmp_path: Path) -> None:
    report = Storage(str(tmp_path))
    leaderboard.write(
        report,
        "s & t",
        [row(), row("x_y", state=results.FAILED, error="<script>")],
        compare.Verdict(["vit_a: g fell"], ["vit_b: not comparable: other images"]),
        ["f is damaged"],
    )
    page = report.read_bytes(leaderboard.PAGE).decode()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "vit_a: g fell" in page
    assert "vit_b: not comparable: other images" in page
    assert "f is damaged" in page
    assert "s &amp; t" in page
    assert report.files() == ["index.html", "leaderboard.csv", "leaderboard.md"]
