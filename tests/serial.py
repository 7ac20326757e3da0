"""A small run for the local executor, and its results."""

from pathlib import Path
from typing import Any

from raysep.config import RunConfig
from raysep.config.load import build_config
from raysep.embedding import shards
from raysep.scoring import table
from raysep.storage.store import Storage
from tests.conftest import TINY_CNN, write_images


def configuration(tmp_path: Path) -> RunConfig:
    """Of a small run, with sixteen images that are written there."""
    write_images(tmp_path / "images", dict.fromkeys("abcd", 4))
    return build_config(
        {
            "data": {
                "source": {"kind": "image_folder", "path": str(tmp_path / "images")},
                "split": {"unseen": ["c", "d"], "test_fraction": 0.25},
            },
            "models": [{**TINY_CNN, "layers": ["act1", "layer4"]}],
            "finetune": {"steps": 2, "evaluate_at": [2], "batch_size": 4},
            "embed": {"shard_rows": 5, "splits": ["unseen"]},
            "score": {"metrics": ["nn1"], "resamples": 0},
            "report": {"metric": "nn1"},
            "baselines": {"untrained": False, "pixels": None},
            "monitoring": {"port": None},
        }
    )


def results(run: Storage) -> tuple[list[Any], dict[str, bytes]]:
    """The scores, and every layer of every shard set."""
    rows = [{**row, "seconds": 0} for row in table.read(run)]
    layers = {}
    for path in run.files("embeddings", name=shards.MANIFEST):
        shard_set = shards.shard_set_at(path)
        manifest = shards.read_manifest(run, shard_set)
        assert manifest is not None
        for layer in manifest.layers:
            layers[f"{path} {layer.index}"] = shards.read_layer(run, shard_set, manifest, layer.index)[2].tobytes()
    return rows, layers
