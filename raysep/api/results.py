"""Runs from Python: `raysep.run` starts or resumes one, `raysep.open` reads a finished one."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysep.config import RunConfig
from raysep.config.load import build_with, read_yaml
from raysep.data import splits
from raysep.embedding.shards import MANIFEST, ShardSet, read_layer, read_manifest, shard_set_at
from raysep.errors import ConfigError, InputError, RunDirError
from raysep.models.layers import Layer
from raysep.report.schema import FILE, Summary
from raysep.scoring import table
from raysep.stages import run_directory
from raysep.stages.worklist import role_of
from raysep.storage.store import Storage

if TYPE_CHECKING:
    import pandas as pd


class Embeddings(NamedTuple):
    """The embeddings of one layer, sorted by image_id.

    Attributes:
        X: (N, D) float32.
        y: (N,) class names.
        ids: (N,) image ids.
    """

    X: NDArray[np.float32]
    y: NDArray[np.str_]
    ids: list[str]


@dataclass(frozen=True)
class Results:
    """The results of a run. Reads files only when they are asked for.

    Attributes:
        run_dir: directory or URI of the run.
        summary: content of `summary.json`.
    """

    run_dir: str
    summary: Summary

    def scores(self) -> "pd.DataFrame":
        """A row per score, as in `scores.parquet`, without the scores of the halves."""
        import pandas as pd

        store = Storage(self.run_dir)
        if not store.exists(table.FILE):
            raise RunDirError(f"{store.display()} has no {table.FILE}")
        rows = table.read(store)
        return pd.DataFrame([{name: row[name] for name in row if name not in ("halves", "key")} for row in rows])

    def embeddings(
        self, model: str, layer: str | int, *, split: str = "unseen", step: int | None = None, trial: int | None = None
    ) -> Embeddings:
        """Read the embeddings of one layer.

        Args:
            model: id of a model.
            layer: name or number of the layer; the number if its name is that of several poolings.
            split: `unseen`, `seen`, or the name of a domain.
            step: training step; unset: the last one.
            trial: number of the trial; unset: the first one with this step.

        Raises:
            InputError: there is no such model, split, step, trial or layer; the message lists those that there are.
        """
        store = Storage(self.run_dir)
        shard_set = self._shard_set(store, model, split, step, trial)
        manifest = read_manifest(store, shard_set)
        if manifest is None:
            raise InputError(
                f"{store.display(shard_set.directory)} is damaged: `raysep verify {self.run_dir}` says how"
            )
        ids, _, X = read_layer(store, shard_set, manifest, _layer_of(layer, manifest.layers).index)
        rows = splits.from_parquet(store.read_bytes(run_directory.SPLITS))
        rows = rows.filter(pc.equal(rows["role"], role_of(split)))
        class_of = dict(zip(rows["image_id"].to_pylist(), rows["class_name"].to_pylist(), strict=True))
        return Embeddings(X, np.array([class_of[image_id] for image_id in ids]), ids)

    def _shard_set(self, store: Storage, model: str, split: str, step: int | None, trial: int | None) -> ShardSet:
        candidates = [shard_set_at(path) for path in store.files("embeddings", name=MANIFEST)]
        if not candidates:
            raise RunDirError(f"{store.display()} has no embeddings")
        wanted = {"model_id": model, "split": split, "step": step, "trial": trial}
        for name, value in wanted.items():
            if value is None:
                continue
            there = sorted({getattr(each, name) for each in candidates})
            if value not in there:
                what = name.removesuffix("_id")
                raise InputError(f"no embeddings of {what} {value!r}: expected one of {', '.join(map(str, there))}")
            candidates = [each for each in candidates if getattr(each, name) == value]
        return max(candidates, key=lambda each: (each.step, -each.trial))

    def _repr_html_(self) -> str:
        from html import escape

        lines = [model.headline for model in self.summary.models] + self.summary.left_out
        return "".join(f"<p>{escape(line)}</p>" for line in lines)


def run(
    config: "RunConfig | Mapping[str, Any] | str | PathLike[str]",
    overrides: Sequence[str] = (),
    *,
    run_dir: "str | PathLike[str] | None" = None,
    local: bool = False,
) -> Results:
    """Start or resume a run, as `raysep run`.

    Args:
        config: path of a YAML file, its keys and values, or a `RunConfig`.
        overrides: changes of keys, as in `finetune.steps=100`; not of a `RunConfig`, whose values depend on others.
        run_dir: directory or URI of the run, instead of the one of the configuration.
        local: run in this process, without Ray.

    Returns:
        The results. Models that failed are absent from the summary's `models`, and named in its `left_out`.

    Raises:
        ConfigError: with all problems of the configuration.
        RaysepError: as `pipeline.run`.
    """
    from raysep import pipeline
    from raysep.stages.executor import open_executor

    source = "configuration"
    if isinstance(config, RunConfig):
        if overrides:
            raise ConfigError(["overrides: expected none of a RunConfig: use a file, or keys and values"])
        values: dict[str, Any] = config.model_dump(mode="json")
    elif isinstance(config, Mapping):
        values = deepcopy(dict(config))
    else:
        source = str(Path(fspath(config)).expanduser())
        values = read_yaml(source)
    resolved = build_with(values, overrides, None if run_dir is None else fspath(run_dir), source)
    summary = pipeline.run(resolved, config_name=source, executor=open_executor("local" if local else "ray"))
    assert summary is not None
    return Results(Storage(resolved.run_dir).full_uri, summary)


def open(run_dir: "str | PathLike[str]") -> Results:  # noqa: A001
    """Read the results of a finished run.

    Args:
        run_dir: directory or URI of a run.

    Raises:
        RunDirError: it holds no finished run, or one of another format.
    """
    store = Storage(fspath(run_dir))
    try:
        run_directory.check_format(store)
        content = store.read_bytes(FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirError(
            f"{store.display()} has no {FILE}: expected the directory of a finished `raysep run`"
        ) from None
    with store.understood(FILE):
        return Results(store.full_uri, Summary.model_validate_json(content))


def _layer_of(wanted: str | int, layers: Sequence[Layer]) -> Layer:
    found = [layer for layer in layers if wanted in (layer.index, layer.name)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{layer.index} ({layer.name}, {layer.pooling})" for layer in layers)
    what = "no" if not found else "several"
    raise InputError(f"{what} layers {wanted!r}: expected the number or name of one of {listed}")
