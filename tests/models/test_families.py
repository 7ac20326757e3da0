"""Every model family of timm, by its smallest model with random weights."""

import pytest
import timm
import torch

from raysep.config import ModelConfig
from raysep.models.build import create, preprocessing_of
from raysep.models.taps import LayeredModel, describe

# Above this a forward pass on two cores takes longer than the other families together; they are described
# by their shapes, with the same code.
MAX_PARAMETERS = 120e6
NAMED = {
    "resnet": "resnet10t",
    "vision_transformer": "vit_small_patch14_reg4_dinov2",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "convnext": "convnextv2_atto",
    "metaformer": "poolformer_s12",
    "pvt_v2": "pvt_v2_b0",
    "efficientnet": "mobilenetv2_050",
}
SIZES = {"vision_transformer": 98}


def smallest(family: str) -> str:
    if family in NAMED:
        return NAMED[family]
    sizes = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    return min(sizes, key=lambda name: (sizes[name], name))


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_one_pass_gives_the_described_vectors_of_every_layer(family: str):
    config = ModelConfig(name=smallest(family), pretrained=False, image_size=SIZES.get(family))
    described = describe(config)
    assert len(described) >= 3
    assert [layer.index for layer in described] == list(range(len(described)))
    assert len({layer.name for layer in described}) == len(described)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in create(config).parameters())
    if count > MAX_PARAMETERS:
        return
    model = create(config).eval()
    preprocessing = preprocessing_of(model, config)
    layered = LayeredModel(model, (preprocessing.channels, *preprocessing.size))
    assert layered.layers == described
    with torch.inference_mode():
        one = layered(
            torch.randn(2, preprocessing.channels, *preprocessing.size, generator=torch.Generator().manual_seed(0))
        )
    assert one.shape == (2, sum(layer.dim for layer in described))
    assert torch.isfinite(one).all()
    for layer, vectors in zip(described, layered.split(one), strict=True):
        assert vectors.shape == (2, layer.dim)
