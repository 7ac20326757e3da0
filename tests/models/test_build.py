from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.build import create, preprocessing_of
from raysep.stages.validation import check_models


def config(path: Path, **more: Any) -> ModelConfig:
    return ModelConfig(name="test_vit", pretrained=str(path), **more)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_vit", num_classes=7).state_dict(), path)
    return path


def test_a_state_dict_is_loaded_without_a_mismatching_head(weights: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(weights)
    model = create(config(weights), num_classes=3)
    torch.testing.assert_close(model.blocks[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])
    assert model.head.weight.shape[0] == 3
    same = create(config(weights), num_classes=7)
    torch.testing.assert_close(same.head.weight, state["head.weight"])


def test_position_embeddings_are_resampled_and_float16_becomes_float32(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    half = tmp_path / "half.safetensors"
    save_file({key: value.half() for key, value in load_file(weights).items()}, half)
    model = create(config(half, image_size=64))
    assert model.pos_embed.shape[1] == 1 + (64 // 16) ** 2
    assert model.pos_embed.dtype == torch.float32
    with torch.no_grad():
        assert torch.isfinite(model(torch.rand(1, 3, 64, 64))).all()


def test_mismatching_keys_are_named(weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(weights)
    del state["blocks.0.norm1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["blocks.1.norm1.bias"] = torch.zeros(3)
    bad = tmp_path / "bad.safetensors"
    save_file(state, bad)
    with pytest.raises(ConfigError) as caught:
        create(config(bad))
    for part in ("missing: blocks.0.norm1.weight", "unknown: extra.weight", "shape of blocks.1.norm1.bias"):
        assert part in str(caught.value)


def test_damaged_and_missing_weights(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(ConfigError, match="a damaged or incomplete safetensors file"):
        create(config(broken))
    with pytest.raises(ConfigError, match="no weights at"):
        create(config(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "part"), [("resnet19", "resnet18"), ("resnet18.tv_in2k", "tv_in1k"), ("zzzzzz", "timm.list_models")]
)
def test_unknown_names_give_close_matches(name: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        create(ModelConfig(name=name, pretrained=False))


def test_unknown_arguments() -> None:
    with pytest.raises(ConfigError, match=r"can't be built with these arguments.*flavour"):
        create(ModelConfig(name="resnet18", pretrained=False, kwargs={"flavour": 1}))


def test_preprocessing_is_that_of_the_model_unless_overridden() -> None:
    model = create(ModelConfig(name="test_vit", pretrained=False))
    default = preprocessing_of(model, ModelConfig(name="test_vit"))
    assert (default.size, default.mean) == ((160, 160), tuple(model.pretrained_cfg["mean"]))
    changed = preprocessing_of(model, ModelConfig(name="test_vit", image_size=32, crop_pct=1.0))
    assert (changed.size, changed.crop_pct, changed.interpolation) == ((32, 32), 1.0, default.interpolation)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("mobilenetv2_100", "mobilenetv2_100.safetensors", 96),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0.safetensors", 96),
        ("vit_small_patch14_dinov2", "vit_small_patch14_dinov2.fp16.safetensors", 98),
    ],
)
def test_real_weights_load(shared_data: Path, name: str, file: str, size: int) -> None:
    model = create(ModelConfig(name=name, pretrained=str(shared_data / "weights" / file), image_size=size), 15).eval()
    with torch.inference_mode():
        assert torch.isfinite(model(torch.rand(1, 3, size, size))).all()


def test_non_finite_weights_are_refused_by_key(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    state["blocks.0.norm1.weight"][3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ConfigError, match=r"NaN or infinity in blocks\.0\.norm1\.weight"):
        create(config(tmp_path / "nan.safetensors"))


class Code:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_pickles_are_read_without_running_code(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": load_file(weights), "epoch": 3}, tmp_path / "w.pth")
    actual, expected = create(config(tmp_path / "w.pth")), create(config(weights))
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in actual.state_dict().items())
    for content in ({"model": Code()}, [1, 2]):
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(ConfigError, match="state dict"):
            create(config(tmp_path / "bad.pth"))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kwargs", "part"),
    [
        (
            {"flavour": 1},
            r"can't be built with these arguments: test_vit has no argument 'flavour'; its arguments: act_layer, ",
        ),
        ({"drop_path": 0.1}, r"has no argument 'drop_path' \(did you mean 'drop_path_rate'\?\)"),
        ({"global_pool": "foo"}, r"can't be built with these arguments: .*\(kwargs: global_pool\)"),
        ({"depth": "x"}, r"can't be built with these arguments: .*\(kwargs: depth\)"),
        ({"depth": -1}, "can't be built with these arguments"),
        ({"num_heads": 0}, "can't be built with these arguments"),
        ({"act_layer": "nope"}, r"there is no 'nope' \(kwargs: act_layer\)"),
        ({"norm_layer": 5}, r"timm gives no reason \(kwargs: norm_layer\)"),
        ({"self": 1}, "can't be built with these arguments"),
        # Errors of the forward pass.
        (
            {"patch_size": 7},
            r"fails on images of 160x160: .*Set models\[\].image_size, or models\[\].kwargs \(patch_size\)",
        ),
        ({"depth": 0}, "fails on images of 160x160"),
    ],
)
def test_invalid_arguments_are_configuration_errors(kwargs: dict[str, object], part: str) -> None:
    config = ModelConfig(name="test_vit", id="mine", pretrained=False, kwargs=kwargs)
    with pytest.raises(ConfigError, match=part) as caught:
        check_models([config], trained=True)
    (problem,) = caught.value.problems
    assert problem.startswith("models: mine")
    # Neither timm's classes nor paths of this machine.
    assert "__init__" not in problem
    assert "site-packages" not in problem


def test_a_classifier_without_one_output_per_class_cannot_be_trained() -> None:
    config = ModelConfig(name="inception_v3", pretrained=False, kwargs={"aux_logits": True})
    assert check_models([config]) == []
    with pytest.raises(
        ConfigError, match=r"its classifier returns 2 outputs for 2 images and 3 classes, expected \[2, 3\]"
    ):
        check_models([config], trained=True)


@pytest.mark.parametrize(
    ("name", "kwargs", "image_size", "size"),
    [
        ("test_vit", {"img_size": 64}, None, (64, 64)),
        ("test_vit", {"img_size": [64, 32]}, None, (64, 32)),
        ("test_vit", {"dynamic_img_size": True}, 64, (64, 64)),
        ("test_resnet", {}, 48, (48, 48)),
    ],
)
def test_images_have_the_input_size_of_the_network(
    name: str, kwargs: dict[str, object], image_size: int | None, size: tuple[int, int]
) -> None:
    config = ModelConfig(name=name, pretrained=False, kwargs=kwargs, image_size=image_size)
    assert check_models([config], trained=True) == []
    assert preprocessing_of(create(config), config).size == size


def test_the_problems_of_all_models_are_reported_together() -> None:
    models = [
        ModelConfig(name="resnet19", pretrained=False),
        ModelConfig(name="test_vit", pretrained=False, kwargs={"flavour": 1}),
        ModelConfig(name="test_vit", id="third", pretrained=False, layers=["nope"]),
    ]
    with pytest.raises(ConfigError) as caught:
        check_models(models)
    assert len(caught.value.problems) == 3
