from dataclasses import replace
from pathlib import Path

import numpy as np

from raysep.embedding.shards import Manifest, ShardSet
from raysep.models.layers import Layer
from raysep.scoring import table
from raysep.scoring.registry import Measured
from raysep.scoring.scoring import Score
from raysep.scoring.table import Task
from raysep.storage.store import Storage

LAYER = Layer(1, "blocks.0", 0.5, 4, "cls")
MANIFEST = Manifest("k", 10, [], [LAYER], {}, "float32", "s", {})
WANTED = [("default", "nmi"), ("default", "ari")]
TASK = Task(ShardSet("m", 0, 100, "unseen"), MANIFEST, LAYER, seed=7, key="key", wanted=WANTED)


def rows(task: Task = TASK) -> list[dict]:
    measured = Measured(0.5, None, (0.25, 0.75), 0.125, np.array([[0.5, 0.25], [0.75, 1.0]]), None, 0.0)
    return task.rows([Score(p, m, measured, 10, "sklearn", 0.1) for p, m in task.wanted])


def test_rows_are_read_in_order_with_undefined_values_as_none(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    assert table.read(store) == []
    table.write(store, rows())
    found = table.read(store)
    assert [row["metric"] for row in found] == ["ari", "nmi"]
    names = table.read(store, names_only=True)
    assert [set(row) for row in names] == [set(table.NAMES)] * 2
    assert table.missing([TASK], names) == []
    assert found[0]["seed"] == 7
    assert found[0]["k"] is found[0]["starts_sd"] is None
    assert (found[0]["ci_low"], found[0]["ci_high"], found[0]["se"]) == (0.25, 0.75, 0.125)
    assert found[0]["halves"] == [0.5, 0.25, 0.75, 1.0]
    assert set(found[0]) == set(table.SCHEMA.names)


def test_only_missing_scores_remain() -> None:
    assert table.missing([TASK], rows()) == []
    assert table.missing([TASK], [])[0].wanted == WANTED
    assert table.missing([TASK], rows()[:1])[0].wanted == [("default", "ari")]


def test_rows_of_other_embeddings_or_layers_do_not_count() -> None:
    stale = replace(TASK, key="old")
    assert table.missing([TASK], rows(stale))[0].wanted == WANTED
    assert table.belonging([TASK], rows() + rows(stale)) == rows()
    other = replace(TASK, layer=replace(LAYER, index=2))
    assert table.belonging([other], rows()) == []
