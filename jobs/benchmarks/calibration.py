"""Do the intervals hold what they promise? Simulated embeddings of known separability, many times.

python jobs/benchmarks/calibration.py            # the figures of the README, minutes on two cores
python jobs/benchmarks/calibration.py --part coverage
python jobs/benchmarks/calibration.py --quick    # fewer data sets and wider bars, for the tests

Prints one JSON object a line: figure, value, bar, holds. Exits 1 where a bar is missed. The true value of a
score is its mean over the data sets: what it is on average for so many images of this distribution.

K classes of n images each, D features: Gaussians around K random centres, whose directions matter less and
less, so that neighbouring classes overlap. Layers share half of their noise, as layers of one network do.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from figures import Figure, chosen, emit
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from raysep.report.selection import select
from raysep.separability.engines import open_engine
from raysep.separability.layer import Layer, Settings
from raysep.separability.measures import MEASURES, Measured
from raysep.separability.names import METRICS, Metric

K, D = 5, 32
SEPARATION = 0.8
# Here k-means has two answers of about the same inertia: no half can say which one other images would give.
UNSTABLE = 0.6
# One layer is better than the others, one is close to it, the last is clearly worse.
UNEQUAL = (0.7, 0.9, 0.85, 0.75)
SELECTED: tuple[Metric, ...] = ("nmi", "knn_purity", "nn1", "few_shot_5")


@dataclass(frozen=True)
class Bars:
    """What the figures are held to, of how many data sets (coverage, selections) of how many images a class."""

    sets: int
    selections: int
    images: int
    coverage: tuple[float, float]
    bias: float
    left_out: float


FULL = Bars(sets=500, selections=150, images=100, coverage=(0.92, 0.98), bias=0.005, left_out=0.05)
# The same programs on so few sets that chance alone takes figures further from what they should be.
QUICK = Bars(sets=24, selections=24, images=60, coverage=(0.75, 1.0), bias=0.02, left_out=0.2)


def simulate(seed: int, images: int, separations: Sequence[float]) -> tuple[list[NDArray[np.float32]], NDArray[Any]]:
    """The layers of one data set, and its labels. Other seeds are other images of the same classes."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(K), images)
    centres = np.random.default_rng(5).normal(size=(K, D))
    scale = np.exp(-np.arange(D) / (D / 2))
    common = rng.normal(size=(len(y), D))
    layers = [(s * centres[y] + np.sqrt(0.5) * (common + rng.normal(size=common.shape))) * scale for s in separations]
    return [layer.astype(np.float32) for layer in layers], y


def measured(
    seed: int, images: int, separations: Sequence[float], metrics: Sequence[Metric]
) -> list[dict[Metric, Measured]]:
    """The scores of each layer of one data set."""
    layers, y = simulate(seed, images, separations)
    engine, settings = open_engine("auto"), Settings(seed=seed)
    scored = []
    for X in layers:
        layer = Layer(X, y, engine, settings)
        scored.append({metric: MEASURES[metric](layer) for metric in metrics})
    return scored


def coverage(found: Sequence[list[dict[Metric, Measured]]], metric: Metric) -> float:
    """How often a metric's interval holds its true value."""
    values = np.array([scored[0][metric].value for scored in found])
    intervals = np.array([scored[0][metric].interval for scored in found])
    truth = values.mean()
    return float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean())


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
        selection = select(own[None], halves, errors, K * images)
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
    found = run(workers, bars, bars.sets, [SEPARATION], METRICS)
    for metric in METRICS:
        value = coverage(found, metric)
        yield figure(f"coverage of {metric}", value, f"{low} to {high}", low <= value <= high)
    unstable = coverage(run(workers, bars, bars.sets, [UNSTABLE], ["nmi"]), "nmi")
    yield figure("coverage of nmi where k-means has two answers", unstable, "none: reported", None)


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
    found = run(workers, bars, max(4, bars.sets // 25), (0.2, 0.4, 0.6, 0.8, 1.2, 2.0), METRICS)
    for metric in METRICS:
        values = np.array([[scores[metric].value for scores in scored] for scored in found])
        steps = np.diff(values, axis=1)
        errors = steps.std(axis=0) / np.sqrt(len(found))
        worst = float((steps.mean(axis=0) / np.maximum(errors, 1e-9)).min())
        yield figure(f"smallest step up of {metric} with separation, in standard errors", worst, "> -3", worst > -3)


PARTS = {"coverage": coverages, "choice": choices, "monotone": monotone}


def figure(name: str, value: float, bar: str, holds: bool | None) -> Figure:
    """One line of the output."""
    return {"figure": name, "value": round(value, 4), "bar": bar, "holds": holds}


def main(
    quick: Annotated[bool, typer.Option(help="Fewer data sets, wider bars.")] = False,
    processes: Annotated[int, typer.Option(help="0: as many as there are CPUs.")] = 0,
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; unset: all.")] = None,
) -> None:
    """Print the figures; exit 1 where a bar is missed."""
    asked, count = chosen(PARTS, part), processes or os.cpu_count() or 1
    with ProcessPoolExecutor(count, initializer=threadpool_limits, initargs=(1,)) as workers:
        # The short form has bars of its own.
        emit((line for measure in asked for line in measure(QUICK if quick else FULL, workers)), quick=False)


if __name__ == "__main__":
    typer.run(main)
