"""Each kind of damage to a run's files is detected, reported and recomputed, and nothing else is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysep import pipeline
from raysep.config import RunConfig
from raysep.config.load import build_config
from raysep.errors import RaysepError, UsageError
from raysep.integrity import Finding, repair, verify
from raysep.scoring import table
from raysep.stages.executor import LocalExecutor
from raysep.storage.store import Storage
from raysep.telemetry import Telemetry
from tests.conftest import TINY_VIT, write_images

# All tests use copies of one finished run.
pytestmark = pytest.mark.xdist_group("verification")
SHARDS = "embeddings/model=test_vit/trial=0/step=0/split=unseen"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    directory = tmp_path_factory.mktemp("finished")
    write_images(directory / "images", dict.fromkeys("abc", 12))
    config = build_config(
        {
            "run_dir": str(directory / "run"),
            "data": {
                "source": {"kind": "image_folder", "path": str(directory / "images")},
                "split": {"unseen": "all"},
                "max_failed_share": 0.1,
            },
            "models": [TINY_VIT],
            "finetune": None,
            "score": {"metrics": ["nmi", "nn1"], "resamples": 20},
            "embed": {"shard_rows": 20, "batch_size": 8},
            "baselines": {"untrained": False, "pixels": None},
            "compute": {"embed_actors": 1, "score_actors": 1},
        }
    )
    (directory / "images" / "a" / "003.png").write_bytes(b"no image")
    pipeline.run(config, executor=LocalExecutor())
    return config


@pytest.fixture
def run(finished: RunConfig, tmp_path: Path) -> Storage:
    shutil.copytree(finished.run_dir, tmp_path / "run")
    return Storage(str(tmp_path / "run"))


def part(root: Path) -> Path:
    return sorted((root / SHARDS).glob("part-*"))[0]


def flip(path: Path, position: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace the content of a shard, and adapt its size and checksum in the manifest."""
    pq.write_table(change(pq.read_table(path)), path)
    import hashlib

    manifest = json.loads((path.parent / "_manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] == path.name:
            content = path.read_bytes()
            file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path.parent / "_manifest.json").write_text(json.dumps(manifest))


def change_manifest(root: Path, **values: Any) -> None:
    path = root / SHARDS / "_manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_scores(root: Path, change: Callable[[list[table.Row]], list[table.Row]]) -> None:
    run = Storage(str(root))
    table.write(run, change(table.read(run)))


def with_first(rows: list[table.Row], **values: Any) -> list[table.Row]:
    first = next(position for position, row in enumerate(rows) if row["metric"] == "nn1")
    return [{**row, **values} if position == first else row for position, row in enumerate(rows)]


def test_a_finished_run_is_valid(run: Storage) -> None:
    found = verify(run)
    assert (found.findings, found.unfinished, found.strays) == ([], [], [])
    assert found.counts == {"trials": 1, "shard sets": 1, "rows": 35, "scores": 5 * (2 + 7)}


CHECKPOINT = "checkpoints/test_vit/trial=0"
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "a bit of a shard": (lambda root: flip(part(root)), "part-", "SHA-256", f"{SHARDS}/_manifest.json"),
    "a shard cut short": (
        lambda root: part(root).write_bytes(part(root).read_bytes()[:-1]),
        "_manifest.json",
        "gone or of another size",
        f"{SHARDS}/_manifest.json",
    ),
    "a shard that is gone": (
        lambda root: part(root).unlink(),
        "_manifest.json",
        "gone",
        f"{SHARDS}/_manifest.json",
    ),
    "an image twice": (
        lambda root: rewrite(part(root), lambda t: pa.concat_tables([t, t.slice(0, 1)])),
        "_manifest.json",
        "images occur more than once",
        f"{SHARDS}/_manifest.json",
    ),
    "an image lost": (
        lambda root: rewrite(part(root), lambda t: t.slice(1)),
        "_manifest.json",
        "neither embedded nor listed as failed",
        f"{SHARDS}/_manifest.json",
    ),
    "a layer lost": (
        lambda root: rewrite(part(root), lambda t: t.drop(["layer_01"])),
        "part-",
        "the columns are not",
        f"{SHARDS}/_manifest.json",
    ),
    "embeddings of other weights": (
        lambda root: change_manifest(root, checkpoint_sha256="0" * 64),
        "_manifest.json",
        "from other weights",
        f"{SHARDS}/_manifest.json",
    ),
    "a manifest cut short": (
        lambda root: (root / SHARDS / "_manifest.json").write_text('{"key": '),
        "_manifest.json",
        "ValidationError",
        f"{SHARDS}/_manifest.json",
    ),
    "a bit of the weights": (
        lambda root: flip(root / CHECKPOINT / "step=0" / "model.safetensors"),
        "model.safetensors",
        "the weights differ",
        f"{CHECKPOINT}/trial.json",
    ),
    "meta of a checkpoint": (
        lambda root: (root / CHECKPOINT / "step=0" / "meta.json").write_text("{}"),
        "meta.json",
        "KeyError",
        f"{CHECKPOINT}/trial.json",
    ),
    "a trial's result": (
        lambda root: (root / CHECKPOINT / "trial.json").write_text("[]"),
        "trial.json",
        "TypeError",
        f"{CHECKPOINT}/trial.json",
    ),
    "a score outside its range": (
        lambda root: change_scores(root, lambda rows: with_first(rows, value=1.5)),
        "scores.parquet",
        "outside its range",
        "scores.parquet",
    ),
    "a score that is no number": (
        lambda root: change_scores(root, lambda rows: with_first(rows, value=float("nan"))),
        "scores.parquet",
        "is nan",
        "scores.parquet",
    ),
    "a score twice": (
        lambda root: change_scores(root, lambda rows: [*rows, rows[0]]),
        "scores.parquet",
        "duplicate scores",
        "scores.parquet",
    ),
    "a score of fewer images": (
        lambda root: change_scores(root, lambda rows: with_first(rows, n=3)),
        "scores.parquet",
        "of 3 images",
        "scores.parquet",
    ),
    "scores that are no table": (
        lambda root: (root / "scores.parquet").write_bytes(b"PAR1"),
        "scores.parquet",
        "Arrow",
        "scores.parquet",
    ),
    "a summary cut short": (
        lambda root: (root / "summary.json").write_text("{"),
        "summary.json",
        "ValidationError",
        "summary.json",
    ),
}


@pytest.mark.parametrize(("damage", "path", "what", "remedy"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_and_reported(
    run: Storage, damage: Callable[[Path], object], path: str, what: str, remedy: str
) -> None:
    damage(Path(run.root))
    findings = verify(run).findings
    assert [finding for finding in findings if path in finding.path and what in finding.what]
    assert {finding.remedy for finding in findings} == {remedy}
    assert repair(run, findings) == [remedy]
    assert verify(run).findings == []


def test_only_damaged_results_are_recomputed(run: Storage, finished: RunConfig) -> None:
    before = [{**row, "seconds": 0} for row in table.read(run)]
    root = Path(run.root)
    weights = (root / CHECKPOINT / "step=0" / "model.safetensors").stat().st_mtime_ns
    flip(part(root))
    change_scores(root, lambda rows: with_first(rows, value=1.5))
    config = finished.model_copy(update={"run_dir": run.root})
    pipeline.repair(config, Telemetry())
    pipeline.run(config, executor=LocalExecutor())
    found = verify(run)
    assert (found.findings, found.unfinished) == ([], [])
    # Replaced files and temporary files of interrupted writes are strays, which nothing reads.
    assert len(found.strays) == 2
    (root / "embeddings" / ".tmp-1").write_bytes(b"cut")
    assert verify(run).strays == [*found.strays, "embeddings/.tmp-1"]
    assert [{**row, "seconds": 0} for row in table.read(run)] == before
    assert (root / CHECKPOINT / "step=0" / "model.safetensors").stat().st_mtime_ns == weights


def test_damage_that_cannot_be_recomputed_is_an_error(run: Storage) -> None:
    (Path(run.root) / "splits.parquet").write_bytes(b"")
    (finding,) = verify(run).findings
    assert finding.remedy is None
    with pytest.raises(RaysepError, match="use another --run-dir"):
        repair(run, [finding, Finding("x", "y", "x")])
    (Path(run.root) / "config.yaml").write_text("models: 3")
    with pytest.raises(UsageError, match="not a run's configuration"):
        verify(run)
    with pytest.raises(UsageError, match="holds no run"):
        verify(Storage(f"{run.root}/nothing"))
