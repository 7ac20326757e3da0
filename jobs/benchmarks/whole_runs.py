"""Whole runs as the benchmarks begin them: images on a disk, the command, and its processes."""

import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# Titles of Ray's processes, by what they do.
TITLES = {"trial": "ray::ImplicitFunc", "embed": "ray::MapWorker", "score": "ray::Scorer"}


def write_images(root: Path, images: int) -> None:
    """Of five classes."""
    rng = np.random.default_rng(0)
    for number in range(images):
        label = number % 5
        (root / "abcde"[label]).mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(60 + 30 * label, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "abcde"[label] / f"{number:05d}.png")


def start(config: Path, run_dir: Path, options: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """`raysep run`, in a session of its own; what it says goes into a file beside its directory."""
    with (run_dir.parent / f"{run_dir.name}.log").open("a") as log:
        command = [sys.executable, "-m", "raysep", "run", str(config), "--run-dir", str(run_dir), *options]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def children_of(parents: Collection[int]) -> Iterator[tuple[int, str]]:
    """Pid and command line of the processes that others have started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if parent in parents:
                yield int(entry.name), line
