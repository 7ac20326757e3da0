"""Arguments of timm.create_model are refused by name, or passed on."""

import pytest
from pydantic import ValidationError

from raysep.config import ModelConfig
from raysep.config.arguments import argument_problems
from raysep.config.load import build_config
from raysep.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"num_classes": 5}, "num_classes: raysep sets it to the number of seen classes"),
        ({"num_classes": None}, "num_classes: raysep sets it"),
        ({"features_only": True}, "features_only: it changes the output of the network; name layers in models"),
        ({"out_indices": [1]}, "out_indices: it changes the output of the network"),
        ({"pretrained": True}, "pretrained: models[].pretrained sets the weights"),
        ({"checkpoint_path": "a.pth"}, "checkpoint_path: models[].pretrained sets the weights"),
        ({"pretrained_cfg": "a1_in1k"}, "pretrained_cfg: write the tag into models[].name (resnet18.a1_in1k)"),
        ({"pretrained_strict": False}, "pretrained_strict: it is internal to timm"),
        ({"device": "cuda"}, "device: raysep chooses the device"),
        ({"dtype": "float16"}, "dtype: set embed.precision"),
        ({"pruned": True}, "pruned: timm sets it"),
        ({"input_size": [3, 64, 64]}, "input_size: set models[].image_size (pixels), and in_chans: 1 for grey images"),
        ({"in_chans": 4}, "in_chans: images have 3 channels (RGB) or 1 (grey), got 4"),
        ({"in_chans": 0}, "got 0"),
        ({"in_chans": "1"}, "got '1'"),
        ({"in_chans": True}, "got True"),
        ({"img_size": "64"}, "img_size: expected pixels (224) or height and width ([224, 192]), got '64'"),
        ({"img_size": [64]}, "got [64]"),
        ({"global_pool": ""}, "global_pool: '' passes unpooled features to the classifier"),
        ({"drop_path_rate": 1.5}, "drop_path_rate: expected a number of at least 0 and below 1, got 1.5"),
        ({"drop_rate": "0.1"}, "drop_rate: expected a number"),
        ({"attn_drop_rate": -0.1}, "attn_drop_rate: expected a number"),
        ({"scriptable": "yes"}, "scriptable: expected true or false, got 'yes'"),
        ({"cache_dir": "cache"}, "cache_dir: expected an absolute path that exists on every node, got 'cache'"),
        ({"pretrained_cfg_overlay": 3}, "pretrained_cfg_overlay: expected some of the keys mean, std, interpolation"),
        (
            {"pretrained_cfg_overlay": {"mean": [0.5, 0.5]}},
            "pretrained_cfg_overlay.mean: expected one number, or one",
        ),
        (
            {"pretrained_cfg_overlay": {"mean": ["a"]}},
            "pretrained_cfg_overlay.mean: expected one number, or one",
        ),
        ({"pretrained_cfg_overlay": {"std": [0.0]}}, "and not 0, got [0.0]"),
        ({"pretrained_cfg_overlay": {"interpolation": "cubic"}}, "expected one of nearest, bilinear, bicubic"),
        ({"pretrained_cfg_overlay": {"file": "a.pth"}}, "pretrained_cfg_overlay.file: it describes the weights"),
        ({"pretrained_cfg_overlay": {"input_size": [1, 8, 8]}}, "overlay.input_size: set models[].image_size"),
    ],
)
def test_invalid_arguments_are_refused_by_name(arguments: dict[str, object], part: str) -> None:
    (problem,) = argument_problems(arguments)
    assert part in problem


def test_all_problems_are_reported_with_their_keys() -> None:
    values = {
        "data": {"source": {"kind": "digits"}, "split": {"unseen": "all"}},
        "models": [{"name": "resnet18", "kwargs": {"num_classes": 3, "in_chans": 2, "features_only": True}}],
    }
    with pytest.raises(ConfigError) as caught:
        build_config(values)
    (problem,) = caught.value.problems
    assert problem.startswith("models.0.kwargs: num_classes: ")
    assert all(part in problem for part in ("; features_only: ", "; in_chans: "))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"in_chans": 1, "drop_path_rate": 0.1, "drop_rate": 0},
        {"global_pool": "avg", "exportable": True, "no_jit": False},
        # timm ignores arguments that are null.
        {"drop_rate": None, "in_chans": None},
        {"pretrained_cfg_overlay": {"mean": [0.5], "std": [0.1, 0.2, 0.3], "interpolation": "bilinear"}},
        {"img_size": [64, 32], "cache_dir": "/cache"},
        {"depth": 3, "any_other": "is timm's to judge"},
    ],
)
def test_valid_arguments_are_accepted(arguments: dict[str, object]) -> None:
    assert argument_problems(arguments) == []


@pytest.mark.parametrize(
    ("image_size", "asked", "size"),
    [(None, 64, (64, 64)), (64, 64, (64, 64)), (None, [64, 32], (64, 32)), (48, None, (48, 48))],
)
def test_image_size_and_img_size_are_equivalent(image_size: int | None, asked: object, size: tuple[int, int]) -> None:
    config = ModelConfig(name="test_vit", image_size=image_size, kwargs={} if asked is None else {"img_size": asked})
    assert config.input_size == size


def test_two_sizes_are_a_contradiction() -> None:
    with pytest.raises(ValidationError, match=r"image_size is 64 and kwargs.img_size 32: set image_size alone"):
        ModelConfig(name="test_vit", image_size=64, kwargs={"img_size": 32})
