"""Whole runs on small images: every stage with its real backend; on Ray where it matters how Ray behaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from raysep import pipeline
from raysep.config import ComputeConfig, RunConfig
from raysep.config.load import build_config
from raysep.config.names import DIAGNOSTICS
from raysep.config.registry import METRICS
from raysep.embedding.shards import ShardSet, read_manifest
from raysep.errors import ConfigError, RunDirError, StageError, UsageError
from raysep.report.schema import Summary
from raysep.stages.executor import Executor, LocalExecutor
from raysep.storage.store import Storage
from raysep.telemetry import Telemetry
from tests.conftest import TINY_CNN, TINY_VIT, write_images


def config(tree: Path, run_dir: Path, **sections: Any) -> RunConfig:
    return build_config(
        {
            "run_dir": str(run_dir),
            "data": {
                "source": {"kind": "image_folder", "path": str(tree)},
                "split": {"unseen": ["d", "e"], "test_fraction": 0.5},
                "max_failed_share": 0.1,
            },
            "models": [TINY_CNN, TINY_VIT],
            "finetune": {"steps": 4, "batch_size": 8},
            "score": {"metrics": ["nmi", "nn1"], "resamples": 20},
            "embed": {"shard_rows": 10, "batch_size": 8},
            "baselines": {"untrained": False, "pixels": None},
            # A process takes seconds to start: one for each kind of work.
            "compute": {"cpus_per_trial": 2, "embed_actors": 1, "score_actors": 1},
            **sections,
        }
    )


# Ray is left out where it is not what is tested: None takes it.
LOCAL = LocalExecutor()


def go(config: RunConfig, *stages: str, executor: Executor | None = LOCAL) -> tuple[Summary | None, str]:
    console = Console(width=200, highlight=False, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    try:
        summary = pipeline.run(config, stages or pipeline.STAGES, telemetry=Telemetry(console), executor=executor)
    finally:
        console.file.close()
    return summary, console.export_text()


def scores(run_dir: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(run_dir / "scores.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture
def finished(tree: Path, tmp_path: Path) -> tuple[RunConfig, Path]:
    run_dir = tmp_path / "run"
    both_rates = {"steps": 4, "batch_size": 8, "learning_rate": [1e-3, 1e-2]}
    found = config(
        tree, run_dir, finetune=both_rates, score={"metrics": list(METRICS), "resamples": 20}, baselines={"pixels": 8}
    )
    go(found)
    return found, run_dir


def test_a_run_from_images_to_the_best_layer(finished: tuple[RunConfig, Path]) -> None:
    found, run_dir = finished
    summary = Summary.model_validate(json.loads((run_dir / "summary.json").read_text()))
    assert [model.model for model in summary.models] == ["test_resnet", "test_vit"]
    # Six images of a seen class are too few for ten labelled ones, and twelve of an unseen one for twenty.
    assert len(summary.left_out) == 4
    assert all("few_shot" in item and "too few images per class" in item for item in summary.left_out)
    for model in summary.models:
        assert 0 <= model.best.g <= 1
        assert 0 <= model.best.layer < model.layers
        assert model.best.interval[0] <= model.best.g <= model.best.interval[1]
        assert model.best.layer in model.best.tied_layers
        assert {baseline.kind for baseline in model.baselines} == {"untrained", "pixels"}
    # 2 models with 5 layers each, 2 steps and untrained, and their pixels; 2 splits; metrics and diagnostics.
    rows = scores(run_dir)
    assert len(rows) == ((5 + 5) * 3 + 2) * 2 * (len(METRICS) + len(DIAGNOSTICS))
    assert {row["model"] for row in rows} == {
        "test_resnet",
        "test_vit",
        "test_resnet--untrained",
        "test_vit--untrained",
        "test_resnet--pixels",
        "test_vit--pixels",
    }
    for name in ("config.yaml", "manifest.json", "splits.parquet", "report/index.html", "report/summary.csv"):
        assert (run_dir / name).is_file()
    assert set(json.loads((run_dir / "manifest.json").read_text())["stages"]) == {
        "finetune",
        "embed",
        "score",
        "report",
    }

    # The second time: nothing to do, and nothing touched.
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    _, lines = go(found)
    assert lines.count("nothing left to do") == 4
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before

    # One layer's scores are gone: that layer is scored again, and nothing else.
    all_scores = scores(run_dir)
    table = pq.read_table(run_dir / "scores.parquet")
    gone = pc.and_(
        pc.equal(table["model"], "test_vit"), pc.and_(pc.equal(table["layer"], 2), pc.equal(table["step"], 4))
    )
    pq.write_table(table.filter(pc.invert(gone)), run_dir / "scores.parquet")
    _, lines = go(found)
    assert "scored 2 of 64 layers" in lines
    # The report is written again, with the work in its bill.
    assert lines.count("nothing left to do") == 2
    assert scores(run_dir) == all_scores

    # One shard set is gone: it is embedded again, and its scores stand.
    gone_dir = next(run_dir.glob("embeddings/model=test_resnet/*/step=4/split=unseen"))
    shutil.rmtree(gone_dir)
    _, lines = go(found)
    assert "for 1 of 16 shard sets" in lines
    assert (gone_dir / "_manifest.json").is_file()
    assert scores(run_dir) == all_scores

    # A checkpoint is gone: its trial is trained again; the same seed gives the same weights.
    next(run_dir.glob("checkpoints/test_resnet/trial=0/step=4/model.safetensors")).unlink()
    _, lines = go(found)
    assert "finetune" in lines
    assert "shard sets" not in lines
    assert scores(run_dir) == all_scores


@pytest.mark.slow
def test_on_ray_a_run_finds_what_it_finds_in_one_process(
    ray_session: None, finished: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    alone, run_dir = finished
    # One thread each, as in this process: sums of several are rounded in another order.
    compute = ComputeConfig(cpus_per_trial=1, embed_actors=1, cpus_per_embed_actor=1, score_actors=1)
    go(alone.model_copy(update={"run_dir": str(tmp_path / "on ray"), "compute": compute}), executor=None)
    assert scores(tmp_path / "on ray") == scores(run_dir)


def test_rotations_domains_and_named_modules(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_images(other, {"x": 6, "y": 6}, seed=5)
    found = config(
        tree,
        tmp_path / "run",
        data={
            "source": {"kind": "image_folder", "path": str(tree)},
            "split": {"unseen_fraction": 0.4, "rotations": 2, "test_fraction": 0.5},
            "max_per_class": {"unseen": 8},
            "domains": [
                {"name": "noisy", "corruption": "noise", "severity": 4},
                {"name": "elsewhere", "source": {"kind": "image_folder", "path": str(other)}},
            ],
        },
        models=[{**TINY_VIT, "layers": ["stages", "blocks.*.mlp.act"], "pooling": ["cls", "mean"]}],
        finetune={"steps": 2, "evaluate_at": [2], "batch_size": 8},
        score={"metrics": ["nmi", "nn1"], "resamples": 20},
    )
    summary, lines = go(found)
    assert summary is not None
    assert "unseen 16/16, noisy 16/16, elsewhere 12/12 images" in lines
    (model,) = summary.models
    assert (model.trials, model.rotations, model.seeds) == (2, 2, [0])
    assert model.classes == {"unseen": 2, "seen": 3, "noisy": 2, "elsewhere": 2}
    # Four places and three inner activations, each pooled in two ways, and the head.
    assert model.layers == 15
    rows = scores(tmp_path / "run")
    assert {row["split"] for row in rows} == {"unseen", "seen", "noisy", "elsewhere"}
    assert {row["n"] for row in rows if row["split"] == "unseen"} == {16}
    # Trials of other rotations were trained on other classes, and are evaluated on other images.
    metas = [
        json.loads(path.read_text())
        for path in sorted((tmp_path / "run").glob("checkpoints/test_vit/*/step=2/meta.json"))
    ]
    assert [meta["rotation"] for meta in metas] == [0, 1]
    assert metas[0]["classes"] != metas[1]["classes"]
    manifests = [
        pq.read_table(
            sorted((tmp_path / "run").glob(f"embeddings/model=test_vit/trial={t}/step=2/split=unseen/part-*"))
        )
        for t in (0, 1)
    ]
    ids = [set(table["image_id"].to_pylist()) for table in manifests]
    assert not ids[0] & ids[1]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "noisy" in (tmp_path / "run" / "report" / "summary.md").read_text()
    assert model.headline in page


def test_stages_one_by_one_of_models_as_they_are_and_classes_all_unseen(tree: Path, tmp_path: Path) -> None:
    found = config(
        tree,
        tmp_path / "run",
        data={"source": {"kind": "image_folder", "path": str(tree)}, "split": {"unseen": "all"}},
        finetune=None,
        models=[TINY_VIT],
        score={"protocols": ["default", "paper"], "metrics": ["nmi", "knn_purity"]},
    )
    with pytest.raises(StageError, match="raysep run"):
        go(found, "report")
    with pytest.raises(StageError, match="raysep finetune"):
        go(found, "embed")
    with pytest.raises(StageError, match="raysep embed"):
        go(found, "score")
    go(found, "finetune")
    go(found, "embed")
    summary, _ = go(found, "report")
    assert summary is not None
    assert "5 of 5 layers are not scored yet" in summary.left_out
    go(found, "score")
    summary, _ = go(found, "report")
    assert summary is not None
    assert summary.left_out == []
    assert (summary.unseen_classes, summary.unseen_images) == (5, 60)
    assert summary.models[0].seen_accuracy is None
    rows = scores(tmp_path / "run")
    # The paper has no head: it keeps the paper's own layers.
    layers = {p: {row["layer_name"] for row in rows if row["protocol"] == p} for p in ("default", "paper")}
    assert layers["default"] - layers["paper"] == {"head"}
    assert [c.choice.last_layer for c in summary.models[0].curves if c.choice] == [4, 4, 3, 3]
    assert {row["split"] for row in rows} == {"unseen"}
    assert {row["protocol"] for row in rows} == {"default", "paper", "diagnostic"}


def test_unreadable_images_and_a_trial_that_fails_are_said_and_the_rest_goes_on(tree: Path, tmp_path: Path) -> None:
    for name in ("d/001.png", "a/001.png"):
        (tree / name).write_bytes(b"not an image")
    found = config(
        tree, tmp_path / "run", models=[TINY_CNN], finetune={"steps": 2, "batch_size": 8, "learning_rate": [1e30, 1e-3]}
    )
    summary, lines = go(found)
    assert summary is not None
    assert set(summary.unreadable_images) == {"d/001.png", "a/001.png"}
    assert any("2 unreadable images" in item for item in summary.left_out)
    assert "d/001.png" in (tmp_path / "run" / "report" / "index.html").read_text()
    assert {row["n"] for row in scores(tmp_path / "run") if row["split"] == "unseen"} == {23}
    assert "test_resnet trial 0 failed" in lines
    assert any("trial 0" in item and "smaller learning rate" in item for item in summary.left_out)
    assert summary.models[0].hyperparameters["learning_rate"] == 1e-3


def test_a_run_stops_where_no_trial_finishes_or_too_many_images_are_unreadable(tree: Path, tmp_path: Path) -> None:
    every = config(
        tree, tmp_path / "none", models=[TINY_CNN], finetune={"steps": 2, "batch_size": 8, "learning_rate": 1e30}
    )
    with pytest.raises(StageError, match=r"no trial finished.*smaller learning rate"):
        go(every)
    for index in range(7):
        (tree / "e" / f"00{index}.png").write_bytes(b"")
    with pytest.raises(StageError, match=r"7 of 24 images can't be read.*empty file"):
        go(config(tree, tmp_path / "other", models=[TINY_CNN], finetune=None))
    assert not list((tmp_path / "other").glob("embeddings/**/split=unseen/_manifest.json"))


@pytest.mark.parametrize(
    ("sections", "error", "part"),
    [
        ({"models": [{"name": "resnet19", "pretrained": False}]}, ConfigError, "resnet18"),
        ({"models": [{**TINY_CNN, "pretrained": "none.safetensors"}]}, ConfigError, "none.safetensors"),
        ({"models": [{**TINY_VIT, "layers": ["blocks.9"]}]}, ConfigError, "blocks.9"),
        (
            {
                "data": {"source": {"kind": "image_folder", "path": "nowhere"}, "split": {"unseen": "all"}},
                "finetune": None,
            },
            ConfigError,
            "nowhere",
        ),
        ({"compute": {"score_actors": 50}}, UsageError, "score_actors: 50 processes"),
        ({"compute": {"gpus_per_trial": 1}}, UsageError, "can't run on this cluster"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tree: Path, tmp_path: Path, sections: dict[str, Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        go(config(tree, tmp_path / "run", **sections))
    assert not (tmp_path / "run").exists()


def test_problems_of_data_and_models_come_together(tree: Path, tmp_path: Path) -> None:
    wrong = config(
        tree,
        tmp_path / "run",
        models=[{**TINY_CNN, "pooling": "cls"}, {**TINY_VIT, "kwargs": {"flavour": 1}}],
        data={"source": {"kind": "image_folder", "path": str(tree)}, "split": {"unseen": ["y", "z"]}},
    )
    with pytest.raises(ConfigError) as caught:
        go(wrong)
    text = str(caught.value)
    for part in ("no class 'y'", "no class 'z'", "no class token", "flavour"):
        assert part in text


def test_a_run_directory_of_another_configuration_is_refused_untouched(tree: Path, tmp_path: Path) -> None:
    found = config(tree, tmp_path / "run", models=[TINY_CNN], finetune=None)
    go(found, "finetune")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = config(
        tree, tmp_path / "run", models=[TINY_CNN], finetune=None, score={"metrics": ["nmi", "nn1"], "seed": 7}
    )
    with pytest.raises(RunDirError, match=r"score\.seed: 42 -> 7"):
        go(other)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_what_was_skipped_and_what_the_images_warn_of_is_in_the_log_and_the_report(tree: Path, tmp_path: Path) -> None:
    # 12 bits in files of 16, and what lies beside them.
    for number, path in enumerate(sorted(tree.rglob("*.png"))):
        values = np.random.default_rng(number).integers(0, 4096, (16, 16), dtype=np.uint16)
        Image.fromarray(values).save(path.with_suffix(".tif"))
        path.unlink()
    (tree / "a" / "notes.txt").write_text("x")
    (tree / "b" / ".ipynb_checkpoints").mkdir()
    (tree / "b" / ".ipynb_checkpoints" / "0.png").write_bytes(b"x")
    dark: dict[str, Any] = {
        "data": {"source": {"kind": "image_folder", "path": str(tree)}, "split": {"unseen": "all"}},
        "finetune": None,
        "models": [TINY_VIT],
        "score": {"metrics": ["nmi"], "resamples": 20},
    }
    summary, lines = go(config(tree, tmp_path / "run", **dark))
    assert summary is not None
    assert summary.left_out == [
        "files that are not decodable images: 1 .txt",
        "hidden and system files: 1",
    ]
    (warning,) = summary.data_notes
    assert "so the images are dark; if the values have 12 bits, set data.bit_depth: 12" in warning
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    for sentence in (*summary.left_out, warning):
        assert sentence in lines
        assert sentence in page
    # Files that come later change nothing of what is said of this run.
    (tree / "a" / "more.txt").write_text("x")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    again, lines = go(config(tree, tmp_path / "run", **dark))
    assert again == summary
    assert lines.count("nothing left to do") == 4
    assert (tmp_path / "run" / "summary.json").read_bytes() == before

    bright = config(tree, tmp_path / "bright", **{**dark, "data": {**dark["data"], "bit_depth": 12}})
    summary, _ = go(bright)
    assert summary is not None
    assert summary.data_notes == []
    shard_set = ShardSet("test_vit", 0, 0, "unseen")
    first, second = (read_manifest(Storage(str(tmp_path / name)), shard_set) for name in ("run", "bright"))
    assert first is not None
    assert second is not None
    assert first.key != second.key
    with pytest.raises(RunDirError, match=r"data\.bit_depth: null -> 12"):
        go(bright.model_copy(update={"run_dir": str(tmp_path / "run")}))
