"""A whole run on 2,000 images, whose processes are killed at random times until it ends; again and again.

python jobs/benchmarks/chaos.py            # fifty kills: half an hour on two cores
python jobs/benchmarks/chaos.py --quick    # a few kills
python jobs/benchmarks/chaos.py --seed 7   # other times and targets

Three nodes of a CPU each, on this machine. Killed (SIGKILL) are processes of trials, of embedding and of scoring, the
raylet of a node, which takes all of its processes with it, and the driver, after which the same command is run again.
After each kill `raysep verify` must find nothing wrong, and a run that has ended must have found what an undisturbed
one has: every embedding bit for bit, every score exactly.
"""

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from figures import Figure, at_least, at_most, emit, figure
from whole_runs import TITLES, children_of, start, write_images

from raysep.embedding.shards import Manifest, read_layer, read_manifest, shard_set_at
from raysep.integrity import verify
from raysep.scoring import table
from raysep.storage.store import Storage

# Seconds between two kills, at random.
PAUSE = (3.0, 12.0)
# A command that ends badly so often without having been disturbed will not end well.
PATIENCE = 3


def kill(pid: int) -> None:
    """At once, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Nodes:
    """Three nodes of a CPU each, by Ray's own means of having several on one machine; the first is the head."""

    def __init__(self) -> None:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(16), OMP_NUM_THREADS="1")
        # A directory of its own, so that no other program of this machine takes this cluster for the one to join.
        self._scratch = Path(f"/tmp/rc{os.getpid()}")
        self._scratch.mkdir()
        os.environ["RAY_TMPDIR"] = str(self._scratch)
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self._others = [self._cluster.add_node(num_cpus=1) for _ in range(2)]
        os.environ["RAY_ADDRESS"] = str(self._cluster.address)

    def workers(self, title: str) -> list[int]:
        """Processes of the nodes that do one kind of work."""
        raylets = [
            info.process.pid for node in self._cluster.list_all_nodes() for info in node.all_processes.get("raylet", [])
        ]
        return [pid for pid, line in children_of(raylets) if line.startswith(title)]

    def lose_one(self, rng: random.Random) -> None:
        """Kill the raylet of a node that is not the head; another node takes its place."""
        position = rng.randrange(len(self._others))
        self._cluster.remove_node(self._others[position], allow_graceful=False)
        self._others[position] = self._cluster.add_node(num_cpus=1)

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()
        shutil.rmtree(self._scratch, ignore_errors=True)


@dataclass
class Tally:
    """What was done to the runs, and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0


def configuration(images: Path) -> dict[str, Any]:
    """All stages, with work for several processes in each."""
    small = {"name": "test_vit", "pretrained": False, "image_size": 32, "kwargs": {"patch_size": 8, "depth": 3}}
    return {
        "data": {"source": {"kind": "image_folder", "path": str(images)}, "split": {"unseen": ["c", "d", "e"]}},
        "models": [small],
        "finetune": {"steps": 60, "evaluate_at": [0, 30, 60], "batch_size": 32, "seeds": [0, 1, 2]},
        "embed": {"shard_rows": 64, "batch_size": 32},
        "score": {"metrics": ["nmi", "knn_purity", "nn1", "linear_probe"], "resamples": 50},
        "baselines": {"untrained": True, "pixels": None},
        "monitoring": {"port": None},
        "compute": {"cpus_per_trial": 1, "embed_actors": 2, "cpus_per_embed_actor": 1, "score_actors": 2},
    }


def strike(nodes: Nodes, driver: subprocess.Popen[bytes], rng: random.Random) -> str | None:
    """Kill one thing of those that are there, and say which; None where there is nothing but the driver yet."""
    there = {name: found for name, title in TITLES.items() if (found := nodes.workers(title))}
    if not there:
        return None
    # Work of the stage at hand most often, then the driver and a node.
    what = rng.choices([*there, "driver", "raylet"], [*[3] * len(there), 2, 1])[0]
    if what == "driver":
        kill(driver.pid)
        driver.wait()
        return f"driver in {'/'.join(there)}"
    if what == "raylet":
        nodes.lose_one(rng)
        return f"raylet in {'/'.join(there)}"
    kill(rng.choice(there[what]))
    return what


def disturbed(nodes: Nodes, config: Path, run_dir: Path, rng: random.Random, kills: int, tally: Tally) -> None:
    """One run to its end, with at most so many kills."""
    began, left, failures = time.monotonic(), kills, 0
    driver = start(config, run_dir)
    due = time.monotonic() + rng.uniform(*PAUSE)
    while True:
        code = driver.poll()
        if code == 0:
            break
        if code is not None:
            failures += code != -signal.SIGKILL
            if failures > PATIENCE + kills:
                tally.wrong.append(f"{run_dir.name}: ended with {code} time and again")
                break
            driver = start(config, run_dir)
        if left and time.monotonic() >= due:
            what = strike(nodes, driver, rng)
            if what is not None:
                left -= 1
                tally.kills[what] += 1
                tally.wrong += [f"{run_dir.name}, after {what}: {item}" for item in wrong_files(run_dir)]
            due = time.monotonic() + rng.uniform(*PAUSE)
        time.sleep(0.2)
    tally.runs += 1
    tally.seconds += time.monotonic() - began


def wrong_files(run_dir: Path) -> list[str]:
    """What `raysep verify` finds wrong by now."""
    run = Storage(str(run_dir))
    if not run.exists("config.yaml"):
        return []
    return [f"{finding.path}: {finding.what}" for finding in verify(run).findings]


def results(run_dir: Path) -> tuple[list[Any], dict[str, Any]]:
    """The scores, and a digest of each layer of each shard set."""
    run = Storage(str(run_dir))
    scores = [{name: value for name, value in row.items() if name != "seconds"} for row in table.read(run)]
    layers = {}
    for path in run.files("embeddings", name="_manifest.json"):
        shard_set = shard_set_at(path)
        manifest = read_manifest(run, shard_set)
        assert isinstance(manifest, Manifest)
        for layer in manifest.layers:
            ids, y, X = read_layer(run, shard_set, manifest, layer.index)
            layers[f"{shard_set.directory} {layer.index}"] = ids, y.tolist(), X.tobytes()
    return json.loads(json.dumps(scores)), layers


def figures(kills: int, a_run: int, images: int, seed: int) -> Iterator[Figure]:
    """So many kills, several in a run."""
    rng, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        place = Path(folder)
        write_images(place / "images", images)
        config = place / "run.yaml"
        config.write_text(json.dumps(configuration(place / "images")))
        nodes = Nodes()
        try:
            undisturbed = Tally()
            disturbed(nodes, config, place / "undisturbed", rng, 0, undisturbed)
            if undisturbed.wrong:
                raise SystemExit((place / "undisturbed.log").read_text())
            expected = results(place / "undisturbed")
            while tally.kills.total() < kills and len(tally.wrong) == 0:
                run_dir = place / f"run{tally.runs}"
                disturbed(nodes, config, run_dir, rng, min(a_run, kills - tally.kills.total()), tally)
                found = results(run_dir)
                tally.wrong += [f"{run_dir.name}: {item}" for item in wrong_files(run_dir)]
                for name, ours, theirs in zip(("scores", "embeddings"), found, expected, strict=True):
                    if ours != theirs:
                        tally.wrong.append(f"{run_dir.name}: other {name} than the undisturbed run's")
                if tally.wrong:
                    print((place / f"{run_dir.name}.log").read_text()[-4000:], file=sys.stderr)
                shutil.rmtree(run_dir)
        finally:
            nodes.close()
    for item in tally.wrong:
        print(item, file=sys.stderr)
    which = ", ".join(f"{count} {what}" for what, count in sorted(tally.kills.items()))
    yield at_least("kills survived", tally.kills.total(), kills, "kills", f"in {tally.runs} runs: {which}; seed {seed}")
    how = "after each kill `raysep verify`, after each run embeddings bit for bit and scores exactly"
    yield at_most("differences from an undisturbed run", len(tally.wrong), 0, "differences", how)
    lost = (tally.seconds - undisturbed.seconds * tally.runs) / max(1, tally.kills.total())
    how = f"an undisturbed run takes {undisturbed.seconds:.0f} s"
    yield figure("time lost", lost, "none: reported", None, "s a kill", how)


def main(
    quick: Annotated[bool, typer.Option(help="A few kills of a small run.")] = False,
    seed: Annotated[int, typer.Option(help="Of times and targets.")] = 0,
) -> None:
    """Print the figures; exit 1 where a bar is missed."""
    size = {"kills": 2, "a_run": 2, "images": 300} if quick else {"kills": 50, "a_run": 5, "images": 2000}
    emit(figures(**size, seed=seed), quick=False)


if __name__ == "__main__":
    typer.run(main)
