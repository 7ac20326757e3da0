"""The smallest model of every timm family, with random weights."""

import pytest
import timm
import torch

from raysep.config import ModelConfig
from raysep.models.build import create, preprocessing_of
from raysep.models.layered import describe
from raysep.models.selection import blocks_of
from raysep.models.taps import LayeredModel

# Larger models are only described, without a forward pass, which would take longer than all other families together.
MAX_PARAMETERS = 180e6
# The smallest model per family of timm 1.0.31. Counting parameters takes minutes: only unlisted families are counted.
# Instead of timm's test models: ResNet, DINOv2-style ViT with registers, ConvNeXtV2, PoolFormer, PVTv2, MobileNet.
SMALLEST = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1",
    "byobnet": "test_byobnet",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "convnextv2_atto",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "mobilenetv2_050",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet",
    "metaformer": "poolformer_s12",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "resnet10t",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "vit_small_patch14_reg4_dinov2",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}
# Small images shorten the passes; families with a fixed input size keep it.
SIZES = {"byoanet": 256, "deepseek_vit": 126, "vision_transformer": 98}


def size_of(family: str, name: str) -> int | None:
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    return SIZES.get(family, None if fixed else 128)


def smallest(family: str) -> str:
    if family in SMALLEST:
        return SMALLEST[family]
    sizes = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    return min(sizes, key=lambda name: (sizes[name], name))


# Families without blocks: `blocks` are the stages.
WITHOUT_BLOCKS = {"vgg"}


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet50", 16), ("swin_tiny_patch4_window7_224", 12), ("efficientnet_b0", 16), ("convnextv2_tiny", 18)],
)
def test_each_residual_block_is_a_layer(name: str, count: int) -> None:
    layers = describe(ModelConfig(name=name, pretrained=False, layers=["blocks"]))
    # With the stem and the head, of which ResNet's only pools the last block.
    assert len(layers) == count + 2 - (layers[-1].same_as != "")
    assert [layer.depth for layer in layers] == sorted(layer.depth for layer in layers)
    assert layers[-1].name == "head"


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_the_blocks_of_every_family(family: str) -> None:
    name = smallest(family)
    stages, blocks = (
        describe(ModelConfig(name=name, pretrained=False, image_size=size_of(family, name), layers=[granularity]))
        for granularity in ("stages", "blocks")
    )
    assert blocks[-1].name == "head"
    assert blocks[-1].dim == stages[-1].dim
    assert blocks[0].name == stages[0].name
    with torch.device("meta"):
        named = blocks_of(timm.create_model(name))
    assert bool(named) == (family not in WITHOUT_BLOCKS)
    # The blocks before the stem's output are left out, and those that timm calls by their parts are read inside.
    names = {layer.name for layer in blocks} | {blocks[-1].same_as}
    named = named[named.index(blocks[0].name) :] if blocks[0].name in named else named
    assert [name for name in named if not any(f"{layer}.".startswith(f"{name}.") for layer in names)] == []
    # Some families have one block a stage, and CrossViT and CoaT a layer for each branch of a stage.
    assert len(blocks) >= len(stages) or family in {"crossvit", "coat", "hrnet"}


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_a_forward_pass_returns_all_described_layers(family: str) -> None:
    name = smallest(family)
    config = ModelConfig(name=name, pretrained=False, image_size=size_of(family, name))
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
    images = torch.randn(2, preprocessing.channels, *preprocessing.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        packed = layered(images)
        own = model.forward_head(model.forward_features(images), pre_logits=True)
    assert packed.shape == (2, sum(layer.dim for layer in described))
    assert torch.isfinite(packed).all()
    for layer, vectors in zip(described, layered.split(packed), strict=True):
        assert vectors.shape == (2, layer.dim)
    # The last layer is the network's own embedding.
    assert (described[-1].name, described[-1].depth) == ("head", 1.0)
    torch.testing.assert_close(layered.split(packed)[-1], own, rtol=0, atol=1e-5)
    # With a layer for each block, too.
    by_block = LayeredModel(model, (preprocessing.channels, *preprocessing.size), ["blocks"])
    with torch.inference_mode():
        of_blocks = by_block.split(by_block(images))
    assert all(vectors.shape == (2, layer.dim) for vectors, layer in zip(of_blocks, by_block.layers, strict=True))
    assert all(torch.isfinite(vectors).all() for vectors in of_blocks)
    torch.testing.assert_close(of_blocks[-1], own, rtol=0, atol=1e-5)
    # A pass that ends early gives the same vectors.
    early = LayeredModel(model, (preprocessing.channels, *preprocessing.size), [described[1].name, described[0].name])
    with torch.inference_mode():
        vectors_of = zip(early.split(early(images)), layered.split(packed), strict=False)
    for vectors, expected in vectors_of:
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
