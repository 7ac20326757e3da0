"""Scores of arrays: equal to those of a run, documented errors, and a light import."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raysep
from raysep import pipeline
from raysep.config.load import load_config
from raysep.config.registry import METRICS
from raysep.embedding.shards import read_layer, read_manifest, shard_set_at
from raysep.errors import InputError
from raysep.stages.executor import LocalExecutor
from raysep.storage.store import Storage
from tests.conftest import REPOSITORY
from tests.scoring.test_formulas import blobs

X, Y = blobs([30, 30, 30], spread=1.0, D=6, seed=0)
LAYERS = {
    f"layer {index}": blobs([30, 30, 30], spread=spread, D=6, seed=0)[0] for index, spread in enumerate((3, 1, 2))
}


def test_a_comparison_of_arrays_equals_a_run_on_the_same_embeddings(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    changes = ["models=[{name: test_vit, pretrained: false, image_size: 32}]", "finetune=null"]
    changes += [
        "data.max_per_class={unseen: 40}",
        "embed.splits=[unseen]",
        "baselines={untrained: false, pixels: null}",
    ]
    changes += ["score.metrics=[nmi, knn_accuracy]", "score.max_classes=null"]
    config = load_config(str(REPOSITORY / "jobs" / "configs" / "quickstart.yaml"), changes, run_dir)
    summary = pipeline.run(config, executor=LocalExecutor())
    assert summary is not None
    store = Storage(run_dir)
    (path,) = store.files("embeddings", name="_manifest.json")
    manifest = read_manifest(store, shard_set_at(path))
    layers = {layer.name: read_layer(store, shard_set_at(path), manifest, layer.index) for layer in manifest.layers}
    labels = next(iter(layers.values()))[1]
    for metric in ("nmi", "knn_accuracy"):
        found = raysep.compare({name: vectors for name, (_, _, vectors) in layers.items()}, labels, metric)
        expected = summary.models[0].curve("default", metric, "unseen", 0)
        assert (found.best, found.g) == (expected.choice.name, expected.choice.g)
        assert (found.corrected_g, found.interval) == (expected.choice.corrected_g, expected.choice.corrected_interval)
        names = [layer.name for layer in expected.layers]
        assert found.tied == [names[index] for index in expected.choice.tied_layers]
        assert found.p_best == {layer.name: layer.p_best for layer in expected.layers}
        frame = found.to_frame()
        for layer in expected.layers:
            assert frame.loc[layer.name, ["value", "low", "high", "se"]].tolist() == [
                layer.mean,
                *layer.interval,
                layer.se,
            ]
        if expected.choice.last_layer != expected.choice.layer:
            assert found.loss() == (expected.choice.loss, expected.choice.loss_interval)


def test_one_layer_has_all_metrics_in_a_frame() -> None:
    found = raysep.score(X, np.array(["a", "b", "c"])[Y])
    assert list(found) == list(METRICS.built_in)
    assert (found.n, found.classes) == (90, 3)
    frame = found.to_frame()
    assert frame.loc["nmi", "value"] == found["nmi"].value
    assert frame.loc["nmi", "low"] <= frame.loc["nmi", "value"] <= frame.loc["nmi", "high"]
    assert "nmi" in found._repr_html_()
    only = raysep.score(torch.from_numpy(X), torch.from_numpy(Y), ["nn1"], resamples=0)
    assert only["nn1"].value == found["nn1"].value
    assert only["nn1"].interval is None


def test_the_best_of_several_layers() -> None:
    before = {name: array.copy() for name, array in LAYERS.items()}
    found = raysep.compare(LAYERS, Y)
    assert found.best == "layer 1"
    assert found.best in found.tied
    assert found.loss("layer 0")[0] > found.loss("layer 2")[0] > 0
    assert found.loss() == found.loss("layer 2")
    assert str(found).startswith("best layer: layer 1, with nmi 0.")
    assert "<table" in found._repr_html_()
    assert len(found.plot().get_xticklabels()) == 3
    # The arrays of the caller are not touched.
    for name, array in LAYERS.items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(InputError, match="there is no layer 'x'; the layers are layer 0, layer 1, layer 2"):
        found.loss("x")
    assert raysep.compare(LAYERS, Y, resamples=0).corrected_g is None


@pytest.mark.parametrize(
    ("bad", "y", "words"),
    [
        (X, Y[:-1], r"X has 90 rows, y has 89 labels"),
        (X[:, 0], Y, r"X: expected shape \(rows, features\), got \(90,\)"),
        (np.where(np.arange(540).reshape(90, 6) == 13, np.nan, X), Y, "X: row 2, column 1 is nan"),
        ([["a"]] * 90, Y, "X: expected numbers of shape"),
        (X, np.zeros(90, int), "y: expected two classes or more, got 1"),
        (X, Y.astype(float), r"y: row 0 is 0.0: expected text or integers"),
        (X, np.where(np.arange(90) == 7, np.nan, Y), "y: row 7 is nan"),
        (X, ["a"] * 5 + [None] + ["b"] * 84, "y: row 5 has no label"),
        (X, [*["a", "b"] * 44, 1.5, "a"], r"y: row 88 is 1.5"),
        (X, Y[:, None], r"y: expected shape \(rows,\), got \(90, 1\)"),
    ],
)
def test_bad_input_names_the_row(bad: Any, y: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        raysep.score(bad, y)
    with pytest.raises(ValueError, match="expected"):
        raysep.compare({}, Y)


def test_text_integers_and_booleans_are_labels() -> None:
    names = np.array(["a", "b"])[Y % 2]
    values = [
        raysep.score(X, y, ["nn1"], resamples=0)["nn1"].value
        for y in (names, names.tolist(), names.astype(object), Y % 2, (Y % 2).astype(bool), (Y % 2).astype(np.uint8))
    ]
    assert len(set(values)) == 1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 'nmi', 'ami'"):
        raysep.score(X, Y, ["nmy"])
    with pytest.raises(ValueError, match="backend: expected"):
        raysep.compare(LAYERS, Y, backend="gpu")


def test_the_package_is_imported_in_an_instant_and_without_ray() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import raysep; took = time.perf_counter() - t; "
        "assert took < 0.2, took; assert 'numpy' not in sys.modules; raysep.score; "
        "assert not {'ray', 'torch', 'pandas', 'matplotlib'} & set(sys.modules), set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
