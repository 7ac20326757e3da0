"""`kwargs: {in_chans: 1}`: grey images from the decoder to the report."""

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from raysep import pipeline
from raysep.config import ModelConfig
from raysep.config.load import build_config
from raysep.data.images import decode
from raysep.models.build import create, preprocessing_of
from raysep.models.layered import describe
from raysep.models.meta import PIXELS, read_meta
from raysep.stages.executor import LocalExecutor
from raysep.stages.validation import check_models
from raysep.storage.store import Storage
from tests.conftest import TINY_CNN, TINY_VIT

GREY_CNN = ModelConfig(**{**TINY_CNN, "kwargs": {"in_chans": 1, "drop_path_rate": 0.1}})


def test_grey_preprocessing_averages_mean_and_deviation() -> None:
    rgb = preprocessing_of(create(ModelConfig(**TINY_CNN)), ModelConfig(**TINY_CNN))
    grey = preprocessing_of(create(GREY_CNN), GREY_CNN)
    assert (rgb.channels, grey.channels) == (3, 1)
    assert grey.mean == pytest.approx([sum(rgb.mean) / 3])
    assert grey.std == pytest.approx([sum(rgb.std) / 3])
    assert (grey.size, grey.interpolation, grey.crop_pct) == (rgb.size, rgb.interpolation, rgb.crop_pct)


@pytest.mark.parametrize(
    ("overlay", "channels", "mean"),
    [
        ({"mean": [0.5]}, 1, (0.5,)),
        ({"mean": [0.5]}, 3, (0.5, 0.5, 0.5)),
        ({"mean": [0.1, 0.2, 0.6]}, 1, (0.3,)),
        ({"mean": [0.1, 0.2, 0.6]}, 3, (0.1, 0.2, 0.6)),
    ],
)
def test_configured_mean_and_deviation(overlay: dict[str, list[float]], channels: int, mean: tuple[float, ...]) -> None:
    kwargs = {"in_chans": channels, "pretrained_cfg_overlay": {**overlay, "interpolation": "nearest"}}
    config = ModelConfig(name="test_resnet", pretrained=False, kwargs=kwargs)
    preprocessing = preprocessing_of(create(config), config)
    assert preprocessing.mean == pytest.approx(mean)
    assert preprocessing.interpolation == "nearest"


def test_a_grey_network_equals_an_rgb_network_on_grey_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth")
    # With equal means and deviations of the channels, summing the first convolution is exact.
    overlay = {"mean": [0.4], "std": [0.2]}
    configs = [
        ModelConfig(
            name="test_resnet",
            pretrained=str(tmp_path / "w.pth"),
            image_size=32,
            kwargs={"in_chans": channels, "pretrained_cfg_overlay": overlay},
        )
        for channels in (1, 3)
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    outputs = []
    for config in configs:
        model = create(config).eval()
        preprocessing = preprocessing_of(model, config)
        image = preprocessing.pixels(decode(content.getvalue(), preprocessing.channels))
        assert image.shape == (preprocessing.channels, 32, 32)
        with torch.no_grad():
            outputs.append(model(preprocessing.normalize(image[None])))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_nfnet"])
def test_grey_networks_of_every_kind(name: str) -> None:
    config = ModelConfig(name=name, pretrained=False, kwargs={"in_chans": 1})
    assert check_models([config], trained=True) == []
    rgb = describe(config.model_copy(update={"kwargs": {}}))
    assert describe(config) == rgb


def test_the_pixel_baseline_is_grey_as_well() -> None:
    of = {"of": GREY_CNN.name, "kwargs": GREY_CNN.kwargs, "edge": 8}
    pixels = ModelConfig(name=PIXELS, id="x--pixels", pretrained=False, image_size=32, kwargs=of)
    assert describe(pixels)[0].dim == 8 * 8
    assert preprocessing_of(create(pixels), pixels).mean == (0.0,)


def test_a_whole_run_on_grey_images(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "rgb.pth"
    torch.save({"model": timm.create_model("test_vit", patch_size=8, depth=3, img_size=32).state_dict()}, weights)
    kwargs = {"in_chans": 1, "drop_path_rate": 0.1}
    config = build_config(
        {
            "run_dir": str(tmp_path / "run"),
            "data": {
                "source": {"kind": "image_folder", "path": str(tree)},
                "split": {"unseen": ["d", "e"], "test_fraction": 0.5},
            },
            "models": [
                {**TINY_CNN, "kwargs": kwargs},
                {**TINY_VIT, "pretrained": str(weights), "kwargs": {**TINY_VIT["kwargs"], **kwargs}},  # type: ignore[dict-item]
            ],
            "finetune": {"steps": 2, "batch_size": 8, "augment": {"rotation_degrees": 10}},
            "baselines": {"pixels": 8},
            "score": {"metrics": ["nmi"], "resamples": 20},
        }
    )
    summary = pipeline.run(config, executor=LocalExecutor())
    assert [model.model for model in summary.models] == ["test_resnet", "test_vit"]
    assert all({baseline.kind for baseline in model.baselines} == {"untrained", "pixels"} for model in summary.models)
    store = Storage(config.run_dir)
    for path in sorted(tmp_path.glob("run/checkpoints/*/trial=*/step=*")):
        meta = read_meta(store, str(path.relative_to(tmp_path / "run")))
        assert (meta.preprocessing.channels, len(meta.preprocessing.mean)) == (1, 1)
