"""`raysep score --embeddings`: the results of `raysep.compare`, from each file format; refused input writes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysep
from raysep.cli import main
from raysep.embedding.external import open_external
from raysep.errors import InputError
from tests.api.test_arrays import LAYERS, Y

NAMES = np.array(["a", "b", "c"])[Y]
ARRAYS = {name.replace("layer ", "blocks."): X for name, X in LAYERS.items()}
CHANGES = ["score.metrics=[nmi,nn1]"]


def run_main(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    return int(exit_info.value.code or 0)


def npz(folder: Path, arrays: dict[str, Any], labels: Any = NAMES) -> Path:
    np.savez(folder / "mine.npz", **arrays, labels=labels)
    return folder / "mine.npz"


def parquet(folder: Path, arrays: dict[str, Any], labels: Any = NAMES) -> Path:
    columns = {name: list(X) for name, X in arrays.items()}
    pq.write_table(pa.table({"id": list(range(len(labels))), **columns, "label": labels}), folder / "mine.parquet")
    return folder / "mine.parquet"


def parts(folder: Path, arrays: dict[str, Any], labels: Any = NAMES) -> Path:
    (folder / "mine").mkdir()
    for part, rows in enumerate((slice(0, 50), slice(50, None))):
        table = {name: pa.FixedSizeListArray.from_arrays(X[rows].ravel(), X.shape[1]) for name, X in arrays.items()}
        pq.write_table(pa.table({**table, "y": labels[rows]}), folder / "mine" / f"part-{part}.parquet")
    return folder / "mine"


def npy(folder: Path, arrays: dict[str, Any], labels: Any = NAMES) -> Path:
    (folder / "mine").mkdir()
    for name, X in arrays.items():
        np.save(folder / "mine" / f"{name}.npy", X)
    np.save(folder / "mine" / "labels.npy", labels)
    return folder / "mine"


def thingsvision(folder: Path, arrays: dict[str, Any], labels: Any = NAMES) -> Path:
    for name, X in arrays.items():
        (folder / "mine" / name).mkdir(parents=True)
        np.save(folder / "mine" / name / "features.npy", X)
    np.save(folder / "mine" / "labels.npy", labels)
    return folder / "mine"


@pytest.mark.parametrize("write", [npz, parquet, parts, npy, thingsvision])
def test_every_format_gives_the_arrays_back(write: Any, tmp_path: Path) -> None:
    arrays = {**ARRAYS, "blocks.10": ARRAYS["blocks.1"][:, :4]}
    opened = open_external(str(write(tmp_path, arrays)))
    assert opened.layers == ["blocks.0", "blocks.1", "blocks.2", "blocks.10"]
    assert opened.labels.tolist() == NAMES.tolist()
    for name, X in arrays.items():
        np.testing.assert_array_equal(opened.read(name), X)


def test_the_command_finds_what_compare_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, result = npz(tmp_path, ARRAYS), tmp_path / "result"
    command = ["score", "--embeddings", str(path), "--run-dir", str(result), *CHANGES]
    assert run_main(command) == 0
    out = capsys.readouterr().out
    expected = raysep.compare(ARRAYS, NAMES)
    opened = raysep.open(result).summary
    best = opened.models[0].best
    assert (best.name, best.g) == (expected.best, expected.g)
    assert (best.corrected_g, best.corrected_interval) == (expected.corrected_g, expected.interval)
    assert (best.loss, best.loss_interval) == expected.loss()
    assert " ".join(opened.models[0].headline.split()) in " ".join(out.split())
    assert "90 images of 3 unseen classes" in out
    assert "blocks.1" in (result / "report" / "index.html").read_text()
    assert set(raysep.open(result).scores()["metric"]) >= {"nmi", "nn1"}
    # Again, over its own result, with the other metric.
    assert run_main([*command, "report.metric=nn1"]) == 0
    assert raysep.open(result).summary.headline_metric == "nn1"


@pytest.mark.parametrize(
    ("arrays", "labels", "extra", "words"),
    [
        (ARRAYS, Y[:-1], [], "blocks.0 has 90 rows, y has 89 labels"),
        (ARRAYS | {"last": np.full((90, 2), np.nan)}, Y, [], "last: row 0, column 0 is nan"),
        (ARRAYS, np.zeros(90, int), [], "expected two classes or more, got 1"),
        (ARRAYS, Y.astype(float), [], "y: row 0 is 0.0: expected text or integers"),
        (ARRAYS, Y, ["--labels", "classes"], "has no array of labels: expected classes, got blocks.0, blocks.1"),
        ({}, Y, [], "has labels, labels, but no layer"),
        (ARRAYS, Y, ["finetune.steps=3"], "finetune: expected overrides of `score` and `report` only"),
        (ARRAYS, Y, ["score.metrics=[nn1]"], "report.metric is nmi, which is not in score.metrics"),
    ],
)
def test_bad_embeddings_are_refused(
    arrays: dict[str, Any], labels: Any, extra: list[str], words: str, tmp_path: Path, capsys: Any
) -> None:
    result = tmp_path / "result"
    path = npz(tmp_path, arrays, labels)
    assert run_main(["score", "--embeddings", str(path), "--run-dir", str(result), *extra]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not result.exists()


def test_bad_files_are_refused(tmp_path: Path) -> None:
    for name in ("no.npz", "no.parquet", "no"):
        with pytest.raises(InputError, match=r"expected an .npz file"):
            open_external(str(tmp_path / name))
    (tmp_path / "text.npz").write_text("x")
    with pytest.raises(InputError, match=r"text.npz can't be read"):
        open_external(str(tmp_path / "text.npz"))
    ragged = pa.table({"a": [[1.0], [1.0, 2.0]], "b": [[1.0], None], "label": ["x", "y"]})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    opened = open_external(str(tmp_path / "ragged.parquet"))
    with pytest.raises(InputError, match="column a: expected lists of the same length in all rows, got 1 to 2 values"):
        opened.read("a")
    with pytest.raises(InputError, match="column b: expected lists of the same length in all rows, got a missing row"):
        opened.read("b")


def test_a_run_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result"
    result.mkdir()
    (result / "manifest.json").write_text('{"format": 3}')
    command = ["score", "--embeddings", str(npz(tmp_path, ARRAYS)), "--run-dir", str(result)]
    assert run_main(command) == 2
    assert "holds a run: take another --run-dir" in " ".join(capsys.readouterr().err.split())
    assert run_main(["score"]) == 2
    assert "expected CONFIG, or --embeddings" in " ".join(capsys.readouterr().err.split())
