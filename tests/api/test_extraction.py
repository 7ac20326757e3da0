"""Embeddings in this process: equal to those of a run on the same images and weights."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import raysep
from raysep.data.sources.digits import Digits
from raysep.errors import InputError
from raysep.models.checkpoints import load_checkpoint
from raysep.models.meta import read_meta
from raysep.storage.store import Storage
from tests.api.test_results import QUICKSTART

SIZE = 32


def test_embeddings_equal_those_of_a_run(tmp_path: Path) -> None:
    changes = ["models=[{name: test_vit, pretrained: false, image_size: 32, pooling: [cls, mean]}]", "finetune=null"]
    changes += ["data.max_per_class={unseen: 10}", "embed.splits=[unseen]", "embed.dtype=float32"]
    changes += ["baselines={untrained: false, pixels: null}", "score.metrics=[nmi]", "score.max_classes=null"]
    results = raysep.run(QUICKSTART, changes, run_dir=str(tmp_path), local=True)
    store = Storage(str(tmp_path))
    model = load_checkpoint(store, read_meta(store, "checkpoints/test_vit/trial=0/step=0"))
    source = Digits(Digits.Config())
    rows = {record.image_id: record for record in source.records()}
    ids = results.embeddings("test_vit", 0).ids
    contents = [source.read(rows[image_id].path, rows[image_id].row) for image_id in ids]
    found = raysep.embed(
        model.train(), [Image.open(io.BytesIO(each)) for each in contents], pooling=["cls", "mean"], image_size=SIZE
    )
    assert model.training
    assert next(model.parameters()).is_contiguous()
    layers = results.summary.models[0].curves[0].layers
    assert len(found) == len(layers)
    for layer, (name, X) in zip(layers, found.items(), strict=True):
        assert name.startswith(layer.name)
        np.testing.assert_allclose(X, results.embeddings("test_vit", layer.layer).X, rtol=1e-5, atol=1e-6)


def test_paths_arrays_and_images_are_alike(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    for position, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{position}.png")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False)
    kinds: list[list[Any]] = [
        [str(tmp_path / f"{position}.png") for position in range(4)],
        [tmp_path / f"{position}.png" for position in range(4)],
        list(pixels),
        [Image.fromarray(each) for each in pixels],
    ]
    found = [raysep.embed(model, images, image_size=SIZE, batch_size=3) for images in kinds]
    assert [*found[0]][:: len(found[0]) - 1] == ["act1", "head"]
    for other in found[1:]:
        for name, X in other.items():
            np.testing.assert_array_equal(X, found[0][name])
    assert {X.shape[0] for X in found[0].values()} == {4}
    # A named model, some of its layers, and the comparison.
    some = raysep.embed("test_vit", kinds[0], weights=False, layers=["blocks.0", "head"], image_size=SIZE)
    assert list(some) == ["blocks.0", "head"]
    assert raysep.compare(found[0], ["a", "a", "b", "b"]).best in found[0]


def test_a_model_is_left_as_it_was_and_gives_the_same_layers_again() -> None:
    model = timm.create_model("resnet18", pretrained=False)
    model.train()
    model.bn1.eval()
    images = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    first = raysep.embed(model, images, image_size=64)
    assert model.training
    assert not model.bn1.training
    for again in (
        raysep.embed(model, images, image_size=64),
        raysep.embed(model.to(memory_format=torch.channels_last), iter(images), image_size=64),
        raysep.embed(model.half(), images, image_size=64),
    ):
        assert list(again) == list(first) == ["act1", "layer1", "layer2", "layer3", "head"]
        for name, X in again.items():
            np.testing.assert_allclose(X, first[name], atol=2e-3)
    both = raysep.embed(model, images, image_size=64, pooling=["mean", "max"])
    assert list(both)[-3:] == ["layer3 (max)", "layer4 (max)", "head"]


def test_a_layer_that_is_changed_in_place_later_is_not_the_head() -> None:
    model = timm.create_model("resnet18", pretrained=False)
    images = [np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)]
    found = raysep.embed(model, images, layers=["layer4.1.bn2", "head"], image_size=64)
    assert list(found) == ["layer4.1.bn2", "head"]
    assert not np.allclose(found["layer4.1.bn2"], found["head"])


def test_images_are_read_by_position_and_of_any_mode(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    arrays = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))

    def head(images: Any) -> Any:
        return raysep.embed(model, images, layers=["head"], image_size=SIZE)["head"]

    np.testing.assert_array_equal(head(pd.Series(arrays, index=[2, 1, 0])), head(arrays))
    for mode in ("CMYK", "YCbCr", "L", "1", "P", "RGBA", "LA"):
        image = Image.fromarray(arrays[0]).convert(mode)
        suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
        image.save(tmp_path / f"{mode}.{suffix}")
        np.testing.assert_allclose(head([image]), head([tmp_path / f"{mode}.{suffix}"]), atol=0.02)


@pytest.mark.parametrize(
    ("model", "images", "options", "words"),
    [
        ("test_vit", [], {}, "images: expected at least one image, got none"),
        (torch.nn.Linear(2, 2), [np.zeros((8, 8), np.uint8)], {}, "expected the name of a timm model, .* got Linear"),
        ("test_vit", "a.png", {}, "images: expected a list of images, got one str"),
        ("test_vit", np.zeros((8, 8, 3), np.uint8), {}, "images: expected a list of images, got one ndarray"),
        ("test_vit", [np.zeros((8, 8), np.uint8)], {"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ("test_vit", [np.zeros((8, 8), np.uint8)], {"layers": ["logits"]}, "`logits` needs a model with a classifier"),
        (
            timm.create_model("vit_tiny_patch16_224", pretrained=False),
            [np.zeros((8, 8), np.uint8)],
            {},
            "fails on images of 32x32",
        ),
        ("tset_vit", [np.zeros((8, 8), np.uint8)], {}, "tset_vit"),
        ("test_vit", [np.zeros((8, 8), np.uint8)], {"layers": ["nowhere"]}, "nowhere"),
        ("test_vit", [np.zeros((8, 8))], {}, r"image 0 is ndarray of float64, shape \(8, 8\)"),
        ("test_vit", [np.zeros((3, 8, 8), np.uint8)], {}, r"shape \(3, 8, 8\)"),
        ("test_vit", [np.zeros((8, 8), np.uint8), "no/such.png"], {}, "1 of 2 images can't be read; 1: .*No such file"),
    ],
)
def test_bad_input(model: Any, images: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        raysep.embed(model, images, weights=False, image_size=SIZE, **options)
