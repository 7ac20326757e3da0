"""The layers of real embeddings, for benchmarks: of a run's shard sets, or of a folder and a timm model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysep.config.load import config_of_options
from raysep.data.images import load_batch
from raysep.data.splits import UNSEEN, select
from raysep.embedding.shards import MANIFEST, read_layer, read_manifest, shard_set_at
from raysep.models.build import create, preprocessing_of
from raysep.models.layered import open_layers
from raysep.stages.validation import check_images
from raysep.storage.store import Storage

BATCH = 64


@dataclass(frozen=True)
class RealLayer:
    """Embeddings of many images.

    Attributes:
        name: of the layer.
        X: (N, D).
        y: (N,) labels.
    """

    name: str
    X: NDArray[np.float32]
    y: NDArray[np.integer[Any]]


def of_run(run_dir: str) -> Iterator[RealLayer]:
    """Every layer of every shard set of unseen images of a run, without its baselines."""
    run = Storage(run_dir)
    for path in run.files("embeddings", name=MANIFEST):
        shard_set = shard_set_at(path)
        manifest = read_manifest(run, shard_set)
        if manifest is None or shard_set.split != UNSEEN or "--" in shard_set.model_id:
            continue
        for layer in manifest.layers:
            _, y, X = read_layer(run, shard_set, manifest, layer.index)
            yield RealLayer(f"{shard_set.model_id} {layer.name}", X, y)


def of_folder(data: str, model: str, weights: str | None, image_size: int | None) -> Iterator[RealLayer]:
    """Every layer of a model, of the unseen images of a folder."""
    overrides = [] if image_size is None else [f"models.0.image_size={image_size}"]
    config = config_of_options(model, weights, data, None, overrides)
    readers, split = check_images(config.data)
    network = create(config.models[0]).eval()
    preprocessing = preprocessing_of(network, config.models[0])
    layered = open_layers(network, (preprocessing.channels, *preprocessing.size), config.models[0]).eval()
    rows = select(split, UNSEEN)
    places = list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True))
    good: list[int] = []
    packed = []
    for first in range(0, len(places), BATCH):
        pixels, some, _ = load_batch(readers[UNSEEN], places[first : first + BATCH], preprocessing)
        good += [first + position for position in some]
        with torch.inference_mode():
            packed.append(layered(preprocessing.normalize(pixels)))
    y = rows["label"].to_numpy()[good]
    for layer, X in zip(layered.layers, layered.split(torch.cat(packed)), strict=True):
        yield RealLayer(f"{model} {layer.name}", X.numpy(), y)
