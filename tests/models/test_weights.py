"""Checkpoints of training programs: the selected weights, the report, and refused files."""

import argparse
import io
import os
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.build import create
from raysep.models.weights import load_weights
from raysep.stages.validation import check_models

State = dict[str, torch.Tensor]


def network(seed: int = 0, name: str = "test_vit", **arguments: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, **{"num_classes": 7, "depth": 2, **arguments})


def with_prefix(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


# The expected weights, and others that also match.
RIGHT, OTHER = network(1).state_dict(), network(2).state_dict()
BODY = {key: value for key, value in RIGHT.items() if not key.startswith("head.")}
ARGS = argparse.Namespace(lr=0.1, output=Path("out"), best=np.float64(0.5), model="test_vit")


def load(content: object, tmp_path: Path, model: nn.Module | None = None, **options: Any) -> tuple[State, str]:
    torch.save(content, tmp_path / "w.pth", **options)
    model = model or network(9, num_classes=0)
    loaded = load_weights(model, str(tmp_path / "w.pth"), "test_vit")
    return model.state_dict(), loaded.sentence.removeprefix(f"{tmp_path / 'w.pth'}: ")


def averaged() -> State:
    model = AveragedModel(network(1))
    model.update_parameters(network(1))
    return model.state_dict()


CHECKPOINTS: dict[str, tuple[object, str]] = {
    "a state dict": (RIGHT, "30 tensors; unused, the classifier: head: weight, bias (2 keys)"),
    "DataParallel": (with_prefix("module.", RIGHT), "30 tensors, without the prefix `module.`"),
    "torch.compile": (with_prefix("_orig_mod.", RIGHT), "without the prefix `_orig_mod.`"),
    "both": (with_prefix("_orig_mod.module.", RIGHT), "without the prefix `_orig_mod.module.`"),
    "the other way round": (with_prefix("module._orig_mod.", RIGHT), "without the prefix `module._orig_mod.`"),
    "model": ({"model": RIGHT, "epoch": 3}, "30 tensors in `model`"),
    "model_state_dict": ({"model_state_dict": RIGHT, "optimizer_state_dict": {}}, "30 tensors in `model_state_dict`"),
    "net": ({"net": with_prefix("module.", RIGHT), "acc": 93.0}, "in `net`, without the prefix `module.`"),
    "params": ({"params": RIGHT}, "in `params`"),
    "weights": ({"weights": RIGHT}, "in `weights`"),
    "nested": ({"model": {"state_dict": RIGHT}}, "in `model.state_dict`"),
    "custom names": (
        {"my_net": with_prefix("wrapped.net.", RIGHT)},
        "in `my_net`, without the prefix `wrapped.net.`",
    ),
    "timm": (
        {"epoch": 3, "arch": "test_vit", "state_dict": OTHER, "state_dict_ema": RIGHT, "args": ARGS, "version": 2},
        "30 tensors in `state_dict_ema`; unused, though matching: `state_dict`",
    ),
    "timm without EMA": ({"state_dict": RIGHT, "state_dict_ema": None, "args": ARGS}, "30 tensors in `state_dict`"),
    "EMA of a part": (
        {"state_dict": RIGHT, "state_dict_ema": {key: value for key, value in OTHER.items() if "norm" not in key}},
        "30 tensors in `state_dict`; unused, as not matching: `state_dict_ema`",
    ),
    "an average in a callback": (
        {
            "state_dict": with_prefix("model.", OTHER),
            "callbacks": {"EMA": {"ema_weights": with_prefix("model.", RIGHT), "step": 3}},
        },
        "in `callbacks.EMA.ema_weights`, without the prefix `model.`; unused, though matching: `state_dict.model`",
    ),
    "timm's order": ({"model": OTHER, "state_dict": RIGHT}, "in `state_dict`; unused, though matching: `model`"),
    "DeiT": ({"model": OTHER, "model_ema": RIGHT, "args": ARGS}, "in `model_ema`; unused, though matching: `model`"),
    "EMA of ResNets": ({"params": OTHER, "params_ema": RIGHT}, "in `params_ema`; unused, though matching: `params`"),
    "ema-pytorch": (
        {
            "initted": torch.tensor(True),
            "step": torch.tensor(3),
            **with_prefix("online_model.", OTHER),
            **with_prefix("ema_model.", RIGHT),
        },
        "without the prefix `ema_model.`; unused, though matching: `online_model`; "
        "unused, without the prefix: 34 keys (initted, step, online_model.* (32))",
    ),
    "AveragedModel": (averaged(), "without the prefix `module.`; unused, without the prefix: 1 key (n_averaged)"),
    "DINO": (
        {
            "student": with_prefix("module.backbone.", OTHER),
            "teacher": {
                **with_prefix("backbone.", BODY),
                "head.mlp.0.weight": torch.ones(2),
                "head.last.weight_g": torch.ones(1),
            },
            "args": ARGS,
        },
        "in `teacher`, without the prefix `backbone.`; unused, though matching: `student.module.backbone`; "
        "unused, without the prefix: 2 keys (head.mlp.* (1), head.last.* (1))",
    ),
    "DINO's head without a prefix": (
        {**BODY, "head.mlp.0.weight": torch.ones(2)},
        "30 tensors; unused, the classifier: head.mlp.0.weight",
    ),
    "MoCo v3": (
        {
            "state_dict": {
                **with_prefix("module.base_encoder.", {**BODY, "head.0.weight": torch.ones(2)}),
                **with_prefix("module.momentum_encoder.", OTHER),
                "module.predictor.0.weight": torch.ones(2),
            }
        },
        "in `state_dict`, without the prefix `module.base_encoder.`; unused, though matching: "
        "`state_dict.module.momentum_encoder`; unused, without the prefix: 33 keys (module.momentum_encoder.* (32), "
        "module.predictor.* (1)); unused, the classifier: head.0.weight",
    ),
    "MoCo": (
        {
            "state_dict": {
                **with_prefix("module.encoder_q.", RIGHT),
                **with_prefix("module.encoder_k.", OTHER),
                "module.queue": torch.ones(3),
            }
        },
        "without the prefix `module.encoder_q.`; unused, though matching: `state_dict.module.encoder_k`",
    ),
    "Lightning": (
        {
            "state_dict": {**with_prefix("model.", RIGHT), "criterion.weight": torch.ones(3)},
            "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []}],
            "pytorch-lightning_version": "2.1",
        },
        "in `state_dict`, without the prefix `model.`; unused, without the prefix: 1 key (criterion.weight)",
    ),
    "segmentation": (
        {**with_prefix("encoder.", BODY), "decoder.blocks.0.conv1.weight": torch.ones(1)},
        "without the prefix `encoder.`; unused, without the prefix: 1 key (decoder.blocks.0.conv1.weight)",
    ),
    "fastai": (
        {
            "model": {**with_prefix("0.model.", BODY), "1.8.weight": torch.ones(3)},
            "opt": {"state": [], "param_groups": []},
        },
        "in `model`, without the prefix `0.model.`; unused, without the prefix: 1 key (1.8.weight)",
    ),
    "I-JEPA": (
        {
            "encoder": with_prefix("module.", RIGHT),
            "target_encoder": with_prefix("module.", OTHER),
            "predictor": {"module.x": torch.ones(1)},
        },
        "in `encoder`, without the prefix `module.`; unused, though matching: `target_encoder.module`",
    ),
    "MAE": (
        {"model": {**BODY, "decoder_pos_embed": torch.ones(2), "decoder_blocks.0.norm1.weight": torch.ones(2)}},
        "30 tensors in `model`; unused, not part of the features: 2 keys (decoder_pos_embed, decoder_blocks.* (1))",
    ),
    "a profiler": (
        {**RIGHT, "total_ops": torch.ones(1), "blocks.0.total_params": torch.ones(1)},
        "unused, not part of the features: 2 keys (total_ops, blocks.* (1))",
    ),
    "identical copies": ({"last": RIGHT, "best": {key: value.clone() for key, value in RIGHT.items()}}, "in `last`"),
    "arrays": ({"model": {key: value.numpy() for key, value in RIGHT.items()}}, "30 tensors in `model`"),
    "OpenCLIP": (
        {**with_prefix("visual.trunk.", BODY), "text.proj.weight": torch.ones(2), "logit_scale": torch.ones(())},
        "30 tensors, without the prefix `visual.trunk.`; unused, without the prefix: 2 keys (text.* (1), logit_scale)",
    ),
    "parameters": ({key: nn.Parameter(value) for key, value in RIGHT.items()}, "30 tensors"),
    "an ordered dict, tensors and other things": (OrderedDict(RIGHT, _extra_state=None, epoch=3), "30 tensors"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_trainers(kind: str, tmp_path: Path) -> None:
    content, expected = CHECKPOINTS[kind]
    state, sentence = load(content, tmp_path)
    for key, value in state.items():
        torch.testing.assert_close(value, RIGHT[key], rtol=0, atol=0)
    assert expected in sentence


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt", "pth.tar", "th", "checkpoint"])
def test_files_are_detected_by_content(suffix: str, tmp_path: Path) -> None:
    model = network(9, num_classes=0)
    torch.save(RIGHT, tmp_path / f"w.{suffix}")
    assert load_weights(model, str(tmp_path / f"w.{suffix}"), "test_vit").pickled
    torch.testing.assert_close(model.state_dict()["norm.weight"], RIGHT["norm.weight"])
    save_file(with_prefix("model.", OTHER), tmp_path / f"s.{suffix}")
    loaded = load_weights(model, str(tmp_path / f"s.{suffix}"), "test_vit")
    assert not loaded.pickled
    assert "without the prefix `model.`" in loaded.sentence
    torch.testing.assert_close(model.state_dict()["cls_token"], OTHER["cls_token"])


def test_the_older_format_of_torch(tmp_path: Path) -> None:
    found, _ = load({"state_dict": RIGHT, "args": ARGS}, tmp_path, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(found["cls_token"], RIGHT["cls_token"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype: torch.dtype, tmp_path: Path) -> None:
    found, _ = load({key: value.to(dtype) for key, value in RIGHT.items()}, tmp_path)
    torch.testing.assert_close(found["cls_token"], RIGHT["cls_token"].to(dtype).float())
    assert found["cls_token"].dtype == torch.float32


def test_batch_counters_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in timm.create_model("test_resnet").state_dict().items() if "num_batches" not in k}
    found, _ = load({"state_dict": with_prefix("module.", state)}, tmp_path, timm.create_model("test_resnet"))
    torch.testing.assert_close(found["layer4.0.bn1.running_mean"], state["layer4.0.bn1.running_mean"])


def test_keys_of_other_libraries_with_a_prefix(tmp_path: Path) -> None:
    # Names of torchvision's DenseNet, which timm's rules for the family rename.
    model = timm.create_model("densenet121", num_classes=0)
    state = {key.replace("denselayer1.norm1", "denselayer1.norm.1"): value for key, value in model.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    found, sentence = load(
        {"state_dict": with_prefix("module.", state)}, tmp_path, timm.create_model("densenet121", num_classes=0)
    )
    assert "without the prefix `module.`" in sentence
    key = "features.denseblock1.denselayer1.norm1.weight"
    torch.testing.assert_close(found[key], model.state_dict()[key])


def test_position_embeddings_with_a_prefix_are_resampled(tmp_path: Path) -> None:
    found, _ = load(with_prefix("module.", network(1, img_size=64).state_dict()), tmp_path, network(3, img_size=32))
    assert found["pos_embed"].shape[1] == 1 + 4


def test_a_matching_classifier_is_loaded(tmp_path: Path) -> None:
    found, sentence = load({"model": RIGHT}, tmp_path, network(9, num_classes=7))
    torch.testing.assert_close(found["head.weight"], RIGHT["head.weight"])
    assert "classifier" not in sentence
    found, sentence = load({"model": RIGHT}, tmp_path, network(9, num_classes=3))
    assert found["head.weight"].shape[0] == 3
    assert "unused, the classifier: head: weight, bias" in sentence


def test_three_channels_are_summed_for_grey_images(tmp_path: Path) -> None:
    found, sentence = load({"model": RIGHT}, tmp_path, network(9, num_classes=0, in_chans=1))
    expected = RIGHT["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    torch.testing.assert_close(found["patch_embed.proj.weight"], expected)
    assert "first convolution summed over 3 channels, for grey images" in sentence


REFUSED: dict[str, tuple[object, tuple[str, ...]]] = {
    "an optimizer": (
        {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []},
        ("it is an optimizer state",),
    ),
    "an optimizer and figures": (
        {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
        ("its keys are epoch, optimizer; it contains an optimizer state but no weights",),
    ),
    "nothing": ({}, ("it is an empty dict",)),
    "a list": ([RIGHT], ("it is a list",)),
    "a tensor": (torch.ones(2), ("it is a Tensor",)),
    "a classifier alone": (
        {"head.weight": RIGHT["head.weight"], "head.bias": RIGHT["head.bias"]},
        (
            "none of its 2 keys is among the model's 30; it contains only a classifier",
            "missing: blocks.0 to blocks.1: ",
        ),
    ),
    "two matches": (
        {"best_model": RIGHT, "last_model": OTHER},
        ("several different matching state dicts: `best_model`, `last_model`", "Save the intended one in a file"),
    ),
    "two matching prefixes": ({**with_prefix("left.", RIGHT), **with_prefix("right.", OTHER)}, ("`left`, `right`",)),
    "an unknown parameter": ({**RIGHT, "reg_token": torch.ones(1)}, ("unknown: reg_token",)),
    "a deeper network": (
        {"model": with_prefix("module.", network(1, depth=12).state_dict())},
        ("`model.module`,", "unknown: blocks.2 to blocks.11: norm1.weight, norm1.bias, ", "(120 keys)"),
    ),
    "a shallower network": (network(1, depth=1).state_dict(), ("missing: blocks.1: norm1.weight", "(12 keys)")),
    "a wider network": (
        network(1, embed_dim=32).state_dict(),
        ("shape of blocks.0 to blocks.1: norm1.weight, ", ": expected [64], got [32]"),
    ),
    "another network": (
        timm.create_model("test_resnet").state_dict(),
        ("its keys look like those of a ResNet", "unknown: layer1.0: conv1.weight", "missing: blocks.0 to blocks.1: "),
    ),
    "transformers": (
        {
            "vit.embeddings.cls_token": torch.ones(1),
            "vit.embeddings.patch_embeddings.projection.weight": torch.ones(1),
            **{f"vit.encoder.layer.{index}.output.dense.weight": torch.ones(1) for index in range(12)},
        },
        (
            "its keys look like those of transformers (Hugging Face)",
            "unknown: vit.embeddings.cls_token",
            "unknown: vit.encoder.layer.0 to vit.encoder.layer.11: output.dense.weight (12 keys)",
        ),
    ),
    "quantized weights": (
        {**RIGHT, "blocks.0.mlp.fc1.weight": torch.ones(RIGHT["blocks.0.mlp.fc1.weight"].shape, dtype=torch.int8)},
        ("shape of blocks.0.mlp.fc1.weight: expected [192, 64], got [192, 64] of int8",),
    ),
    "NaN": ({**RIGHT, "norm.bias": torch.full((64,), float("nan"))}, ("has NaN or infinity in norm.bias",)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_mismatches_are_explained(kind: str, tmp_path: Path) -> None:
    content, parts = REFUSED[kind]
    model = network(9, num_classes=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load(content, tmp_path, model)
    (problem,) = caught.value.problems
    assert all(part in problem for part in parts), problem
    assert str(tmp_path / "w.pth") in problem
    # No partial load.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_all_mismatching_keys_are_listed(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0)
    state = timm.create_model("test_resnet").state_dict()
    with pytest.raises(ConfigError) as caught:
        load(state, tmp_path, model)
    text = str(caught.value)
    assert "more" not in text
    for kind, keys in (("unknown", state), ("missing", model.state_dict())):
        lines = [line for line in text.splitlines() if line.strip().startswith(f"{kind}: ")]
        counts = [int(line.rpartition("(")[2].partition(" ")[0]) if line.endswith("keys)") else 1 for line in lines]
        # The classifier is neither missing nor unknown; that of the ResNet has another name.
        assert sum(counts) == sum(not key.endswith("num_batches_tracked") for key in keys)
        stems = [len(line.strip().partition(": ")[2].partition(":")[0].split(" ")[0].split(".")) for line in lines]
        assert stems == sorted(stems)


def test_grey_weights_cause_a_hint_at_in_chans(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"patch_embed.proj.weight takes 1 channel\(s\): set kwargs: \{in_chans: 1\}"):
        load(network(1, in_chans=1).state_dict(), tmp_path)
    found, _ = load(network(1, in_chans=1).state_dict(), tmp_path, network(2, in_chans=1))
    assert found["patch_embed.proj.weight"].shape[1] == 1


class Command:
    """Creates a file when unpickled unsafely."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_command_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": RIGHT, "args": Command(marker)}
    with pytest.raises(ConfigError, match=r"more than tensors and plain values \((posix|nt)\.system\)") as caught:
        load(content, tmp_path, _use_new_zipfile_serialization=zipped)
    assert "torch.save(model.state_dict(), path)" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not marker.exists()
    # The unsafe reader runs it.
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert marker.exists()


def test_a_pickled_model_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"it is a pickled model .* save the weights alone: torch.save\(model.state_dict"
    ):
        load(network(), tmp_path)
    with pytest.raises(ConfigError, match="it is a pickled model"):
        load({"epoch": 3, "ema": nn.Linear(2, 2)}, tmp_path)


def _script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def _archive(path: Path) -> None:
    sink = io.BytesIO()
    np.savez(sink, a=np.ones(2))
    path.write_bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"not weights at all", "it is damaged, or not written by torch.save"),
        (b'{"metadata": {}, "weight_map": {}}', "is JSON, like the index of sharded weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x1f\x8b\x08", "is a gzip archive"),
        (_archive, r"is a NumPy archive \(JAX weights\)"),
        (_script, "it is a TorchScript archive"),
    ],
)
def test_files_of_other_kinds(content: Any, part: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=part):
        load_weights(network(), str(path), "test_vit")


def test_validation_reports_the_loaded_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict_ema": with_prefix("module.", RIGHT), "state_dict": OTHER}, path)
    save_file(RIGHT, tmp_path / "w.safetensors")
    kwargs = {"depth": 2}
    lines = check_models(
        [
            ModelConfig(name="test_vit", id="a", pretrained=str(path), kwargs=kwargs),
            ModelConfig(name="test_vit", id="b", pretrained=str(tmp_path / "w.safetensors"), kwargs=kwargs),
            ModelConfig(name="test_vit", id="c", pretrained=False, kwargs=kwargs),
        ],
        trained=True,
    )
    head = "unused, the classifier: head: weight, bias (2 keys)"
    assert lines == [
        f"a: weights of {path}: 30 tensors in `state_dict_ema`, without the prefix `module.`; "
        f"unused, though matching: `state_dict`; {head}; "
        "it is a pickle, read without running its code, but safetensors is safer",
        f"b: weights of {tmp_path / 'w.safetensors'}: 30 tensors; unused, the classifier: head: bias, weight (2 keys)",
    ]


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.0\.pretrained: .* is a directory: give the file of weights in it"):
        check_models([ModelConfig(name="test_vit", pretrained=str(tmp_path))])


def test_a_file_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    torch.save(RIGHT, tmp_path / "w.pth")
    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(ConfigError, match=r"w\.pth can't be read: Permission denied"):
        load_weights(network(), str(tmp_path / "w.pth"), "test_vit")


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("mobilenetv2_100", "mobilenetv2_100.safetensors", "conv_head.weight"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0.safetensors", "conv_stem.weight"),
        ("vit_small_patch14_dinov2", "vit_small_patch14_dinov2.fp16.safetensors", "blocks.11.ls2.gamma"),
    ],
)
def test_real_weights_in_trainers_checkpoints(
    shared_data: Path, tmp_path: Path, name: str, file: str, key: str
) -> None:
    state = load_file(shared_data / "weights" / file)
    plain = create(ModelConfig(name=name, pretrained=str(shared_data / "weights" / file), image_size=98)).state_dict()
    student = {name: torch.zeros_like(value) for name, value in state.items()}
    for content in (
        {"epoch": 3, "model": with_prefix("module.", state), "args": ARGS},
        {"student": with_prefix("module.backbone.", student), "teacher": with_prefix("backbone.", state)},
        {"state_dict": student, "state_dict_ema": with_prefix("_orig_mod.", state)},
    ):
        torch.save(content, tmp_path / "w.pth")
        found = create(ModelConfig(name=name, pretrained=str(tmp_path / "w.pth"), image_size=98)).state_dict()
        torch.testing.assert_close(found[key], state[key].float(), rtol=0, atol=0)
        assert all(torch.equal(value, plain[name]) for name, value in found.items())
