"""A whole run, ended at each of its file operations in turn, and run again: the same results, and nothing wrong.

The stages' own code with the shells of Ray taken off, in one process: an operation that fails takes all later ones
with it, as a process that is killed does nothing more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs as pafs

from raysep import locks, pipeline, work
from raysep.config import RunConfig
from raysep.embed import progress, shards
from raysep.embed.blocks import Embedding, block_from_json, references
from raysep.finetune import state, training
from raysep.finetune.trials import TrialResult, write_result
from raysep.loading import build_config
from raysep.resources import Resources
from raysep.separability import table
from raysep.separability.engines import open_engine
from raysep.separability.layer import settings_of
from raysep.separability.scoring import score_layer
from raysep.storage import Storage
from raysep.telemetry import Telemetry
from raysep.telemetry.meter import Meter
from raysep.verification import verify
from tests.conftest import TINY_CNN, write_images


class CrashError(BaseException):
    """The process is gone."""


class Crashing:
    """A file system that is there until a given change of it, and does nothing from then on.

    A file that is being written then is cut in half.
    """

    def __init__(self, fs: pafs.FileSystem, at: int | None) -> None:
        self._fs, self._at, self.changes = fs, at, 0

    def __getattr__(self, name: str) -> Any:
        if name in {"move", "delete_file"}:
            return lambda *arguments: self._change(lambda: getattr(self._fs, name)(*arguments))
        return getattr(self._fs, name)

    def _change(self, work: Any) -> Any:
        self._count()
        return work()

    def _count(self) -> None:
        self.changes += 1
        if self._at is not None and self.changes >= self._at:
            raise CrashError

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[Any]:
        self._count()
        outer = self
        with self._fs.open_output_stream(path) as stream:

            class Half:
                def write(self, content: bytes) -> None:
                    try:
                        outer._count()
                    except CrashError:
                        stream.write(content[: len(content) // 2])
                        raise
                    stream.write(content)

            yield Half()


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages without Ray."""
    from raysep.embed import stream
    from raysep.finetune import tune
    from raysep.separability import actors

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
            state.forget(job.run, trial)
            found.append(result)
        return found

    monkeypatch.setattr(pipeline, "connection", no_cluster)
    # A layer's scores are one file operation, however many they are.
    monkeypatch.setattr(work, "DIAGNOSTICS", ("nonfinite_rows",))
    monkeypatch.setattr(pipeline, "unseen_by_nodes", lambda paths: {})
    monkeypatch.setattr(stream, "embed_all", embed_all)
    monkeypatch.setattr(actors, "score_all", score_all)
    monkeypatch.setattr(tune, "fit", fit)
    monkeypatch.setattr(training, "KEEP_INTERVAL_S", 0.0)
    # The process that crashed is this one: its lock must look like one that is gone.
    monkeypatch.setattr(locks.Claim, "alive", lambda claim, now: False)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
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
    rows = [{**row, "seconds": 0} for row in table.read(run)]
    layers = {}
    for path in run.files("embeddings", name=shards.MANIFEST):
        _, model, trial, step, split, _ = (piece.rpartition("=")[2] for piece in path.split("/"))
        shard_set = shards.ShardSet(model, int(trial), int(step), split)
        manifest = shards.read_manifest(run, shard_set)
        assert manifest is not None
        for layer in manifest.layers:
            layers[f"{path} {layer.index}"] = shards.read_layer(run, shard_set, manifest, layer.index)[2].tobytes()
    return rows, layers


@pytest.mark.slow
def test_wherever_a_run_is_ended_it_goes_on_to_the_same(
    serial: None, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[Crashing] = []
    at: int | None = None
    plain = Storage.__init__

    def wrapped(self: Storage, uri: str) -> None:
        plain(self, uri)
        if self.root.startswith(str(tmp_path / "run")):
            made.append(Crashing(self.fs, None) if not made else made[0])
            self.fs = made[0]

    monkeypatch.setattr(Storage, "__init__", wrapped)
    # A picture takes longer than all the rest: one of them stands for all.
    monkeypatch.setattr("raysep.report.html.draw", lambda summary: iter([("figure", "A figure", b"png")]))

    def go(name: str) -> Storage:
        made.clear()
        run = Storage(str(tmp_path / name))
        made[0]._at = at
        pipeline.run(config.model_copy(update={"run_dir": str(tmp_path / name)}), telemetry=Telemetry())
        return run

    expected = results(go("run"))
    changes = made[0].changes
    assert changes > 60
    kept = 0
    for at in range(1, changes + 1):
        with pytest.raises(CrashError):
            go(f"run{at}")
        before, at = at, None
        made.clear()
        left = Storage(str(tmp_path / f"run{before}"))
        if left.exists("config.yaml"):
            assert verify(left).findings == [], before
        kept += any(path.rpartition("/")[2].startswith(progress.PREFIX) for path in left.files())
        run = go(f"run{before}")
        assert results(run) == expected, before
        found = verify(run)
        assert (found.findings, found.unfinished) == ([], []), before
    assert kept > 0
