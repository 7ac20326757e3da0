"""Scaling: throughput with workers, driver memory with images, and the time of a resumed run with finished work.

python jobs/benchmarks/scaling.py            # ten minutes on two cores
python jobs/benchmarks/scaling.py --part resume --part bytes
python jobs/benchmarks/scaling.py --quick
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from extraction import BATCH, BLOCK, LIGHT, World
from figures import Figure, at_least, at_most, chosen, emit, seconds
from PIL import Image

from raysep.config import EmbedConfig, ScoreConfig
from raysep.config.registry import METRICS
from raysep.distributed.connect import connection
from raysep.distributed.placement import EmbedPlan, Pool
from raysep.embedding.shards import Manifest, ShardSet, commit, read_layer, write_part
from raysep.models.layers import Layer
from raysep.scoring.table import Task
from raysep.storage.store import Storage


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    images: int
    layers: int
    rows: int
    dim: int
    few: int
    many: int
    turns: int


FULL = Size(images=2048, layers=13, rows=2500, dim=768, few=10_000, many=100_000, turns=5)
QUICK = Size(images=256, layers=4, rows=300, dim=32, few=200, many=400, turns=1)


def shards(run: Storage, size: Size) -> tuple[ShardSet, Manifest]:
    """A shard set of random layers of five classes."""
    rng = np.random.default_rng(0)
    layers = [Layer(index, f"l{index}", index / (size.layers - 1), size.dim, "mean") for index in range(size.layers)]
    shard_set, files = ShardSet("m", 0, 0, "unseen"), []
    centres = rng.normal(size=(5, size.dim)).astype(np.float32)
    for first in range(0, size.rows, 1024):
        ids = [f"class/{number:06d}.jpg" for number in range(first, min(size.rows, first + 1024))]
        labels = [number % 5 for number in range(len(ids))]
        vectors = [0.1 * centres[labels] + rng.standard_normal((len(ids), size.dim), dtype=np.float32) for _ in layers]
        files.append(write_part(run, shard_set.directory, ids, labels, vectors, layers, "float32"))
    manifest = Manifest("key", size.rows, files, layers, {}, "float32", "sha", {})
    commit(run, shard_set, manifest)
    return shard_set, manifest


def workers(size: Size) -> Iterator[Figure]:
    """Two actors against one, from when each has done its first piece."""
    with tempfile.TemporaryDirectory() as folder, connection():
        world = World(Path(folder), LIGHT, size.images)
        shard_set, manifest = shards(world.run, size)
        wanted = [("default", metric) for metric in METRICS]
        tasks = [Task(shard_set, manifest, layer, 0, "key", wanted) for layer in manifest.layers]
        stages: dict[str, Callable[[int], float]] = {
            "embed": partial(_embedding, world, size.images),
            "score": partial(_scoring, world.run, tasks),
        }
        for name, rate in stages.items():
            rates: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(min(3, size.turns)):
                for count, found in rates.items():
                    found.append(rate(count))
            one, two = median(rates[1]), median(rates[2])
            how = f"{two:.2f} against {one:.2f} {'images' if name == 'embed' else 'layers'} a second, one thread each"
            yield at_least(f"two workers against one, {name}", two / one, 1.8, "x", how)


def _embedding(world: World, images: int, count: int) -> float:
    from raysep.distributed.stream import embed_all

    plan = EmbedPlan(Pool(count, 1, 0))
    blocks = embed_all([world.unit(1, images)], world.run, EmbedConfig(batch_size=BATCH, shard_rows=BLOCK), plan)
    return _rate([(time.perf_counter(), block.images) for block in blocks], count)


def _scoring(run: Storage, tasks: list[Task], count: int) -> float:
    from raysep.distributed.score import score_all

    return _rate(
        [(time.perf_counter(), 1) for _ in score_all(run, ScoreConfig(), tasks, Pool(count, 1, 0), lambda _: None)],
        count,
    )


def _rate(done: list[tuple[float, int]], count: int) -> float:
    """Pieces a second between each worker's first piece and the last ones, when not all of them have work any more."""
    counted = done[count : len(done) - count + 1]
    return sum(pieces for _, pieces in counted) / (counted[-1][0] - done[count - 1][0])


def memory(size: Size) -> Iterator[Figure]:
    """The most memory that the process of the command has, with few images and with many."""
    peaks = {}
    for count in (size.few, size.many):
        with tempfile.TemporaryDirectory() as folder:
            config = _tiny_run(Path(folder), count)
            subprocess.run([*RAYSEP, "finetune", config], check=True, env=_environment(), capture_output=True)
            peaks[count] = _peak([*RAYSEP, "embed", config])
    few, many = peaks.values()
    how = f"`raysep embed`: {many / 2**20:.0f} MiB for {size.many} images, {few / 2**20:.0f} MiB for {size.few}"
    yield at_most("memory of the driver with ten times the images", many / few, 1.1, "x", how)


def _tiny_run(where: Path, images: int) -> str:
    """A configuration of small images in a Parquet file, and a small model."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for number in range(images):
        file = where / "one.png"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
        rows["image"].append(file.read_bytes())
        rows["label"].append("ab"[number % 2])
    pq.write_table(pa.table(rows), where / "images.parquet", row_group_size=1000)
    config = {
        "run_dir": str(where / "run"),
        "data": {"source": {"kind": "parquet", "path": str(where / "images.parquet")}, "split": {"unseen": "all"}},
        "models": [{"name": "test_vit", "pretrained": False, "image_size": 32}],
        "baselines": {"untrained": False, "pixels": None},
        "score": {"metrics": ["nmi", "nn1"], "resamples": 20, "max_classes": None},
        "monitoring": {"port": None},
    }
    (where / "run.yaml").write_text(json.dumps(config))
    return str(where / "run.yaml")


RAYSEP = [sys.executable, "-m", "raysep"]


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": ""}


def _peak(command: list[str]) -> int:
    """The most resident memory of a command's own process, in bytes."""
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.1)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return peak


class Counting:
    """A file system that counts what is read of it."""

    def __init__(self, fs: Any) -> None:
        self._fs, self.count = fs, 0

    def open_input_file(self, path: str) -> Any:
        """A file whose reads count."""
        opened, outer = self._fs.open_input_file(path), self

        class File:
            closed = False

            def __getattr__(self, name: str) -> Any:
                # Arrow would read past `read` by these.
                if name in {"read_buffer", "readinto"}:
                    raise AttributeError(name)
                return getattr(opened, name)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                opened.close()

            def read(self, *size: int) -> bytes:
                content: bytes = opened.read(*size)
                outer.count += len(content)
                return content

        return File()


def read_bytes(size: Size) -> Iterator[Figure]:
    """What is read to score one layer of many."""
    with tempfile.TemporaryDirectory() as folder:
        run = Storage(folder)
        shard_set, manifest = shards(run, size)
        counting = Counting(run.fs)
        run.fs = counting
        _, _, X = read_layer(run, shard_set, manifest, size.layers // 2)
    how = f"layer of {size.rows} x {size.dim}, one of {size.layers}, with image ids and labels"
    yield at_most("bytes read to score one layer", counting.count / X.nbytes, 1.1, "x the column's bytes", how)


def resume(size: Size) -> Iterator[Figure]:
    """A finished run, asked for again."""
    with tempfile.TemporaryDirectory() as folder:
        config = _tiny_run(Path(folder), 200)
        command = [*RAYSEP, "run", config]
        subprocess.run(command, check=True, env=_environment(), capture_output=True)
        taken = [
            seconds(lambda: subprocess.run(command, check=True, env=_environment(), capture_output=True))
            for _ in range(size.turns)
        ]
    yield at_most("`raysep run` of a finished run", median(taken), 3, "s", f"median of {size.turns}")


PARTS = {"bytes": read_bytes, "resume": resume, "workers": workers, "memory": memory}


def main(
    quick: Annotated[bool, typer.Option(help="Little of everything: whether it runs, not how fast.")] = False,
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; unset: all.")] = None,
) -> None:
    """Print the figures; exit 1 where a bar is missed."""
    size = QUICK if quick else FULL
    emit((line for measure in chosen(PARTS, part) for line in measure(size)), quick)


if __name__ == "__main__":
    typer.run(main)
