"""Extraction against a plain PyTorch loop over the same images, written the obvious way.

python jobs/benchmarks/extraction.py            # a quarter of an hour on two cores
python jobs/benchmarks/extraction.py --part layers --part checkpoints
python jobs/benchmarks/extraction.py --quick

The loop is a DataLoader with timm's transform and `forward_intermediates`, with the number of loader processes (0 or 2)
that is faster here, and as many threads as torch takes by default. Images are JPEGs of smooth noise.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import timm
import torch
import typer
from figures import Figure, at_least, at_most, chosen, emit, figure, in_turn, seconds
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from raysep.config import ComputeConfig, EmbedConfig, ModelConfig, SplitConfig
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split, select
from raysep.distributed.connect import connection
from raysep.distributed.placement import embed_plan
from raysep.embedding.blocks import Embedding
from raysep.embedding.embedder import Embedder
from raysep.embedding.shards import ShardSet
from raysep.embedding.work import WorkGroup, references
from raysep.finetune.training import prepare
from raysep.finetune.trials import Trial
from raysep.models.meta import CheckpointMeta, read_meta
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter

BATCH, BLOCK = 64, 256


@dataclass(frozen=True)
class Case:
    """A model, and how close to the loop it should be."""

    name: str
    model: str
    pixels: int
    stored: int
    bar: float


LIGHT = Case("ViT-Ti at 64 px", "vit_tiny_patch16_224", 64, 96, 0.95)
HEAVY = Case("ResNet-18 at 128 px", "resnet18", 128, 160, 0.98)


@dataclass(frozen=True)
class Size:
    """Images of each turn, and turns."""

    images: int
    turns: int
    whole: int
    cases: tuple[Case, ...]


FULL = Size(images=2000, turns=5, whole=10_000, cases=(LIGHT, HEAVY))
QUICK = Size(
    images=600,
    turns=1,
    whole=600,
    cases=(replace(LIGHT, model="test_vit", pixels=32, stored=40),),
)


class World:
    """Images, and a run whose checkpoints are there."""

    def __init__(self, where: Path, case: Case, images: int) -> None:
        self.case, self.images, self.run = case, where / "images", Storage(str(where / "run"))
        draw_images(self.images, images, case.stored)
        source = ImageFolder(ImageFolder.Config(path=str(self.images)))
        self.split = draw_split(source.records(), SplitConfig(unseen="all"))
        self.source, self.metas = source, [self.checkpoint(number) for number in (0, 1)]

    def checkpoint(self, number: int, layers: Any = "stages") -> CheckpointMeta:
        """An untrained model."""
        config = ModelConfig(name=self.case.model, pretrained=False, image_size=self.case.pixels, layers=layers)
        prepare(Trial(config, number, seed=number), self.run, self.split)
        return read_meta(self.run, f"checkpoints/{config.id}/trial={number}/step=0")

    def unit(self, count: int, images: int) -> WorkGroup:
        """The first images, for so many checkpoints."""
        metas = self.metas[:count]
        sets = [ShardSet(meta.model.id, meta.trial, meta.step, "unseen") for meta in metas]
        keys = ("benchmark",) * len(metas)
        return WorkGroup(metas, sets, keys, select(self.split, "unseen").slice(0, images), self.source)

    def paths(self, images: int) -> list[str]:
        """Files of the same images."""
        return [str(self.images / path) for path in select(self.split, "unseen")["image_id"].to_pylist()[:images]]


def draw_images(where: Path, count: int, pixels: int) -> None:
    """Write JPEGs of two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = where / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(small).resize((pixels, pixels)).save(folder / f"{number:06d}.jpg", quality=90)


class Files(torch.utils.data.Dataset[torch.Tensor]):
    """What one writes by hand."""

    def __init__(self, paths: list[str], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels: torch.Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
        return pixels


def plain_loop(model: Any, paths: list[str], pixels: int, workers: int) -> list[np.ndarray]:
    """All layers of all images."""
    transform = create_transform(**resolve_data_config({"img_size": pixels}, model=model), is_training=False)
    loader = torch.utils.data.DataLoader(Files(paths, transform), batch_size=BATCH, num_workers=workers)
    found: list[list[np.ndarray]] = []
    with torch.inference_mode():
        for batch in loader:
            layers = model.forward_intermediates(batch, intermediates_only=True)
            found.append([layer.mean(dim=(2, 3)).numpy() for layer in layers])
    return [np.concatenate(column) for column in zip(*found, strict=True)]


def bare_model(case: Case) -> Any:
    """timm's, as the loop has it."""
    options: dict[str, Any] = {"img_size": case.pixels} if case.model.startswith(("vit", "test_vit")) else {}
    return timm.create_model(case.model, pretrained=False, **options).eval()


def faster_loader(model: Any, paths: list[str], pixels: int) -> int:
    """Loader processes that the loop is better off with."""
    return min((0, 2), key=lambda workers: seconds(partial(plain_loop, model, paths, pixels, workers)))


def steady(world: World, images: int, cluster: Any) -> float:
    """Images a second, from when each actor has written its first block."""
    from raysep.distributed.stream import embed_all

    unit = world.unit(1, images)
    plan = embed_plan(ComputeConfig(), cluster, -(-images // BLOCK))
    blocks = embed_all([unit], world.run, EmbedConfig(batch_size=BATCH, shard_rows=BLOCK), plan)
    done = [(time.perf_counter(), block.images) for block in blocks]
    first = plan.embed.processes
    counted = sum(count for _, count in done[first:])
    return counted / (done[-1][0] - done[first - 1][0])


def loop(size: Size) -> Iterator[Figure]:
    """Images a second in the steady state."""
    for case in size.cases:
        with tempfile.TemporaryDirectory() as folder, connection() as cluster:
            world = World(Path(folder), case, size.images)
            model, paths = bare_model(case), world.paths(size.images)
            workers = faster_loader(model, paths[:512], case.pixels)
            ours, theirs = [], []
            for _ in range(size.turns):
                theirs.append(len(paths) / seconds(partial(plain_loop, model, paths, case.pixels, workers)))
                ours.append(steady(world, size.images, cluster))
        how = f"{case.name}: {median(ours):.0f} against {median(theirs):.0f} images/s, {workers} loader processes; "
        how += f"medians of {size.turns} turns of {size.images} images"
        yield at_least("extraction against a plain loop", median(ours) / median(theirs), case.bar, "x", how)


def stage(size: Size) -> Iterator[Figure]:
    """The whole command against the whole script, with all that they import and start."""
    case = size.cases[0]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        draw_images(where / "images", size.whole, case.stored)
        config = {
            "run_dir": str(where / "run"),
            "data": {"source": {"kind": "image_folder", "path": str(where / "images")}, "split": {"unseen": "all"}},
            "models": [{"name": case.model, "pretrained": False, "image_size": case.pixels}],
            "baselines": {"untrained": False, "pixels": None},
            "monitoring": {"port": None},
        }
        (where / "run.yaml").write_text(json.dumps(config))
        environment = {**os.environ, "RAY_ADDRESS": ""}
        raysep = [sys.executable, "-m", "raysep"]
        subprocess.run([*raysep, "finetune", str(where / "run.yaml")], check=True, env=environment, capture_output=True)

        def ours() -> None:
            shutil.rmtree(where / "run" / "embeddings", ignore_errors=True)
            subprocess.run(
                [*raysep, "embed", str(where / "run.yaml")], check=True, env=environment, capture_output=True
            )

        paths = sorted(map(str, (where / "images").rglob("*.jpg")))[:512]
        workers = faster_loader(bare_model(case), paths, case.pixels)
        script = [sys.executable, __file__, "--script", f"{where / 'images'},{case.model},{case.pixels},{workers}"]
        own, other = in_turn(size.turns, ours, lambda: subprocess.run(script, check=True))
    how = f"{case.name}, {size.whole} images: `raysep embed` {own:.1f} s, the script {other:.1f} s, "
    how += f"medians of {size.turns}"
    yield at_most("the embed stage against a script", own / other, 1.25, "x", how)


def script(images: str, model: str, pixels: str, workers: str) -> None:
    """The loop as a program."""
    paths = sorted(map(str, Path(images).rglob("*.jpg")))
    plain_loop(bare_model(Case("", model, int(pixels), 0, 0)), paths, int(pixels), int(workers))


def layers(size: Size) -> Iterator[Figure]:
    """What all layers cost beyond the last one."""
    for case in size.cases:
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder), case, 4)
            last = ["layer4"] if case.model == "resnet18" else [f"blocks.{len(bare_model(case).blocks) - 1}"]
            only = world.checkpoint(2, last)
            pixels = torch.randint(0, 256, (BATCH, 3, case.pixels, case.pixels), dtype=torch.uint8)
            every, one = (
                Embedder.of_checkpoints(world.run, [meta], "cpu", "float32") for meta in (world.metas[0], only)
            )
            passes = [partial(embedder.forward, pixels, Meter("here")) for embedder in (every, one)]
            # Many short turns: one pass takes less than a second.
            own, other = in_turn(5 * size.turns, *passes)
        how = f"{case.name}, a batch of {BATCH}: {1e3 * own:.0f} ms against {1e3 * other:.0f} ms"
        yield at_most("all layers against the last one", own / other, 1.05, "x", how)


def early(size: Size) -> Iterator[Figure]:
    """What an early block costs: the pass ends after it."""
    case = replace(size.cases[0], name="ViT-S at 224 px", model="vit_small_patch16_224", pixels=224)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), case, 4)
        fourth = world.checkpoint(2, ["blocks.3"])
        pixels = torch.randint(0, 256, (BATCH // 4, 3, case.pixels, case.pixels), dtype=torch.uint8)
        every, one = (Embedder.of_checkpoints(world.run, [meta], "cpu", "float32") for meta in (world.metas[0], fourth))
        whole, part = in_turn(3 * size.turns, *(partial(each.forward, pixels, Meter("here")) for each in (every, one)))
    how = f"{case.name}, a batch of {BATCH // 4}: {1e3 * part:.0f} ms against {1e3 * whole:.0f} ms"
    yield at_most("blocks.3 of 12 against all layers", part / whole, 0.5, "x", how)


def checkpoints(size: Size) -> Iterator[Figure]:
    """What a second checkpoint of a model costs: its forward pass, and no decoding."""
    case = size.cases[0]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), case, size.images)
        counted: dict[int, int] = {}

        def embedded(count: int) -> None:
            unit, meter = world.unit(count, size.images), Meter("here")
            work = Embedding([unit.reader], world.run, EmbedConfig(batch_size=BATCH), "cpu", meter)
            reports = [report for block in references(0, unit, 0, BLOCK) for report in work.embed(block).reports]
            counted[count] = sum(report.counts["bytes_read"] for report in reports)

        one, two = in_turn(min(3, size.turns), partial(embedded, 1), partial(embedded, 2))
        files = sum(path.stat().st_size for path in world.images.rglob("*.jpg"))
    yield at_most(
        "bytes decoded for two checkpoints", counted[2] / files, 1.0, "x the files' bytes", f"{case.name}, in one pass"
    )
    how = f"{size.images} images: {two:.1f} s for two, {one:.1f} s for one"
    yield figure("two checkpoints against one", two / one, "none: reported", None, "x", how)


PARTS = {"layers": layers, "early": early, "checkpoints": checkpoints, "loop": loop, "stage": stage}


def main(
    quick: Annotated[bool, typer.Option(help="A small model, few images: whether it runs, not how fast.")] = False,
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; unset: all.")] = None,
    script_of: Annotated[str | None, typer.Option("--script", hidden=True)] = None,
) -> None:
    """Print the figures; exit 1 where a bar is missed."""
    if script_of is not None:
        script(*script_of.split(","))
        return
    size = QUICK if quick else FULL
    emit((line for measure in chosen(PARTS, part) for line in measure(size)), quick)


if __name__ == "__main__":
    typer.run(main)
