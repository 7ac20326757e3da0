import pytest
import torch

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.build import create, preprocessing_of
from raysep.models.layered import describe, open_layers
from raysep.models.meta import PIXELS
from raysep.stages.validation import check_models
from tests.conftest import TINY_VIT

CONFIG = ModelConfig(
    name=PIXELS,
    id="test_vit--pixels",
    pretrained=False,
    image_size=32,
    kwargs={"of": TINY_VIT["name"], "kwargs": TINY_VIT["kwargs"], "edge": 8},
)


def test_pixels_are_the_unnormalised_input_of_the_network() -> None:
    network = ModelConfig(**TINY_VIT)
    default, pixels = preprocessing_of(create(network), network), preprocessing_of(create(CONFIG), CONFIG)
    assert (pixels.size, pixels.interpolation, pixels.crop_pct) == (
        default.size,
        default.interpolation,
        default.crop_pct,
    )
    assert pixels.mean == (0, 0, 0)
    assert pixels.normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).max() == 1  # type: ignore[unreachable]


def test_only_large_images_are_downsampled() -> None:
    x = torch.rand(2, 3, 32, 32)
    layered = open_layers(create(CONFIG), (3, 32, 32), CONFIG)
    assert [(layer.name, layer.dim) for layer in layered.layers] == [("pixels", 3 * 8 * 8)]
    (vectors,) = layered.split(layered(x))
    assert vectors[0, 0] == pytest.approx(x[0, 0, :4, :4].mean().item(), abs=1e-6)
    small = open_layers(create(CONFIG), (3, 4, 4), CONFIG)
    torch.testing.assert_close(small(x[:, :, :4, :4]), x[:, :, :4, :4].flatten(1))
    assert describe(CONFIG)[0].dim == 192


def test_the_baseline_cannot_be_configured_as_a_model() -> None:
    with pytest.raises(
        ConfigError, match=r"raysep:pixels is a baseline that raysep adds itself: see baselines\.pixels"
    ):
        check_models([ModelConfig(name=PIXELS)])
