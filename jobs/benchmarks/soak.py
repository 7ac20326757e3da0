"""100,000 images through a whole run, and the memory of each of its processes all the while: it must not grow.

python jobs/benchmarks/soak.py            # a quarter of an hour on two cores
python jobs/benchmarks/soak.py --quick

Of each process of the run (the driver, embedding and scoring actors, Ray's own) the memory that is its own is read each
second. What it had at most in the last quarter of a stage is held against what it had at most in the second quarter: in
the first one it loads models and libraries.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from figures import Figure, at_least, at_most, emit
from whole_runs import TITLES, children_of, start, write_images

from raysep.integrity import verify
from raysep.scoring import table
from raysep.storage.store import Storage

INTERVAL_S = 1.0
STAGES = ("embed", "score")
# A process is looked at in a stage where it was there for so many samples.
SAMPLES = 20
MIB = 2**20
# By pid and title: stage and bytes of each sample.
Samples = dict[tuple[int, str], list[tuple[str, int]]]


def configuration(images: Path) -> dict[str, Any]:
    """A network as it is, with thirteen layers, and all images unseen."""
    small = {"name": "test_vit", "pretrained": False, "image_size": 16, "kwargs": {"patch_size": 8, "depth": 12}}
    return {
        "data": {"source": {"kind": "image_folder", "path": str(images)}, "split": {"unseen": "all"}},
        "models": [small],
        "score": {"metrics": ["nmi", "knn_purity", "nn1", "linear_probe"], "resamples": 50},
        "baselines": {"untrained": False, "pixels": None},
        "monitoring": {"port": None},
        "compute": {"embed_actors": 1, "score_actors": 2},
    }


def own_bytes(pid: int) -> int:
    """Memory that no other process shares, such as the object store; 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def descendants(pid: int) -> dict[int, str]:
    """All processes below one, by pid, with their titles."""
    found: dict[int, str] = {}
    new = {pid}
    while new:
        level = dict(children_of(new))
        new = set(level) - set(found)
        found |= level
    return found


def stage_of(log: Path) -> str:
    """Which stage the last line of a run's log is of."""
    last = log.read_bytes().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        return str(json.loads(last)["stage"])
    except (ValueError, KeyError):
        return ""


def sampled(config: Path, run_dir: Path) -> tuple[int, Samples]:
    """Run to the end: its exit code, and what each process had."""
    samples: Samples = defaultdict(list)
    driver = start(config, run_dir, ("--log-format", "json"))
    log = run_dir.parent / f"{run_dir.name}.log"
    while (code := driver.poll()) is None:
        stage = stage_of(log)
        for pid, line in {driver.pid: "driver", **descendants(driver.pid)}.items():
            samples[pid, title(line)].append((stage, own_bytes(pid)))
        time.sleep(INTERVAL_S)
    return code, samples


def title(line: str) -> str:
    """What a process does, in a word or two."""
    for name, start_of_title in TITLES.items():
        if line.startswith(start_of_title):
            return f"{name} actor"
    words = [word.rpartition("/")[2] for word in line.split() if not word.startswith("-")]
    return next((word for word in words if word not in {"python", "python3"}), "?")


def growth(samples: Samples) -> Iterator[tuple[str, str, int, int]]:
    """Stage, process, and its peaks in the second and the last quarter, of those that were there for long enough."""
    for (_, name), all_of_them in samples.items():
        for stage in STAGES:
            found = [size for of, size in all_of_them if of == stage and size]
            if len(found) >= SAMPLES:
                quarter = len(found) // 4
                yield stage, name, max(found[quarter : 2 * quarter]), max(found[-quarter:])


def figures(images: int) -> Iterator[Figure]:
    """The growth of each process in each stage, the largest of each kind."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        place = Path(folder)
        write_images(place / "images", images)
        config, run_dir = place / "run.yaml", place / "run"
        config.write_text(json.dumps(configuration(place / "images")))
        began = time.monotonic()
        code, samples = sampled(config, run_dir)
        took = time.monotonic() - began
        if code != 0:
            raise SystemExit((place / "run.log").read_text()[-4000:])
        run = Storage(str(run_dir))
        found = verify(run)
        rows, scores = found.counts["rows"], len(table.read(run))
    how = f"embedded and scored in {took:.0f} s, {scores} scores, {len(found.findings)} findings of `raysep verify`"
    yield at_least("rows", rows if not found.findings else 0, images, "rows", how)
    worst: dict[tuple[str, str], tuple[int, int]] = {}
    for stage, name, before, after in growth(samples):
        known = worst.get((stage, name))
        if known is None or after * known[0] > known[1] * before:
            worst[stage, name] = before, after
    for (stage, name), (before, after) in sorted(worst.items()):
        how = f"{after / MIB:.0f} MiB at most in the last quarter, {before / MIB:.0f} in the second"
        yield at_most(f"memory of {name}, {stage}", after / before, 1.1, "x", how)


def main(quick: Annotated[bool, typer.Option(help="Few images.")] = False) -> None:
    """Print the figures; exit 1 where a bar is missed."""
    emit(figures(3_000 if quick else 100_000), quick)


if __name__ == "__main__":
    typer.run(main)
