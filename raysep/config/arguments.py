"""Checks of the arguments of `timm.create_model` in a configuration: refused names, and valid values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LAYERS = "it changes the output of the network; name layers in models[].layers"
_WEIGHTS = "models[].pretrained sets the weights: true, false or a path"
_INTERNAL = "it is internal to timm, and changes how weights are loaded; leave it out"
# Refused arguments, with the reason or the key to use instead.
REFUSED = {
    "model_name": "models[].name sets it",
    "variant": "models[].name sets it",
    "num_classes": "raysep sets it to the number of seen classes",
    "pretrained": _WEIGHTS,
    "checkpoint_path": _WEIGHTS,
    "pretrained_cfg": "write the tag into models[].name (resnet18.a1_in1k); mean, std and interpolation go into "
    "pretrained_cfg_overlay",
    "features_only": _LAYERS,
    "out_indices": _LAYERS,
    "feature_cls": _LAYERS,
    "feature_cfg": _LAYERS,
    "flatten_sequential": _LAYERS,
    "output_fmt": _LAYERS,
    "input_size": "set models[].image_size (pixels), and in_chans: 1 for grey images",
    "crop_pct": "set models[].crop_pct",
    "pruned": "timm sets it for its pruned models, which have their own names",
    "device": "raysep chooses the device; see the section compute",
    "dtype": "set embed.precision or finetune.precision",
    "model_cls": _INTERNAL,
    "model_cfg": _INTERNAL,
    "kwargs_filter": _INTERNAL,
    "pretrained_strict": _INTERNAL,
    "pretrained_filter_fn": _INTERNAL,
    "pretrained_custom_load": _INTERNAL,
    "pretrained_model_args": _INTERNAL,
    "default_cfg": _INTERNAL,
}
OVERLAY = ("mean", "std", "interpolation", "crop_mode")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
_SWITCHES = ("scriptable", "exportable", "no_jit")


def argument_problems(arguments: Mapping[str, Any]) -> list[str]:
    """Problems of arguments, one line each, beginning with the argument's name."""
    problems = [f"{name}: {why}" for name, why in REFUSED.items() if name in arguments]
    # timm ignores arguments that are null.
    given = {name: value for name, value in arguments.items() if value is not None and name not in REFUSED}
    for name, value in given.items():
        if name == "in_chans" and (type(value) is not int or value not in (1, 3)):
            problems.append(f"in_chans: images have 3 channels (RGB) or 1 (grey), got {value!r}")
        elif name == "img_size" and size_of(value) is None:
            problems.append(f"img_size: expected pixels (224) or height and width ([224, 192]), got {value!r}")
        elif name == "global_pool" and value == "":
            problems.append(
                "global_pool: '' passes unpooled features to the classifier; leave it out: models[].pooling sets the "
                "pooling of layers"
            )
        elif name in _SWITCHES and not isinstance(value, bool):
            problems.append(f"{name}: expected true or false, got {value!r}")
        elif name == "cache_dir" and (not isinstance(value, str) or not Path(value).is_absolute()):
            problems.append(f"cache_dir: expected an absolute path that exists on every node, got {value!r}")
        elif name.endswith(("drop_rate", "drop_path_rate", "drop_block_rate")) and not _is_share(value):
            problems.append(f"{name}: expected a number of at least 0 and below 1, got {value!r}")
        elif name == "pretrained_cfg_overlay":
            problems += _overlay_problems(value)
    return problems


def size_of(value: Any) -> tuple[int, int] | None:
    """Height and width in pixels, from one number or a pair; None for any other value.

    >>> size_of(64), size_of([64, 32]), size_of("64")
    ((64, 64), (64, 32), None)
    """
    pair = [value, value] if type(value) is int else value
    if isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int and 8 <= n <= 4096 for n in pair):
        return pair[0], pair[1]
    return None


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _overlay_problems(overlay: Any) -> list[str]:
    where = "pretrained_cfg_overlay"
    if not isinstance(overlay, Mapping):
        return [f"{where}: expected some of the keys {', '.join(OVERLAY)}, got {overlay!r}"]
    problems = []
    for key, value in overlay.items():
        if key in {"mean", "std"}:
            numbers = isinstance(value, list | tuple) and all(
                isinstance(number, int | float)
                and not isinstance(number, bool)
                and (0 if key == "mean" else 1e-6) <= number <= 1
                for number in value
            )
            if not numbers or len(value) not in (1, 3):
                problems.append(
                    f"{where}.{key}: expected one number, or one for each of 3 channels, from 0 to 1"
                    f"{' and not 0' * (key == 'std')}, got {value!r}"
                )
        elif key in {"interpolation", "crop_mode"}:
            known = INTERPOLATIONS if key == "interpolation" else CROP_MODES
            if value not in known:
                problems.append(f"{where}.{key}: expected one of {', '.join(known)}, got {value!r}")
        else:
            instead = REFUSED.get(str(key), "it describes the weights; those are set in models[]")
            problems.append(f"{where}.{key}: {instead}; the keys here are {', '.join(OVERLAY)}")
    return problems
