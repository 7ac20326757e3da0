"""Do the intervals hold what they promise? Simulated embeddings of known separability, many times.

python jobs/benchmarks/calibration.py            # the figures of raysep/scoring/README.md, minutes on two cores
python jobs/benchmarks/calibration.py --part coverage
python jobs/benchmarks/calibration.py --quick    # fewer data sets and wider bars, for the tests
python jobs/benchmarks/calibration.py --part real --run runs/mine        # on embeddings of one's own
python jobs/benchmarks/calibration.py --part real --data photos --model resnet18 --weights resnet18.safetensors

Prints one JSON object a line: figure, value, bar, holds. Exits 1 where a bar is missed. The true value of a
score is its mean over the data sets: what it is on average for so many images of this distribution. The true interval
is between the 2.5th and the 97.5th percentile of the scores of the data sets; where nearly all of them are the same,
at perfect separation, it is what a share of so many images can tell, as no interval could be narrower. Scores are
shown with three digits: what they don't show is no error.

K classes of n images each, D features: Gaussians around K random centres, whose directions matter less and
less, so that neighbouring classes overlap. Layers share half of their noise, as layers of one network do.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Annotated, Any

import numpy as np
import typer
from figures import Figure, chosen, emit
from held_intervals import Intervals, intervals
from numpy.typing import NDArray
from real_layers import RealLayer, of_folder, of_run
from threadpoolctl import threadpool_limits

from raysep.config import ScoreConfig
from raysep.config.names import Metric
from raysep.config.registry import METRICS
from raysep.distributed import limits
from raysep.report.selection import select
from raysep.scoring.backends import open_backend
from raysep.scoring.cache import LayerScores
from raysep.scoring.registry import Measured
from raysep.scoring.subsample import balanced

K, D = 5, 32
SEPARATION = 0.8
# Two classes, and five, that can't be told apart, can be told apart in part, and are all but perfectly apart.
EDGES = (("no separation", 0.0), ("some", SEPARATION), ("near perfect", 1.7))
# Of fewer images, figures are reported and nothing is demanded: halves of them are a handful.
LEAST_IMAGES, LEAST_SETS = 100, 100
# Of real images: so many data sets of so many.
SAMPLES, SAMPLED = 200, 250
# Here k-means has two answers of about the same inertia: no half can say which one other images would give.
UNSTABLE = 0.6
# One layer is better than the others, one is close to it, the last is clearly worse.
UNEQUAL = (0.7, 0.9, 0.85, 0.75)
SELECTED: tuple[Metric, ...] = ("nmi", "knn_purity", "nn1", "few_shot_5")


@dataclass(frozen=True)
class Bars:
    """What the figures are held to, of how many data sets of how many images a class.

    Attributes:
        sets, edge_sets, selections: data sets of each part.
        edge_sizes: images a class, and classes.
    """

    sets: int
    edge_sets: int
    edge_sizes: tuple[tuple[int, int], ...]
    selections: int
    images: int
    coverage: tuple[float, float]
    edge_coverage: float
    width: float
    bias: float
    left_out: float


FULL = Bars(
    sets=500,
    edge_sets=200,
    edge_sizes=((5, 2), (15, 2), (50, 2), (500, 2), (10, 5), (100, 5)),
    selections=150,
    images=100,
    coverage=(0.92, 0.98),
    edge_coverage=0.9,
    width=1.25,
    bias=0.005,
    left_out=0.05,
)
# The same programs on so few sets that chance alone takes figures further from what they should be.
QUICK = Bars(
    sets=24,
    edge_sets=16,
    edge_sizes=((5, 2), (50, 2)),
    selections=24,
    images=60,
    coverage=(0.75, 1.0),
    edge_coverage=0.75,
    width=3.0,
    bias=0.02,
    left_out=0.2,
)


def simulate(
    seed: int, images: int, separations: Sequence[float], classes: int = K
) -> tuple[list[NDArray[np.float32]], NDArray[Any]]:
    """The layers of one data set, and its labels. Other seeds are other images of the same classes."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), images)
    centres = np.random.default_rng(5).normal(size=(classes, D))
    scale = np.exp(-np.arange(D) / (D / 2))
    common = rng.normal(size=(len(y), D))
    layers = [(s * centres[y] + np.sqrt(0.5) * (common + rng.normal(size=common.shape))) * scale for s in separations]
    return [layer.astype(np.float32) for layer in layers], y


def measured(
    seed: int, images: int, separations: Sequence[float], metrics: Sequence[Metric], classes: int = K
) -> list[dict[Metric, Measured]]:
    """The scores of each layer of one data set."""
    layers, y = simulate(seed, images, separations, classes)
    return [scores_of(X, y, seed, metrics) for X in layers]


def scores_of(X: NDArray[np.float32], y: NDArray[Any], seed: int, metrics: Sequence[Metric]) -> dict[Metric, Measured]:
    """The scores of one layer."""
    layer = LayerScores(X, y, open_backend("auto"), ScoreConfig(seed=seed, sample=None))
    return {metric: METRICS[metric].compute(layer) for metric in metrics}


@dataclass(frozen=True)
class Selections:
    """What choosing among layers did over all data sets."""

    naive_bias: float
    corrected_bias: float
    corrected_coverage: float
    left_out: float


def selections(found: Sequence[list[dict[Metric, Measured]]], metric: Metric, images: int, equal: bool) -> Selections:
    """Choose a layer in each data set, and hold it against the truth, which for equal layers is one for all."""
    values = np.array([[scores[metric].value for scores in scored] for scored in found])
    truth = values.mean(axis=0)
    best = int(truth.argmax())
    top = float(truth.mean() if equal else truth[best])
    corrected, held, left_out = [], [], []
    for own, scored in zip(values, found, strict=True):
        halves = np.array([scores[metric].halves for scores in scored])[None]
        errors = np.array([[scores[metric].se for scores in scored]])
        selection = select(metric, own[None], halves, errors, K * images)
        corrected.append(selection.corrected)
        held.append(selection.corrected_interval[0] <= top <= selection.corrected_interval[1])
        left_out.append(best not in selection.tied)
    return Selections(
        naive_bias=float(values.max(axis=1).mean() - top),
        corrected_bias=float(np.mean(corrected) - top),
        corrected_coverage=float(np.mean(held)),
        left_out=float(np.mean(left_out)),
    )


def coverages(bars: Bars, workers: ProcessPoolExecutor) -> Iterator[Figure]:
    """How often intervals hold the true value."""
    low, high = bars.coverage
    found = run(workers, bars, bars.sets, [SEPARATION], list(METRICS))
    for metric in METRICS:
        own = intervals([scored[0][metric] for scored in found], metric, K * bars.images)
        yield figure(f"coverage of {metric}", own.coverage, f"{low} to {high}", low <= own.coverage <= high)
        yield from width_figures(metric, own, bars)
    unstable = run(workers, bars, bars.sets, [UNSTABLE], ["nmi"])
    own = intervals([scored[0]["nmi"] for scored in unstable], "nmi", K * bars.images)
    yield figure("coverage of nmi where k-means has two answers", own.coverage, "none: reported", None)


def width_figures(name: str, own: Intervals, bars: Bars, demanded: bool = True) -> Iterator[Figure]:
    """How wide intervals are."""
    holds = own.width <= bars.width if demanded else None
    bar = f"<= {bars.width}" if demanded else "none: reported"
    yield figure(f"width of {name}, by the true interval's", own.width, bar, holds)
    yield figure(f"intervals of {name} too wide for their error or halves", own.too_wide, "0", own.too_wide == 0)


def edges(bars: Bars, workers: ProcessPoolExecutor) -> Iterator[Figure]:
    """The same at the floor and the ceiling, of two classes and few images."""
    for images, classes in bars.edge_sizes:
        metrics = [metric for metric in METRICS if not metric.startswith("few_shot") or int(metric[9:]) < images]
        for name, separation in EDGES:
            job = partial(measured, images=images, separations=[separation], metrics=metrics, classes=classes)
            found = list(workers.map(job, range(bars.edge_sets), chunksize=4))
            for metric in metrics:
                what = f"{metric}, {classes} x {images} images, {name}"
                own = intervals([scored[0][metric] for scored in found], metric, classes * images)
                demanded = classes * images >= LEAST_IMAGES
                yield figure(
                    f"coverage of {what}",
                    own.coverage,
                    f">= {bars.edge_coverage}" if demanded else "none: reported",
                    own.coverage >= bars.edge_coverage if demanded else None,
                )
                # Percentiles of few data sets say nothing of a width.
                yield from width_figures(what, own, bars, demanded and bars.edge_sets >= LEAST_SETS)


def real(layers: Iterable[RealLayer], bars: Bars, workers: ProcessPoolExecutor) -> Iterator[Figure]:
    """The same on samples of real embeddings, stratified by class."""
    for layer in layers:
        N, classes = len(layer.y), len(np.unique(layer.y))
        size = min(SAMPLED, N // 4)
        samples = [balanced(layer.y, size, 4, seed) for seed in range(SAMPLES)]
        jobs = [
            workers.submit(scores_of, layer.X[s], layer.y[s], seed, list(METRICS)) for seed, s in enumerate(samples)
        ]
        found = [job.result() for job in jobs]
        for metric in METRICS:
            scores = [scored[metric] for scored in found]
            if any(score.interval is None for score in scores):
                continue
            # Samples of one population without replacement vary less than independent ones.
            own = intervals(scores, metric, size, spread=float(np.sqrt(1 - size / N)))
            what = f"{metric}, {layer.name}, {size} of {N} images of {classes} classes"
            yield figure(
                f"coverage of {what}", own.coverage, f">= {bars.edge_coverage}", own.coverage >= bars.edge_coverage
            )
            yield from width_figures(what, own, bars)


def choices(bars: Bars, workers: ProcessPoolExecutor) -> Iterator[Figure]:
    """The winner's curse with and without correction, and what the tied set leaves out."""
    for name, separations in (("equal", [SEPARATION] * len(UNEQUAL)), ("unequal", list(UNEQUAL))):
        found = run(workers, bars, bars.selections, separations, SELECTED)
        for metric in SELECTED:
            one = selections(found, metric, bars.images, equal=name == "equal")
            if name == "equal":
                yield figure(f"bias of naive g, equal layers, {metric}", one.naive_bias, "> 0", one.naive_bias > 0)
            # Where layers differ, half of the images choose a worse one more often than all of them do.
            bar = f"< {bars.bias}" if name == "equal" else "none: reported"
            holds = abs(one.corrected_bias) < bars.bias if name == "equal" else None
            yield figure(f"bias of corrected g, {name} layers, {metric}", one.corrected_bias, bar, holds)
            holds = one.left_out <= bars.left_out
            yield figure(
                f"tied set leaves out the best, {name} layers, {metric}",
                one.left_out,
                f"<= {bars.left_out}",
                holds,
            )
            yield figure(
                f"coverage of corrected g, {name} layers, {metric}", one.corrected_coverage, "none: reported", None
            )


def run(
    workers: ProcessPoolExecutor, bars: Bars, sets: int, separations: Sequence[float], metrics: Sequence[Metric]
) -> list[list[dict[Metric, Measured]]]:
    """The scores of many data sets."""
    job = partial(measured, images=bars.images, separations=separations, metrics=metrics)
    return list(workers.map(job, range(sets), chunksize=4))


def monotone(bars: Bars, workers: ProcessPoolExecutor) -> Iterator[Figure]:
    """More separation never lowers a mean score by more than three of its standard errors."""
    found = run(workers, bars, max(4, bars.sets // 25), (0.2, 0.4, 0.6, 0.8, 1.2, 2.0), list(METRICS))
    for metric in METRICS:
        values = np.array([[scores[metric].value for scores in scored] for scored in found])
        steps = np.diff(values, axis=1)
        errors = steps.std(axis=0) / np.sqrt(len(found))
        worst = float((steps.mean(axis=0) / np.maximum(errors, 1e-9)).min())
        yield figure(f"smallest step up of {metric} with separation, in standard errors", worst, "> -3", worst > -3)


PARTS = {"coverage": coverages, "edges": edges, "choice": choices, "monotone": monotone}


def one_thread() -> None:
    """Of each library, in a worker: there are as many workers as CPUs."""
    import torch

    torch.set_num_threads(1)
    threadpool_limits(1)


def figure(name: str, value: float, bar: str, holds: bool | None) -> Figure:
    """One line of the output."""
    return {"figure": name, "value": round(value, 4), "bar": bar, "holds": holds}


def main(
    quick: Annotated[bool, typer.Option(help="Fewer data sets, wider bars.")] = False,
    processes: Annotated[int, typer.Option(help="0: as many as there are CPUs.")] = 0,
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}, real; unset: all but real.")] = None,
    run_dir: Annotated[str | None, typer.Option("--run", help="For real: a run, whose unseen embeddings.")] = None,
    data: Annotated[str | None, typer.Option(help="For real: a folder of images, by class.")] = None,
    model: Annotated[str, typer.Option(help="Of the folder's images.")] = "resnet18",
    weights: Annotated[str | None, typer.Option(help="Of the model; unset: timm's.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Of the model; unset: its own.")] = None,
) -> None:
    """Print the figures; exit 1 where a bar is missed."""
    parts: dict[str, Callable[[Bars, ProcessPoolExecutor], Iterator[Figure]]] = dict(PARTS)
    if part and "real" in part:
        if (run_dir is None) == (data is None):
            raise typer.BadParameter("--part real needs either --run or --data")
        layers = of_run(run_dir) if run_dir else of_folder(str(data), model, weights, image_size)
        parts["real"] = partial(real, layers)
    asked, count = chosen(parts, part), processes or limits.cpus()
    with ProcessPoolExecutor(count, initializer=one_thread, mp_context=get_context("spawn")) as workers:
        # The short form has bars of its own.
        emit((line for measure in asked for line in measure(QUICK if quick else FULL, workers)), quick=False)


if __name__ == "__main__":
    typer.run(main)
