"""History, comparison, gate and leaderboard: tables in, tables out."""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from raysep.storage import Storage
from raysep.sweeps import compare, history, leaderboard
from raysep.sweeps.config import GateConfig

START = datetime(2026, 11, 24, 3, tzinfo=UTC)


def row(cell: str = "vit_a", day: int = 0, g: float | None = 0.5, **changes: Any) -> history.Row:
    at = START + timedelta(days=day)
    half = 0.03
    base: dict[str, Any] = dict.fromkeys(history.SCHEMA.names)
    values = {
        "date": f"{at:%Y-%m-%d}",
        "at": at,
        "sweep": "s",
        "round": f"{at:%Y-%m-%d}",
        "cell": cell,
        "key": "k",
        "state": history.DONE,
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


def test_rows_come_back_as_they_were_and_none_is_there_twice(tmp_path: Path):
    results = Storage(str(tmp_path))
    first, later = row(), row(day=1)
    history.put(results, later)
    history.put(results, first)
    assert history.rows(results) == [first, later]
    # The same cell of the same round, done again on the next day: in place of what was there.
    again = row(g=0.6, date="2026-11-25", at=START + timedelta(hours=23))
    history.put(results, again)
    assert history.rows(results) == [again, later]
    assert sorted(results.files()) == sorted(
        ["date=2026-11-25/s.2026-11-24.vit_a.parquet", "date=2026-11-25/s.2026-11-25.vit_a.parquet"]
    )
    assert history.rounds(history.rows(results), "s") == ["2026-11-24", "2026-11-25"]
    assert history.select(history.rows(results), round="2026-11-24") == [again]
    assert history.select(history.rows(results), date="2026-11-25") == [later]


def test_the_table_is_one_that_other_tools_read(tmp_path: Path):
    import pyarrow.dataset as ds

    for day in (0, 1):
        history.put(Storage(str(tmp_path)), row(day=day))
    table = ds.dataset(str(tmp_path), partitioning="hive").to_table(use_threads=False)
    assert sorted(table["date"].to_pylist()) == ["2026-11-24", "2026-11-25"]


def test_a_change_counts_beyond_both_intervals_together():
    (same,) = compare.differences(compare.of_rows([row(g=0.50)]), compare.of_rows([row(g=0.54)]))
    assert same.change == pytest.approx(0.04)
    # 0.03 and 0.03 are 0.0424 together.
    assert same.margin == pytest.approx(0.0424, abs=1e-4)
    assert same.beyond is False
    (other,) = compare.differences(compare.of_rows([row(g=0.50)]), compare.of_rows([row(g=0.55)]))
    assert other.beyond is True
    unknown = row(g=0.9, corrected_low=None, corrected_high=None)
    (difference,) = compare.differences(compare.of_rows([row()]), compare.of_rows([unknown]))
    assert (difference.margin, difference.beyond) == (None, None)
    assert compare.differences(compare.of_rows([row("a_b")]), compare.of_rows([row("c_d")])) == []


def test_the_gate_names_what_fell_and_what_is_slow():
    gate, before = GateConfig(), [row(day=day, seconds=10.0 + day) for day in range(3)]

    def worse(**changes: Any) -> list[str]:
        return compare.regressions(gate, before[-1:], [row(day=3, **changes)], before)

    assert worse() == []
    assert worse(g=0.46) == []
    assert worse(g=0.9) == []
    (fell,) = worse(g=0.45)
    assert fell == "vit_a: g fell by 0.050, from 0.500 to 0.450, more than the 0.042 of both intervals"
    # Without intervals nothing can be said.
    assert worse(g=0.1, corrected_low=None, corrected_high=None) == []
    assert worse(seconds=16.0) == []
    (slow,) = worse(seconds=17.0)
    assert slow == "vit_a: took 17.0 s, 1.5 times the median of 3 earlier round(s)"
    # Where times vary much, one and a half times the median is no news.
    varied = [row(day=day, seconds=seconds) for day, seconds in enumerate((5.0, 10.0, 16.0))]
    assert compare.regressions(gate, varied[-1:], [row(day=3, seconds=17.0)], varied) == []
    assert compare.regressions(GateConfig(speed_ratio=None), before[-1:], [row(day=3, seconds=99.0)], before) == []


def test_models_are_ranked_by_corrected_g_for_each_question():
    rows = [
        row("vit_a", g=0.5),
        row("vit_a_seed1", g=0.7, domain="a", seed=1, seen_accuracy=0.9),
        row("cnn_a", g=0.55, seconds=None),
        row("cnn_b", g=0.1),
        row("old_b", state=history.FAILED, error="<b>no</b>", g=None),
    ]
    places = leaderboard.ranked(rows)
    assert [(p.question, p.rank, p.model) for p in places] == [("a", 1, "vit"), ("a", 2, "cnn"), ("b", 1, "cnn")]
    vit = places[0]
    assert (vit.g, vit.g_sd, vit.seeds, vit.seconds) == (pytest.approx(0.6), pytest.approx(0.1), 2, 20.0)
    assert (vit.g_low, vit.g_high) == (pytest.approx(0.57), pytest.approx(0.63))
    assert vit.seen_accuracy == 0.9
    written = list(csv.DictReader(io.StringIO(leaderboard.to_csv(places).decode())))
    hostile = replace(places[0], model="=1+1", question="@x")
    assert b"'=1+1" in leaderboard.to_csv([hostile])
    assert b"'@x" in leaderboard.to_csv([hostile])
    assert [line["model"] for line in written] == ["vit", "cnn", "cnn"]
    assert (
        leaderboard.to_markdown(places).splitlines()[2].startswith("| 1 | a | vit | 0.600 ± 0.100 (0.570 to 0.630) |")
    )


def test_the_page_names_what_failed_and_escapes_it(tmp_path: Path):
    report = Storage(str(tmp_path))
    leaderboard.write(report, "s & t", [row(), row("x_y", state=history.FAILED, error="<script>")], ["vit_a: g fell"])
    page = report.read_bytes(leaderboard.PAGE).decode()
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "vit_a: g fell" in page
    assert "s &amp; t" in page
    assert report.files() == ["index.html", "leaderboard.csv", "leaderboard.md"]
