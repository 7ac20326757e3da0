"""A whole run in one process: the stages' own code with the shells of Ray taken off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raysep import pipeline
from raysep.config import RunConfig
from raysep.config.load import build_config
from raysep.distributed.cluster_shape import Resources
from raysep.embed import shards
from raysep.embed.blocks import Embedding, block_from_json, references
from raysep.finetune import resume, training
from raysep.finetune.trials import TrialResult, write_result
from raysep.scoring import table
from raysep.scoring.backends import open_engine
from raysep.scoring.cache import settings_of
from raysep.scoring.scoring import score_layer
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter
from tests.conftest import TINY_CNN, write_images


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the shells of Ray off the stages."""
    from raysep.distributed import score_actors, stream, tune

    @contextmanager
    def no_cluster(*_: Any) -> Iterator[Resources]:
        yield Resources(((2.0, 0.0),))

    def embed_all(units: Any, run: Storage, config: Any, plan: Any, verbose: bool, done: Any) -> Iterator[Any]:
        readers = [unit.reader for unit in units]
        embedding = Embedding(readers, run, config, "cpu", Meter("here"))
        for number, unit in enumerate(units):
            for block in references(number, unit, number, config.shard_rows, done[number]):
                yield block_from_json(embedding(block)["outcome"][0].as_py())

    def score_all(run: Storage, config: Any, tasks: Sequence[Any], *_: Any) -> Iterator[Any]:
        for task in tasks:
            _, y, X = shards.read_layer(run, task.shard_set, task.manifest, task.layer.index)
            scores = score_layer(X, y, task.wanted, open_engine("torch"), settings_of(config))
            yield task, task.rows(scores), Meter("here").report

    def fit(trials: Sequence[Any], job: Any, *_: Any) -> list[TrialResult]:
        found = []
        for trial in trials:
            done = list(training.train(trial, job.config, job.run, job.split, job.source))
            val, seen = ({e.step: getattr(e, name) for e in done} for name in ("val_accuracy", "seen_accuracy"))
            result = TrialResult(
                trial.model.id, trial.number, trial.seed, trial.hyperparameters, "finished", val, seen, 0.0, {}
            )
            write_result(job.run, trial, result)
            resume.forget(job.run, trial)
            found.append(result)
        return found

    def prepare_all(trials: Sequence[Any], job: Any, on_prepared: Any, *_: Any) -> list[TrialResult]:
        for trial in trials:
            training.prepare(trial, job.run, job.split)
            on_prepared(trial, Meter("here").report)
        return [TrialResult(t.model.id, t.number, t.seed, {}, "finished", {}, {}, 0.0, {}) for t in trials]

    monkeypatch.setattr(pipeline, "connection", no_cluster)
    monkeypatch.setattr(pipeline, "unseen_by_nodes", lambda paths: {})
    monkeypatch.setattr(stream, "embed_all", embed_all)
    monkeypatch.setattr(score_actors, "score_all", score_all)
    monkeypatch.setattr(tune, "fit", fit)
    monkeypatch.setattr(tune, "prepare_all", prepare_all)


def configuration(tmp_path: Path) -> RunConfig:
    """Of a small run, with sixteen images that are written there."""
    write_images(tmp_path / "images", dict.fromkeys("abcd", 4))
    return build_config(
        {
            "data": {
                "source": {"kind": "image_folder", "path": str(tmp_path / "images")},
                "split": {"unseen": ["c", "d"], "test_fraction": 0.25},
            },
            "models": [{**TINY_CNN, "layers": ["act1", "layer4"]}],
            "finetune": {"steps": 2, "evaluate_at": [2], "batch_size": 4},
            "embed": {"shard_rows": 5, "splits": ["unseen"]},
            "score": {"metrics": ["nn1"], "resamples": 0},
            "report": {"metric": "nn1"},
            "baselines": {"untrained": False, "pixels": None},
            "metrics": {"port": None},
        }
    )


def results(run: Storage) -> tuple[list[Any], dict[str, bytes]]:
    """The scores, and every layer of every shard set."""
    rows = [{**row, "seconds": 0} for row in table.read(run)]
    layers = {}
    for path in run.files("embeddings", name=shards.MANIFEST):
        shard_set = shards.shard_set_at(path)
        manifest = shards.read_manifest(run, shard_set)
        assert manifest is not None
        for layer in manifest.layers:
            layers[f"{path} {layer.index}"] = shards.read_layer(run, shard_set, manifest, layer.index)[2].tobytes()
    return rows, layers
