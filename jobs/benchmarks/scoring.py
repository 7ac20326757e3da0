"""Scoring against scikit-learn called the obvious way: one layer, one metric, one fit after another.

python jobs/benchmarks/scoring.py                       # half an hour on two cores
python jobs/benchmarks/scoring.py --part kmeans --part probe
python jobs/benchmarks/scoring.py --quick

Layers are Gaussians around class centres in features of decaying variance, rotated so that features are correlated
as those of networks are. Both sides have the threads that their libraries take by default, unless it says otherwise.
"""

import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from figures import Figure, at_least, at_most, chosen, emit, figure, in_turn, seconds
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestCentroid, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from raysep.config import ScoreConfig
from raysep.config.names import DIAGNOSTIC, DIAGNOSTICS
from raysep.config.registry import METRICS
from raysep.scoring import split_half
from raysep.scoring.backends import open_backend
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.backends.torch import TorchBackend
from raysep.scoring.cache import LayerScores
from raysep.scoring.probe import STRENGTHS, linear_probe
from raysep.scoring.scoring import score_layer

Matrix = NDArray[np.float32]
Labels = NDArray[np.integer[Any]]
DRAWS, SHOTS = 100, (1, 2, 5, 10, 20)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    layers: int
    images: int
    dim: int
    classes: int
    large_images: int
    large_classes: int
    turns: int


FULL = Size(layers=13, images=2500, dim=768, classes=5, large_images=50_000, large_classes=100, turns=5)
QUICK = Size(layers=2, images=600, dim=64, classes=5, large_images=3000, large_classes=10, turns=1)


def layer(N: int, D: int, K: int, seed: int, separation: float = 0.1) -> tuple[Matrix, Labels]:
    """One layer: X and y."""
    rng = np.random.default_rng(seed)
    y = np.arange(N) % K
    scale = (1 + np.arange(D, dtype=np.float32)) ** -0.5
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0].astype(np.float32)
    centres = rng.normal(size=(K, D)).astype(np.float32)
    X = (separation * centres[y] + rng.standard_normal((N, D), dtype=np.float32)) * scale
    return X @ turn, y


def kmeans_of_scikit_learn(X: Matrix, y: Labels) -> None:
    """Ten restarts, and the metrics of their clusters."""
    clusters = KMeans(len(np.unique(y)), n_init=10, random_state=42).fit(X).labels_
    for score in (normalized_mutual_info_score, adjusted_mutual_info_score, adjusted_rand_score):
        score(y, clusters)


def neighbors_of_scikit_learn(X: Matrix, y: Labels, in_a: NDArray[np.bool_] | None) -> None:
    """One search; purity at every k, and on each half among the neighbours that are in it."""
    k = len(y) // len(np.unique(y)) - 1
    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(X).kneighbors(return_distance=False)
    same = y[found] == y[:, None]
    same.mean(), same[:, 0].mean()
    for members in [] if in_a is None else [*in_a.T, *~in_a.T]:
        inside = members[found[members]]
        own = same[members]
        ((inside & own).sum(axis=1) / np.maximum(inside.sum(axis=1), 1)).mean()
        own[np.arange(len(own)), inside.argmax(axis=1)].mean()


def probe_of_scikit_learn(X: Matrix, y: Labels) -> float:
    """Accuracy of `LogisticRegressionCV` inside five folds."""
    right = 0
    for train, test in StratifiedKFold(5, shuffle=True, random_state=42).split(X, y):
        right += int((_probe().fit(X[train], y[train]).predict(X[test]) == y[test]).sum())
    return right / len(y)


def _probe() -> Any:
    inner = StratifiedKFold(3, shuffle=True, random_state=42)
    return make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=list(STRENGTHS), cv=inner))


def few_shot_of_scikit_learn(X: Matrix, y: Labels) -> None:
    """`NearestCentroid` for each draw of labelled images."""
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(y == label) for label in np.unique(y)]
    for shots in SHOTS:
        for _ in range(DRAWS):
            chosen = np.concatenate([rng.choice(own, shots, replace=False) for own in members])
            with np.errstate(invalid="ignore"):
                (NearestCentroid().fit(X[chosen], y[chosen]).predict(X) == y).mean()


def everything_of_scikit_learn(X: Matrix, y: Labels) -> None:
    """The metrics of a layer. No intervals, chance levels or diagnostics, which ours has."""
    kmeans_of_scikit_learn(X, y)
    neighbors_of_scikit_learn(X, y, None)
    probe_of_scikit_learn(X, y)
    few_shot_of_scikit_learn(X, y)


def everything(size: Size, seed: int) -> None:
    """The same metrics of ours, with intervals, chance levels and diagnostics."""
    X, y = _layers(size)[seed]
    wanted = [("default", metric) for metric in METRICS] + [(DIAGNOSTIC, name) for name in DIAGNOSTICS]
    score_layer(X.copy(), y, wanted, open_backend("auto"), ScoreConfig(sample=None), overwrite=True)


_MADE: dict[Size, list[tuple[Matrix, Labels]]] = {}


def _layers(size: Size) -> list[tuple[Matrix, Labels]]:
    if size not in _MADE:
        _MADE[size] = [
            layer(size.images, size.dim, size.classes, seed, 0.04 + 0.01 * seed) for seed in range(size.layers)
        ]
    return _MADE[size]


def _one_thread(size: Size) -> None:
    torch.set_num_threads(1)
    threadpool_limits(1)
    _layers(size)


def layers(size: Size) -> Iterator[Figure]:
    """All layers: ours in two processes of one thread, as the service scores them, against one process."""
    made, ours, theirs = _layers(size), [], 0.0
    with ProcessPoolExecutor(2, initializer=_one_thread, initargs=(size,)) as workers:
        list(workers.map(partial(everything, size), range(2)))
        for turn in range(size.turns):
            ours.append(seconds(lambda: list(workers.map(partial(everything, size), range(size.layers)))))
            for X, y in made[turn :: size.turns]:
                theirs += seconds(partial(everything_of_scikit_learn, X, y))
    how = f"{size.layers} layers of {size.images} x {size.dim}; ours with intervals: {median(ours):.1f} s, "
    how += f"median of {size.turns}; scikit-learn: {theirs:.1f} s, each layer once, in turn with ours"
    yield at_least("scoring all layers, all metrics, against scikit-learn", theirs / median(ours), 8, "x", how)


def kmeans(size: Size) -> Iterator[Figure]:
    """k-means with ten restarts."""
    X, _ = _layers(size)[-1]
    backend = TorchBackend()
    on_device = backend.to_device(X)
    found: dict[str, float] = {}

    def ours() -> None:
        found["ours"] = float(backend.kmeans(on_device, size.classes, 10, 42).inertia.min())

    def theirs() -> None:
        found["theirs"] = float(KMeans(size.classes, n_init=10, random_state=42).fit(X).inertia_)

    own, other = in_turn(size.turns, ours, theirs)
    how = f"ten restarts of {size.images} x {size.dim}, K = {size.classes}: {own:.3f} s against {other:.3f} s"
    yield at_least("k-means against scikit-learn", other / own, 3, "x", how)
    yield at_most("inertia against scikit-learn's", found["ours"] / found["theirs"], 1.001, "x", "best of ten restarts")


def neighbors(size: Size) -> Iterator[Figure]:
    """All neighbour metrics and their halves."""
    X, y = _layers(size)[-1]
    in_a = split_half.draw_halves(y, ScoreConfig(sample=None).resamples, 42)

    def ours() -> None:
        own = LayerScores(X, y, TorchBackend(), ScoreConfig(sample=None))
        for metric in ("knn_purity", "nn1", "r_precision"):
            METRICS[metric].compute(own)

    own, other = in_turn(size.turns, ours, partial(neighbors_of_scikit_learn, X, y, in_a))
    how = f"{own:.3f} s against {other:.3f} s: one search, purity of all, first and halved neighbours, 200 halves"
    yield at_least("neighbour metrics and their halves against scikit-learn", other / own, 2, "x", how)


def probe(size: Size) -> Iterator[Figure]:
    """The linear probe, with the threads that libraries take, and with one thread for both."""
    X, y = _layers(size)[size.layers // 2]
    backend = TorchBackend()
    found: dict[str, float] = {}

    def ours() -> None:
        right = linear_probe(backend.to_device(X), y, backend, 42)
        assert right is not None
        found["ours"] = float(right.mean())

    def theirs() -> None:
        found["theirs"] = probe_of_scikit_learn(X, y)

    turns = min(3, size.turns)
    own, other = in_turn(turns, ours, theirs)
    how = f"nested folds, five penalties: {own:.2f} s against {other:.2f} s of LogisticRegressionCV, median of {turns}"
    yield at_least("linear probe against scikit-learn", other / own, 10, "x", how)
    difference = abs(found["ours"] - found["theirs"])
    how = f"{found['ours']:.4f} against {found['theirs']:.4f}"
    yield at_most("accuracy of the linear probe, difference from scikit-learn's", difference, 0.005, "accuracy", how)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        own, other = in_turn(turns, ours, theirs)
    torch.set_num_threads(threads)
    how = f"{own:.2f} s against {other:.2f} s: with two threads scikit-learn takes longer than with one"
    yield figure("linear probe against scikit-learn, one thread each", other / own, "none: reported", None, "x", how)


def sizes(size: Size) -> Iterator[Figure]:
    """Where torch pays against our own calls of scikit-learn: clusters, neighbours and probe of layers of any size."""
    shapes = [(100, 16, 4), (500, 64, 5), (1000, 384, 10), (2500, 768, 20), (5000, 384, 50)]
    for N, D, K in shapes[: 2 if size is QUICK else None]:
        X, y = layer(N, D, K, 0)

        def work(backend: Any, X: Matrix = X, y: Labels = y, K: int = K) -> None:
            on_device = backend.to_device(X)
            backend.kmeans(on_device, K, 10, 42)
            backend.neighbors(on_device, len(y) // K - 1)
            linear_probe(on_device, y, backend, 42)

        own, other = in_turn(min(3, size.turns), partial(work, TorchBackend()), partial(work, SklearnBackend()))
        how = f"k-means, neighbours and probe: {own:.3f} s against {other:.3f} s"
        yield figure(f"torch against sklearn, {N} x {D}, K = {K}", other / own, "none: reported", None, "x", how)


def large(size: Size) -> Iterator[Figure]:
    """One layer of many images: time in turn, memory of a process that does nothing else."""
    X, y = layer(size.large_images, size.dim, size.large_classes, 0)
    wanted = [("default", metric) for metric in METRICS] + [(DIAGNOSTIC, name) for name in DIAGNOSTICS]
    config = ScoreConfig(sample=10_000)
    ours = seconds(lambda: score_layer(X.copy(), y, wanted, open_backend("auto"), config, overwrite=True))
    theirs = {
        "k-means": seconds(partial(kmeans_of_scikit_learn, X, y)),
        "neighbours": seconds(partial(neighbors_of_scikit_learn, X, y, None)),
        "few-shot": seconds(partial(few_shot_of_scikit_learn, X, y)),
        # One of five folds, which are alike: it takes minutes.
        "probe, one fold timed and counted five times,": 5 * seconds(partial(_one_fold, X, y)),
    }
    parts = ", ".join(f"{name} {took:.0f} s" for name, took in theirs.items())
    how = f"{len(y)} x {size.dim}, K = {size.large_classes}: {ours:.0f} s with intervals against {parts}; once each"
    yield at_least("scoring one large layer against scikit-learn", sum(theirs.values()) / ours, 4, "x", how)
    command = [sys.executable, __file__, "--memory-of", f"{size.large_images},{size.dim},{size.large_classes}"]
    peak, of_layer = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    how = f"peak of a process that scores it, less what it had before, {peak / 2**20:.0f} MiB"
    yield at_most("peak memory of scoring one large layer", peak / of_layer, 2.5, "x the layer's bytes", how)


def _one_fold(X: Matrix, y: Labels) -> None:
    train, test = next(StratifiedKFold(5, shuffle=True, random_state=42).split(X, y))
    _probe().fit(X[train], y[train]).predict(X[test])


def memory(N: int, D: int, K: int) -> None:
    """Print the bytes by which scoring a layer raises this process's memory at most, the layer included."""
    warm, labels = layer(600, 64, 5, 0)
    wanted = [("default", metric) for metric in METRICS] + [(DIAGNOSTIC, name) for name in DIAGNOSTICS]
    score_layer(warm, labels, wanted, open_backend("auto"), ScoreConfig(sample=None))
    X, y = layer(N, D, K, 0)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() - X.nbytes
    # From here on the kernel counts a new peak.
    Path("/proc/self/clear_refs").write_text("5")
    score_layer(X, y, wanted, open_backend("auto"), ScoreConfig(sample=10_000), overwrite=True)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024 - before, X.nbytes)


PARTS = {
    "kmeans": kmeans,
    "neighbors": neighbors,
    "probe": probe,
    "sizes": sizes,
    "large": large,
    "layers": layers,
}


def main(
    quick: Annotated[bool, typer.Option(help="Small layers, one turn: whether it runs, not how fast.")] = False,
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; unset: all.")] = None,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the figures; exit 1 where a bar is missed."""
    # scikit-learn's solvers say that they stopped early, and nearest centroids that one image has no spread.
    warnings.simplefilter("ignore")
    if memory_of is not None:
        memory(*map(int, memory_of.split(",")))
        return
    size = QUICK if quick else FULL
    emit((line for measure in chosen(PARTS, part) for line in measure(size)), quick)


if __name__ == "__main__":
    typer.run(main)
