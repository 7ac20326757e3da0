"""The paper's own images and real pretrained weights: where they are, values are held to what they should be."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from raysep import pipeline
from raysep.config import ModelConfig
from raysep.config.load import load_config
from raysep.models.build import create, preprocessing_of
from raysep.models.taps import LayeredModel
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.shared_data, pytest.mark.slow, pytest.mark.xdist_group("calligraphy")]


@pytest.fixture(scope="module")
def run_dir(ray_session: None, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("calligraphy") / "run"
    config = load_config(
        str(REPOSITORY / "jobs" / "configs" / "calligraphy-mobilenet.yaml"),
        [
            f"data.source.path={shared_data / 'data' / 'calligraphy'}",
            f"models.0.pretrained={shared_data / 'weights' / 'mobilenetv2_100.safetensors'}",
            "finetune=null",
            "embed.splits=[unseen]",
            # Enough blocks for an actor on each CPU.
            "embed.shard_rows=256",
            "score.metrics=[nmi, knn_purity, nn1]",
            "score.resamples=20",
            "score.max_classes=null",
            "baselines={untrained: false, pixels: null}",
        ],
        str(place),
    )
    pipeline.run(config)
    return place


@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("mobilenetv2_100", "mobilenetv2_100.safetensors", 96),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0.safetensors", 96),
        ("vit_small_patch14_dinov2", "vit_small_patch14_dinov2.fp16.safetensors", 56),
    ],
)
def test_the_head_is_the_embedding_of_the_real_network(shared_data: Path, name: str, file: str, size: int) -> None:
    config = ModelConfig(name=name, pretrained=str(shared_data / "weights" / file), image_size=size)
    model: Any = create(config).eval()
    preprocessing = preprocessing_of(model, config)
    paths = sorted((shared_data / "data" / "calligraphy" / "unseen").glob("*/*.jpg"))[::300]
    pixels = torch.stack([preprocessing.pixels(Image.open(path).convert("RGB")) for path in paths])
    layered = LayeredModel(model, (3, size, size))
    with torch.inference_mode():
        images = preprocessing.normalize(pixels)
        own = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(layered.split(layered(images))[-1], own, rtol=0, atol=1e-5)
    assert len(paths) > 5


def test_the_middle_of_a_pretrained_network_is_best(run_dir: Path) -> None:
    rows = pq.read_table(run_dir / "scores.parquet").to_pylist()
    nmi = [row["value"] for row in rows if row["metric"] == "nmi" and row["protocol"] == "paper"]
    # An independent script found .05 to .42 with the middle stage best, layer 0 aside.
    assert len(nmi) == 6
    assert int(np.argmax(nmi)) == 3
    assert nmi[3] == pytest.approx(0.42, abs=0.03)
    assert min(nmi[1:]) == pytest.approx(0.05, abs=0.03)
    assert nmi[-1] < nmi[3] - 0.1


def test_protocol_paper_is_scikit_learn_on_the_same_rows(run_dir: Path) -> None:
    rows = pq.read_table(run_dir / "scores.parquet").to_pylist()
    score = {(row["layer"], row["metric"]): row["value"] for row in rows if row["protocol"] == "paper"}
    (shards,) = run_dir.glob("embeddings/model=*/trial=0/step=0/split=unseen")
    table = pq.read_table(sorted(shards.glob("part-*.parquet"))).sort_by("image_id")
    y = table["label"].to_numpy()
    assert len(y) == 2500
    for layer in range(6):
        column = table[f"layer_{layer:02d}"].combine_chunks()
        X = column.flatten().to_numpy().reshape(len(y), -1)
        neighbors = NearestNeighbors(n_neighbors=500).fit(X).kneighbors(return_distance=False)
        same = y[neighbors] == y[:, None]
        assert score[layer, "knn_purity"] == pytest.approx(same.sum(axis=1).mean() / 500, abs=1e-6)
        assert score[layer, "nn1"] == pytest.approx(same[:, 0].mean(), abs=1e-6)
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            clusters = KMeans(5, init="k-means++", n_init=1, random_state=42).fit(X).labels_
        assert score[layer, "nmi"] == normalized_mutual_info_score(y, clusters)
