from typing import Any

import pytest
import timm
import torch
from torch import nn

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.layered import describe
from raysep.models.taps import LayeredModel


def vit(**arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=32, patch_size=8, depth=3, **arguments).eval()


X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def layers_of(model: nn.Module, x: torch.Tensor = X, **options: Any) -> dict[str, torch.Tensor]:
    layered = LayeredModel(model, (3, *x.shape[2:]), **options)
    with torch.no_grad():
        return dict(zip([layer.name for layer in layered.layers], layered.split(layered(x)), strict=True))


def test_a_vit_by_hand() -> None:
    model = vit()
    found = layers_of(model)
    assert list(found) == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    with torch.no_grad():
        torch.testing.assert_close(found["head"], model.forward_head(model.forward_features(X), pre_logits=True))
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(X))))
        torch.testing.assert_close(found["stem"], tokens[:, 0])
        for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
            tokens = block(tokens)
            torch.testing.assert_close(found[f"blocks.{index}"], tokens[:, 0])
        mean = layers_of(model, pooling=["mean"])
        torch.testing.assert_close(mean["blocks.2"], tokens[:, 1:].mean(dim=1))
        torch.testing.assert_close(layers_of(model, pooling=["token0"])["blocks.2"], tokens[:, 0])


def test_a_resnet_by_hand_starts_at_its_stem() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    found = layers_of(model)
    with torch.no_grad():
        x = model.act1(model.bn1(model.conv1(X)))
        torch.testing.assert_close(found["act1"], x.mean(dim=(2, 3)))
        x = model.maxpool(x)
        # The head only pools layer4, which is left out.
        for module, name in (("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3"), ("layer4", "head")):
            x = getattr(model, module)(x)
            torch.testing.assert_close(found[name], x.mean(dim=(2, 3)))
    assert len(found) == 5
    layers = LayeredModel(model, (3, 32, 32), pooling=["mean", "max"]).layers
    assert [(layer.name, layer.pooling, layer.same_as, layer.depth) for layer in layers[-3:]] == [
        ("layer3", "max", "", 0.6),
        ("layer4", "max", "", 0.8),
        ("head", "own", "layer4", 1.0),
    ]


def test_register_tokens_are_neither_class_tokens_nor_patches() -> None:
    model = vit(class_token=False, reg_tokens=2, pos_embed="learn", global_pool="avg")
    found = layers_of(model)
    with torch.no_grad():
        final = model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(X))))
    torch.testing.assert_close(found["blocks.2"], final[:, 2:].mean(dim=1))
    with pytest.raises(ConfigError, match="no class token"):
        LayeredModel(model, (3, 32, 32), pooling=["cls"])


def test_swin_is_pooled_over_positions_with_channels_last() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=24,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        num_classes=0,
    ).eval()
    x = torch.rand(2, 3, 64, 64)
    found = layers_of(model, x)
    with torch.no_grad():
        stem = model.patch_embed(x)
    assert stem.shape == (2, 16, 16, 24)
    torch.testing.assert_close(found["stem"], stem.mean(dim=(1, 2)))
    torch.testing.assert_close(layers_of(model, x, pooling=["token0"])["stem"], stem[:, 0, 0])


def test_hooks_of_named_modules_are_removed() -> None:
    model = vit()
    found = layers_of(model, layers=["blocks.*.mlp.act", "stem"])
    assert list(found) == ["stem", "blocks.0.mlp.act", "blocks.1.mlp.act", "blocks.2.mlp.act"]
    seen = []
    handle = model.blocks[1].mlp.act.register_forward_hook(lambda m, a, output: seen.append(output))
    with torch.no_grad():
        model.forward_features(X)
    handle.remove()
    torch.testing.assert_close(found["blocks.1.mlp.act"], seen[0][:, 0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_max_pooling_skips_prefix_tokens() -> None:
    model = vit()
    with torch.no_grad():
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(X))))
    torch.testing.assert_close(layers_of(model, pooling=["max"])["stem"], tokens[:, 1:].amax(dim=1))
    cnn = timm.create_model("test_resnet", num_classes=0).eval()
    with torch.no_grad():
        stem = cnn.act1(cnn.bn1(cnn.conv1(X)))
    torch.testing.assert_close(layers_of(cnn, pooling=["max"])["act1"], stem.amax(dim=(2, 3)))


def test_each_pooling_is_a_layer() -> None:
    model = vit()
    layered = LayeredModel(model, (3, 32, 32), ["blocks.*"], ["auto", "cls", "mean"])
    assert [(layer.name, layer.pooling) for layer in layered.layers[:3]] == [
        ("blocks.0", "cls"),
        ("blocks.0", "mean"),
        ("blocks.1", "cls"),
    ]
    assert [layer.depth for layer in layered.layers] == [0, 0, 0.5, 0.5, 1, 1]
    with torch.no_grad():
        vectors = layered.split(layered(X))
    torch.testing.assert_close(vectors[1], layers_of(model, pooling=["mean"])["blocks.0"])


def test_modules_inside_a_block_come_before_it() -> None:
    model = vit()
    layered = LayeredModel(model, (3, 32, 32), ["stages", "blocks.*.mlp.act"])
    blocks = [name for index in range(3) for name in (f"blocks.{index}.mlp.act", f"blocks.{index}")]
    assert [layer.name for layer in layered.layers] == ["stem", *blocks, "head"]
    assert [layer.depth for layer in layered.layers] == pytest.approx([index / 7 for index in range(8)])
    with torch.no_grad():
        tokens = model.blocks(model.norm_pre(model._pos_embed(model.patch_embed(X))))
        torch.testing.assert_close(layered.split(layered(X))[-2], tokens[:, 0])


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        # Patterns in any order.
        ("test_vit", ["blocks.5.mlp.act", "blocks.5", "blocks.4"], ["blocks.4", "blocks.5.mlp.act", "blocks.5"]),
        # Only modules inside the last block.
        (
            "test_vit",
            ["blocks.5.mlp.*"],
            [f"blocks.5.mlp.{part}" for part in ("fc1", "act", "drop1", "norm", "fc2", "drop2")],
        ),
        # Before the stem (the input of the first block) and after the last block.
        (
            "test_vit",
            ["patch_embed.proj", "stem", "blocks.5", "norm"],
            ["patch_embed.proj", "stem", "blocks.5", "norm"],
        ),
        ("test_vit", ["norm", "head_drop", "blocks.5"], ["blocks.5", "norm", "head_drop"]),
        ("test_resnet", ["layer4", "layer4.0.conv1", "global_pool"], ["layer4.0.conv1", "layer4", "global_pool"]),
        ("test_efficientnet", ["conv_head", "blocks.4", "blocks.4.*"], ["blocks.4.0", "blocks.4", "conv_head"]),
        (
            "test_convnext",
            ["head.norm", "stages.3", "stages.3.blocks.0"],
            ["stages.3.blocks.0", "stages.3", "head.norm"],
        ),
        # A ModuleList, layer names that differ from module names, branches, layer names without a module.
        (
            "twins_svt_small",
            ["block.3", "blocks.3.*"],
            ["blocks.3.0", "blocks.3.1", "blocks.3.2", "blocks.3.3", "block.3"],
        ),
        ("mvitv2_tiny", ["block.3", "stages.3.blocks.0"], ["stages.3.blocks.0", "block.3"]),
        (
            "crossvit_tiny_240",
            ["blocks.2#0", "blocks.2#1", "blocks.2.blocks.1.0"],
            ["blocks.2.blocks.1.0", "blocks.2#0", "blocks.2#1"],
        ),
        ("coat_tiny", ["parallel_blocks#2", "parallel_blocks.5"], ["parallel_blocks.5", "parallel_blocks#2"]),
        ("hrnet_w18_small", ["stage1", "stem", "layer1.0"], ["stem", "layer1.0", "stage1"]),
    ],
)
def test_layers_are_in_execution_order(name: str, layers: list[str], expected: list[str]) -> None:
    found = describe(ModelConfig(name=name, pretrained=False, layers=layers))
    assert [layer.name for layer in found] == expected
    assert [layer.index for layer in found] == list(range(len(found)))
    assert (found[0].depth, found[-1].depth) == (0, 1)


def test_registration_order_does_not_matter() -> None:
    model = vit()
    first = dict(model.named_children())
    # Register the final norm first.
    model._modules = {"norm": first.pop("norm"), **first}
    found = list(layers_of(model, layers=["norm", "stages"], pooling=["mean"]))
    assert found == ["stem", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]


def test_modules_after_the_last_block_are_read() -> None:
    model = vit()
    found = layers_of(model, layers=["stages", "norm"], pooling=["mean"])
    layered = LayeredModel(model, (3, 32, 32), ["stages", "norm"])
    # The class token after the norm is the head.
    assert [(layer.name, layer.same_as) for layer in layered.layers[-2:]] == [("blocks.2", ""), ("head", "norm")]
    with torch.no_grad():
        features = model.forward_features(X)
        torch.testing.assert_close(found["norm"], features[:, 1:].mean(dim=1))
        torch.testing.assert_close(found["blocks.2"], layers_of(model, pooling=["mean"])["blocks.2"])


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_logits_are_read_on_request_and_the_head_stays_last(name: str) -> None:
    model = timm.create_model(name, num_classes=7).eval()
    x = torch.rand(2, 3, 160, 160)
    found = layers_of(model, x, layers=["head", "logits", "stages"])
    assert list(found)[-2:] == ["logits", "head"]
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], model(x))
        torch.testing.assert_close(found["head"], model.forward_head(model.forward_features(x), pre_logits=True))


def test_the_final_norm_is_applied_to_each_block() -> None:
    model = vit()
    torch.nn.init.uniform_(model.norm.weight)  # type: ignore[arg-type]
    layered = LayeredModel(model, (3, 32, 32), pooling=["cls", "mean"], final_norm=True)
    # The class token of the last block, after the norm, is the head.
    assert [(layer.name, layer.pooling, layer.same_as) for layer in layered.layers[-2:]] == [
        ("blocks.2", "mean", ""),
        ("head", "own", "blocks.2"),
    ]
    with torch.no_grad():
        found = dict(
            zip([(layer.name, layer.pooling) for layer in layered.layers], layered.split(layered(X)), strict=True)
        )
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(X))))
        for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
            tokens = block(tokens)
            normed = model.norm(tokens)
            torch.testing.assert_close(found[f"blocks.{index}", "mean"], normed[:, 1:].mean(dim=1))
            torch.testing.assert_close(
                found[(f"blocks.{index}", "cls") if index < 2 else ("head", "own")], normed[:, 0]
            )
    for name, size in (("test_convnext", 160), ("test_resnet", 160)):
        with pytest.raises(ConfigError, match="final_norm: timm can't apply the network's final norm to its layers"):
            describe(ModelConfig(name=name, pretrained=False, final_norm=True, image_size=size))


def test_modules_without_features_are_refused() -> None:
    model = timm.create_model("test_vit", num_classes=7, img_size=32)
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="no features pass through unused: select layers"):
        LayeredModel(model, (3, 32, 32), ["stages", "unused"])


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        (["blocks.0"], 1),
        (["stem"], 1),
        (["blocks.1", "stem"], 2),
        (["blocks.1.mlp.act"], 2),
        (["blocks.2"], 3),
        (["norm"], 3),
        (["blocks.0", "head"], 3),
    ],
)
def test_the_pass_ends_after_the_last_layer(layers: list[str], blocks: int) -> None:
    model = vit()
    found = layers_of(model, layers=layers)
    layered = LayeredModel(model, (3, 32, 32), layers)
    calls = []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        layered(X)
    assert len(calls) == blocks
    everything = layers_of(model, layers=["stages", *layers])
    everything.setdefault("norm", everything["head"])
    for name, vectors in found.items():
        torch.testing.assert_close(vectors, everything[name])


def test_wildcards_do_not_match_dots() -> None:
    assert list(layers_of(vit(), layers=["blocks.*"])) == ["blocks.0", "blocks.1", "blocks.2"]
    assert list(layers_of(vit(), layers=["blocks.2", "blocks.0"])) == ["blocks.0", "blocks.2"]


def test_an_unknown_layer_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'blocks.9'; the layers are stem, blocks.0"):
        describe(ModelConfig(name="test_vit", pretrained=False, layers=["blocks.9"]))


def test_all_layers_cost_one_forward_pass() -> None:
    model = vit()
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    layered = LayeredModel(model, (3, 32, 32))
    calls.clear()
    layered(X)
    assert len(calls) == 1


def test_layers_are_described_without_weights() -> None:
    layers = describe(ModelConfig(name="vit_giant_patch14_dinov2", image_size=98))
    assert len(layers) == 42
    assert (layers[0].name, layers[0].depth, layers[-1].depth, layers[20].dim) == ("stem", 0.0, 1.0, 1536)
    assert layers[-1].name == "head"


def test_the_training_mode_is_restored() -> None:
    model = vit().train()
    LayeredModel(model, (3, 32, 32))
    assert model.training


def test_blocks_without_hooks_are_compiled() -> None:
    options = {"layers": ["stages", "blocks.2.mlp.act"]}
    plain = layers_of(vit(), **options)  # type: ignore[arg-type]
    layered = LayeredModel(vit(), (3, 32, 32), **options)  # type: ignore[arg-type]
    # The stem is read at the input of the first block.
    assert layered.compile_blocks(backend="eager") == ["blocks.0", "blocks.2"]
    with torch.no_grad():
        found = dict(zip(plain, layered.split(layered(X)), strict=True))
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)
    compiled = [name for name, module in layered.model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["blocks.1"]
    convolutional = LayeredModel(timm.create_model("test_resnet", num_classes=0).eval(), (3, 32, 32))
    assert convolutional.compile_blocks(backend="eager") == []
