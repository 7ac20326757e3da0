"""All forms of model names, with and without the user's weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import save_file

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models import names
from raysep.models.build import create, preprocessing_of
from raysep.models.layered import describe
from raysep.models.names import look_up
from raysep.stages.validation import check_models


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory as written by timm's `save_for_hf`, of a network for grey images of one size."""
    return write_model(tmp_path / "net", in_chans=1, img_size=32)


def write_model(path: Path, architecture: str = "test_vit", **arguments: Any) -> Path:
    path.mkdir()
    torch.manual_seed(2)
    model = timm.create_model(architecture, num_classes=5, **arguments)
    save_file(model.state_dict(), path / "model.safetensors")
    size = [arguments.get("in_chans", 3), *[arguments.get("img_size", 160)] * 2]
    cfg = {**model.pretrained_cfg, "input_size": size, "mean": [0.2], "std": [0.4], "num_classes": 5}  # type: ignore[dict-item]
    settings = {"architecture": architecture, "num_classes": 5, "pretrained_cfg": cfg, "model_args": arguments}
    (path / "config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(
    ("name", "architecture", "fixed"),
    [
        ("resnet18", "resnet18", False),
        ("resnet18.a1_in1k", "resnet18", False),
        ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2", True),
    ],
)
def test_names_of_timm(name: str, architecture: str, fixed: bool) -> None:
    found = look_up(name)
    assert (found.text, found.architecture, found.fixed_input_size, found.has_weights) == (
        name,
        architecture,
        fixed,
        True,
    )
    assert (found.directory, found.renamed) == (None, None)


def test_a_tag_without_weights_needs_the_users_weights(tmp_path: Path) -> None:
    tagged = [
        name
        for name in timm.list_models("*", include_tags=True)
        if "." in name and not timm.is_model_pretrained(name) and timm.get_pretrained_cfg(name) is not None
    ]
    assert tagged
    assert not look_up(tagged[0]).has_weights
    with pytest.raises(ConfigError, match="timm has no weights for"):
        create(ModelConfig(name=tagged[0]))


def test_deprecated_names_resolve_to_current_ones() -> None:
    found = look_up("vit_base_patch16_224_in21k")
    assert (found.text, found.renamed) == ("vit_base_patch16_224.augreg_in21k",) * 2
    assert found.fixed_input_size
    assert found.has_weights
    layers = describe(ModelConfig(name="vit_base_patch16_224_in21k", image_size=64, pretrained=False))
    assert len(layers) == 14
    assert look_up("tf_efficientnet_b0_ns").architecture == "tf_efficientnet_b0"


def test_a_deprecated_name_is_reported(tmp_path: Path) -> None:
    old, new = next(
        (old, new) for old, new in timm.models.get_deprecated_models().items() if new and new.startswith("resnet18")
    )
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "w.safetensors")
    lines = check_models([ModelConfig(name=old, pretrained=str(tmp_path / "w.safetensors"), image_size=32)])
    assert lines[0] == f"{old}: timm has renamed this model to {new}"
    assert check_models([ModelConfig(name=old, pretrained=False, image_size=32)]) == lines[:1]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("ResNet18", "'ResNet18'; close matches: resnet18"),
        ("resnet18.", "resnet18 has no weights ''"),
        ("resnet18.a1_in2k", "resnet18 has no weights 'a1_in2k'; there are .*a1_in1k"),
        ("timm/resnet18.a1_in1k", "did you mean `hf-hub:timm/resnet18.a1_in1k` or `local-dir:timm/resnet18.a1_in1k`"),
        ("file:resnet18", "unknown model 'file:resnet18': expected `resnet18`, .* did you mean `hf-hub:resnet18`"),
        ("hf-hub:", "unknown model 'hf-hub:'"),
        ("local-dir:", "unknown model 'local-dir:'"),
        ("local-dir:/nowhere", "local-dir:/nowhere: no such directory"),
        ("C:\\models\\net", "unknown model"),
    ],
)
def test_unknown_names(name: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        look_up(name)


@pytest.mark.parametrize("form", ["local-dir:{}", "LOCAL-DIR:{}", "local_dir: {}"])
def test_a_local_directory_defines_network_weights_and_preprocessing(directory: Path, form: str) -> None:
    config = ModelConfig(name=form.format(directory), id="net")
    (line,) = check_models([config], trained=True)
    assert "model.safetensors: 78 tensors" in line
    model = create(config)
    assert model.pos_embed.shape[1] == 1 + (32 // 16) ** 2
    torch.manual_seed(2)
    saved = timm.create_model("test_vit", num_classes=5, in_chans=1, img_size=32)
    torch.testing.assert_close(model.blocks[3].mlp.fc1.weight, saved.blocks[3].mlp.fc1.weight)
    found = preprocessing_of(model, config)
    assert (found.channels, found.size, found.mean, found.std) == (1, (32, 32), (0.2,), (0.4,))
    # Untrained, as in the baseline, and at another size.
    assert not torch.equal(create(config.model_copy(update={"pretrained": False})).pos_embed, model.pos_embed)  # type: ignore[arg-type]
    larger = ModelConfig(name=form.format(directory), id="net", image_size=64)
    assert create(larger).pos_embed.shape[1] == 1 + (64 // 16) ** 2
    assert describe(larger)[-2].name == "blocks.5"


def test_a_local_directory_with_separate_weights(directory: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = timm.create_model("test_vit", in_chans=1, img_size=32)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "w.pth")
    model = create(ModelConfig(name=f"local-dir:{directory}", pretrained=str(tmp_path / "w.pth")))
    torch.testing.assert_close(model.cls_token, other.cls_token.detach())


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "this directory has no config.json"),
        ("{", "config.json is not JSON"),
        ("[1]", "config.json lacks the key `architecture`"),
        ('{"model_type": "vit"}', "config.json lacks the key `architecture`"),
        ('{"architecture": "my_net", "pretrained_cfg": {}}', "has no architecture 'my_net'"),
        ('{"architecture": "test_vit", "pretrained_cfg": 3}', "must be objects"),
        ('{"architecture": "test_vit", "pretrained_cfg": {"mean": "x"}}', "could not convert string to float"),
        ('{"architecture": "test_vit", "pretrained_cfg": {"no_such_key": 1}}', "net: can't be built"),
        ('{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"in_chans": 5}}', "has 5 input channels"),
    ],
)
def test_local_directories_without_a_valid_model(tmp_path: Path, content: str | None, part: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=part):
        check_models([ModelConfig(name=f"local-dir:{tmp_path}", id="net", pretrained=False)])


@pytest.mark.parametrize(
    ("files", "part"),
    [([], "no weights in this directory"), (["a.pth", "b.pth"], r"several weights files \(a.pth, b.pth\)")],
)
def test_local_directories_without_weights_or_with_several(directory: Path, files: list[str], part: str) -> None:
    (directory / "model.safetensors").unlink()
    for file in files:
        (directory / file).touch()
    with pytest.raises(ConfigError, match=part):
        create(ModelConfig(name=f"local-dir:{directory}"))


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (LocalEntryNotFoundError("no network"), "is unreachable, and the model is not in its local cache"),
        (OfflineModeIsEnabled("offline"), "is unreachable"),
        (HFValidationError("bad id"), "has no timm model of this name"),
        (KeyError("architecture"), "has no timm model of this name"),
    ],
)
@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18.a1_in1k@main"])
def test_an_unreachable_hub_is_a_short_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, part: str, name: str
) -> None:
    calls = []

    def unreachable(identifier: str, cache_dir: str | None) -> None:
        calls.append((identifier, cache_dir))
        raise error

    monkeypatch.setattr(names, "load_model_config_from_hf", unreachable)
    with pytest.raises(ConfigError, match=part) as caught:
        check_models([ModelConfig(name=name, kwargs={"cache_dir": "/cache"})])
    (problem,) = caught.value.problems
    assert problem.startswith(f"models: {name}: the Hugging Face hub")
    assert "`local-dir:path`" in problem
    # Timeouts of an unreachable hub are long: query it only once.
    assert calls == [(name.partition(":")[2], "/cache")]


def test_a_hub_model_is_built_from_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = {"architecture": "test_vit", "input_size": (3, 160, 160), "fixed_input_size": True, "hf_hub_id": "a/b"}

    def fetched(identifier: str, cache_dir: str | None = None) -> tuple[dict[str, Any], str, dict[str, Any]]:
        assert identifier == "a/b"
        return dict(cfg), "test_vit", {"depth": 2}

    monkeypatch.setattr(names, "load_model_config_from_hf", fetched)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", fetched)
    layers = describe(ModelConfig(name="HF-Hub:a/b", image_size=32, pretrained=False))
    assert [layer.name for layer in layers] == ["stem", "blocks.0", "blocks.1", "head"]
