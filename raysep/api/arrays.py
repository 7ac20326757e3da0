"""Scores of embeddings in memory, without model, files or Ray: `raysep.score` and `raysep.compare`.

N rows (images, texts, sounds), D features, K classes, L layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysep.config import ScoreConfig
from raysep.config.base import repeated
from raysep.config.load import validated
from raysep.embedding.checks import checked_labels, checked_matrix
from raysep.embedding.shards import Manifest, ShardSet
from raysep.errors import ConfigError, InputError
from raysep.models.layers import Layer
from raysep.report.curves import curves_of, selection_of
from raysep.report.schema import Choice, Curve, LayerScore
from raysep.scoring import table
from raysep.scoring.backends import open_with_fallback
from raysep.scoring.registry import Measured
from raysep.scoring.scoring import Score, score_layer_with_fallback

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Interval = tuple[float, float]
COLUMNS = ("value", "low", "high", "se", "chance")


@dataclass(frozen=True, eq=False)
class Scores(Mapping[str, Measured]):
    """The scores of one layer, by metric.

    Attributes:
        n: number of rows N.
        classes: number of classes K.
    """

    measured: dict[str, Measured]
    n: int
    classes: int

    def __getitem__(self, metric: str) -> Measured:
        return self.measured[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.measured)

    def __len__(self) -> int:
        return len(self.measured)

    def to_frame(self) -> "pd.DataFrame":
        """A row per metric: value, 95 % interval, standard error, chance level."""
        import pandas as pd

        rows = [[m.value, *(m.interval or (None, None)), m.se, m.shuffled] for m in self.measured.values()]
        return pd.DataFrame(rows, columns=COLUMNS, index=pd.Index(self.measured, name="metric"), dtype=float)

    def _repr_html_(self) -> str:
        title = f"<p>{self.n} rows of {self.classes} classes</p>"
        return title + str(self.to_frame().to_html(float_format="{:.3f}".format, na_rep="-"))


@dataclass(frozen=True, eq=False)
class Comparison:
    """The comparison of several layers on the same rows.

    Attributes:
        metric: the metric that is compared.
        curve: scores of the layers and the choice of the best one, as in the summary of a run.
    """

    metric: str
    curve: Curve
    _rows: list[table.Row]

    @property
    def best(self) -> str:
        """Name of the layer with the highest score."""
        return self._choice.name

    @property
    def g(self) -> float:
        """The highest score; biased upwards, since the same rows select and score the layer."""
        return self._choice.g

    @property
    def corrected_g(self) -> float | None:
        """g without selection bias: one half of the rows selects the layer, the other scores it; None without."""
        return self._choice.corrected_g

    @property
    def interval(self) -> Interval | None:
        """95 % confidence interval of `corrected_g`, over rows."""
        return self._choice.corrected_interval

    @property
    def tied(self) -> list[str]:
        """Names of the layers that are not significantly worse than the best one at 95 %, with it."""
        tied = self._choice.tied_layers or []
        return [layer.name for layer in self.curve.layers if layer.layer in tied]

    @property
    def p_best(self) -> dict[str, float | None]:
        """Probability of each layer to be the best under resampling of the rows, by name."""
        return {layer.name: layer.p_best for layer in self.curve.layers}

    def loss(self, layer: str | None = None) -> tuple[float, Interval]:
        """`corrected_g` minus the score of a layer, and its 95 % interval.

        Args:
            layer: name of a layer; unset: the last one.

        Raises:
            InputError: no such layer, or the layers could not be compared.
        """
        names = [score.name for score in self.curve.layers]
        if layer is not None and layer not in names:
            raise InputError(f"there is no layer {layer!r}; the layers are {', '.join(names)}")
        position = len(names) - 1 if layer is None else names.index(layer)
        groups = [[row] for row in self._rows]
        selection, compared = selection_of(groups, list(range(len(groups))), position, self.metric)
        if selection is None or position not in compared:
            raise InputError(f"{names[position]} can't be compared: it has no scores on the halves of the rows")
        return selection.loss, selection.loss_interval

    def to_frame(self) -> "pd.DataFrame":
        """A row per layer: value, 95 % interval, standard error, chance level, probability of being best, tied."""
        import pandas as pd

        def cells(score: LayerScore) -> list[Any]:
            interval = score.interval or (None, None)
            return [score.mean, *interval, score.se, score.shuffled, score.p_best, score.tied]

        names = pd.Index([score.name for score in self.curve.layers], name="layer")
        return pd.DataFrame(map(cells, self.curve.layers), columns=[*COLUMNS, "p_best", "tied"], index=names)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Plot the scores of the layers, with their intervals and chance levels; returns the axes."""
        from matplotlib import pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        known = [score for score in self.curve.layers if score.mean is not None]
        x = [self.curve.layers.index(score) for score in known]
        ax.plot(x, [score.mean or 0.0 for score in known], "-o", label=self.metric)
        bands = [score.interval or (score.mean or 0.0, score.mean or 0.0) for score in known]
        ax.fill_between(x, [b[0] for b in bands], [b[1] for b in bands], alpha=0.2)
        ax.plot(x, [np.nan if score.shuffled is None else score.shuffled for score in known], ":", label="chance")
        ax.set_xticks(range(len(self.curve.layers)), [score.name for score in self.curve.layers], rotation=45)
        ax.set_ylabel(self.metric)
        ax.legend()
        return ax

    def __str__(self) -> str:
        if self.curve.choice is None:
            return f"no layer has a defined {self.metric}"
        text = f"best layer: {self.best}, with {self.metric} {self.g:.3f}"
        if self.corrected_g is not None and self.interval is not None:
            low, high = self.interval
            text += f", or {self.corrected_g:.3f} after correction for selection bias "
            text += f"(95 % interval {low:.3f} to {high:.3f})"
            text += f"; tied at 95 %: {', '.join(name for name in self.tied if name != self.best) or 'none'}"
        return text

    def _repr_html_(self) -> str:
        frame = self.to_frame().to_html(float_format="{:.3f}".format, na_rep="-")
        return f"<p>{escape(str(self))}</p>{frame}"

    @property
    def _choice(self) -> Choice:
        if self.curve.choice is None:
            raise InputError(f"no layer has a defined {self.metric}: are there two rows or more of each class?")
        return self.curve.choice


def score(
    X: Any, y: Any, metrics: Sequence[str] | None = None, *, resamples: int = 200, seed: int = 42, backend: str = "auto"
) -> Scores:
    """Score how well the embeddings of one layer keep classes apart.

    Args:
        X: (N, D) embeddings: NumPy, torch, or anything that NumPy converts.
        y: (N,) labels: text, integers or booleans.
        metrics: names of metrics; unset: all of this package.
        resamples: number of half-samples for the intervals; 0: no intervals.
        seed: seed of k-means, half-samples and subsamples.
        backend: `auto`, `torch`, `sklearn` or `cuml`.

    Raises:
        InputError: X or y can't be scored, with the row; or an unknown metric or backend.
    """
    config = _config(metrics, resamples, seed, backend)
    labels = checked_labels(y)
    scores = _scored({"X": checked_matrix(X, "X", len(labels))}, labels, config)["X"]
    return Scores({each.metric: each.measured for each in scores}, len(labels), len(np.unique(labels)))


def compare(
    layers: Mapping[str, Any],
    y: Any,
    metric: str = "nmi",
    *,
    resamples: int = 200,
    seed: int = 42,
    backend: str = "auto",
) -> Comparison:
    """Compare layers: the best one, its score without selection bias, and the layers tied with it.

    The numbers are those of `raysep run` on the same embeddings in the same order.

    Args:
        layers: (N, D) embeddings of each layer, by name, from the first to the last; D may differ.
        y, resamples, seed, backend: as for `score`.
        metric: name of the metric to compare.

    Raises:
        InputError: as `score`; or there is no layer.
    """
    config = _config([metric], resamples, seed, backend)
    labels = checked_labels(y)
    if not isinstance(layers, Mapping):
        raise InputError(f"layers: expected a dictionary of arrays by name, got {type(layers).__name__}")
    if not layers:
        raise InputError("layers: expected at least one layer, got none")
    if twice := repeated(map(str, layers)):
        raise InputError(f"layers: expected different names, got {', '.join(twice)} more than once")
    matrices = {str(name): checked_matrix(X, str(name), len(labels)) for name, X in layers.items()}
    scored = _scored(matrices, labels, config)
    rows = []
    for index, (name, X) in enumerate(matrices.items()):
        rows += rows_of(
            scored[name],
            "arrays",
            Layer(index, name, index / max(1, len(matrices) - 1), X.shape[1], "none"),
            len(labels),
            seed,
        )
    (curve,) = curves_of(rows)
    return Comparison(metric, curve, rows)


def rows_of(scores: Sequence[Score], name: str, layer: Layer, n: int, seed: int) -> list[table.Row]:
    """Scores of n rows of embeddings that no run made, as rows of the table of scores, under the model id `name`."""
    manifest = Manifest("", n, [], [layer], {}, "float32", "", {})
    return table.Task(ShardSet(name, 0, 0, "unseen"), manifest, layer, seed, "", ()).rows(scores)


def _config(metrics: Sequence[str] | None, resamples: int, seed: int, backend: str) -> ScoreConfig:
    values: dict[str, Any] = {"resamples": resamples, "seed": seed, "backend": backend}
    if metrics is not None:
        values["metrics"] = [metrics] if isinstance(metrics, str) else list(metrics)
    try:
        return validated(ScoreConfig, values, "arguments")
    except ConfigError as error:
        raise InputError("; ".join(error.problems)) from None


def _scored(
    matrices: Mapping[str, NDArray[np.float32]], y: NDArray[Any], config: ScoreConfig
) -> dict[str, list[Score]]:
    wanted = [("default", metric) for metric in config.metrics]
    backends = open_with_fallback(config.backend)
    return {
        name: score_layer_with_fallback(X.copy(), y, wanted, backends, config, lambda: None)
        for name, X in matrices.items()
    }
