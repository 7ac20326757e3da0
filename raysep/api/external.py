"""Scores and report of embeddings that another program made: `raysep score --embeddings`, without model or images."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from raysep.api.arrays import rows_of
from raysep.config import ScoreConfig
from raysep.config.load import apply, validated
from raysep.config.run import ReportConfig
from raysep.embedding.checks import checked_labels, checked_matrix
from raysep.embedding.external import External
from raysep.errors import ConfigError, InputError, RunDirError
from raysep.models.layers import Layer
from raysep.report.curves import curves_of
from raysep.report.health import health_of
from raysep.report.html import write_report
from raysep.report.schema import ModelSummary, Summary, find_curve
from raysep.report.text import findings, headline, why_not_compared
from raysep.scoring import table
from raysep.scoring.backends import open_with_fallback
from raysep.scoring.scoring import score_layer_with_fallback
from raysep.stages import run_directory
from raysep.stages.worklist import wanted_of
from raysep.storage.store import Storage
from raysep.telemetry import Telemetry


def settings_of(overrides: Sequence[str]) -> tuple[ScoreConfig, str]:
    """Scoring configuration and main metric from overrides of `score` and `report`. Raises ConfigError."""
    values: dict[str, dict[str, object]] = {"score": {}, "report": {}}
    for override in overrides:
        apply(values, override)
    if unknown := values.keys() - {"score", "report"}:
        raise ConfigError(
            [f"{name}: expected overrides of `score` and `report` only" for name in sorted(unknown)], "override"
        )
    config, report = validated(ScoreConfig, values["score"], "override"), validated(ReportConfig, values["report"], "")
    if report.metric not in config.metrics:
        raise ConfigError([f"report.metric is {report.metric}, which is not in score.metrics"], "override")
    return config, report.metric


def score_external(
    embeddings: External, name: str, config: ScoreConfig, metric: str, store: Storage, telemetry: Telemetry
) -> Summary:
    """Score the layers of given embeddings; write scores.parquet, summary.json and the report.

    Args:
        name: name of the result.
        metric: the metric whose maximum over layers is g.
        store: directory of the result. An earlier result of this function is replaced.

    Raises:
        InputError: a layer can't be scored, with its row. All layers are checked before anything is written.
        RunDirError: the directory holds a run.
    """
    if store.exists(run_directory.MANIFEST):
        raise RunDirError(f"{store.display()} holds a run: take another --run-dir")
    y, backends = checked_labels(embeddings.labels), open_with_fallback(config.backend)
    wanted = wanted_of(config)
    for layer_name in embeddings.layers:
        # One layer in memory at a time: all are checked before the first one is scored.
        checked_matrix(embeddings.read(layer_name), layer_name, len(y))
    rows: list[table.Row] = []
    with telemetry.stage("score", len(embeddings.layers), "layers") as bar:
        for index, layer_name in enumerate(embeddings.layers):
            X = checked_matrix(embeddings.read(layer_name), layer_name, len(y))
            layer = Layer(index, layer_name, index / max(1, len(embeddings.layers) - 1), X.shape[1], "none")
            scores = score_layer_with_fallback(X, y, wanted, backends, config, lambda: None)
            rows += rows_of(scores, name, layer, len(y), config.seed)
            bar.advance(1, layer_name)
    sizes = Counter(y.tolist())
    classes, curves = {"unseen": len(sizes)}, curves_of(rows)
    health = health_of(rows, classes)
    curve = find_curve(curves, config.protocols[0], metric, "unseen", 0)
    best = curve.choice if curve is not None else None
    warnings = [text for each in health if best and each.layer == best.layer for text in each.warnings]
    reason = why_not_compared(metric, {str(label): count for label, count in sizes.items()}, config.resamples)
    model = ModelSummary(
        model=name,
        timm_name="",
        trials=1,
        seeds=[config.seed],
        rotations=1,
        hyperparameters={},
        step=0,
        steps=[0],
        seen_accuracy=None,
        seen_accuracy_sd=None,
        accuracy_by_step={0: None},
        classes=classes,
        layers=len(embeddings.layers),
        best=best,
        headline=headline(name, metric, best, len(embeddings.layers), warnings, False, config.protocols[0], reason),
        curves=curves,
        health=health,
        baselines=[],
    )
    summary = Summary(
        name=name,
        headline_protocol=config.protocols[0],
        headline_metric=metric,
        unseen_classes=len(sizes),
        unseen_images=len(y),
        models=[model],
        findings=findings([model], metric),
        unreadable_images={},
        left_out=[],
    )
    table.write(store, rows)
    write_report(store, summary)
    return summary


def name_of(uri: str) -> str:
    """Name of the embeddings at a path or URI: that of the file, without its suffix."""
    name = PurePosixPath(uri.rstrip("/")).stem
    if not name:
        raise InputError(f"{uri}: expected the path of a file or directory")
    return name
