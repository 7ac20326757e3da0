"""Metadata of checkpoints. No torch import, so that reading a finished run stays fast."""

from dataclasses import asdict, dataclass
from typing import Any

from raysep.config import ModelConfig
from raysep.data.images import Preprocessing
from raysep.storage.store import Storage

WEIGHTS, META = "model.safetensors", "meta.json"
# Name of the raw-pixel baseline.
PIXELS = "raysep:pixels"


@dataclass(frozen=True)
class CheckpointMeta:
    """Metadata of a checkpoint. Accuracies are between 0 and 1, or None without a trained classifier.

    Attributes:
        model: the model's section of the configuration.
        classes: seen classes, in the order of the classifier's outputs.
        preprocessing: preprocessing of its images.
        trial: number, unique per model.
        hyperparameters: hyperparameters of the trial.
        seed: seed of the trial.
        step: number of optimizer steps.
        val_accuracy: accuracy on the held-out part of seen_train.
        seen_accuracy: accuracy on seen_test.
        rotation: index of the draw of unseen classes.
        sha256: SHA-256 of the weights file.
    """

    model: ModelConfig
    classes: list[str]
    preprocessing: Preprocessing
    trial: int
    hyperparameters: dict[str, float]
    seed: int
    step: int
    val_accuracy: float | None
    seen_accuracy: float | None
    rotation: int = 0
    sha256: str = ""


def directory(model_id: str, trial: int, step: int) -> str:
    """The directory of a checkpoint, relative to the run."""
    return f"checkpoints/{model_id}/trial={trial}/step={step}"


def to_json(meta: CheckpointMeta) -> dict[str, Any]:
    """Convert metadata to JSON values for `read_meta`."""
    return {
        **vars(meta),
        "model": meta.model.model_dump(mode="json"),
        "preprocessing": asdict(meta.preprocessing),
    }


def read_meta(store: Storage, path: str) -> CheckpointMeta:
    """Read the metadata of a checkpoint directory. Raises FileNotFoundError."""
    values = store.read_json(f"{path}/{META}")
    with store.understood(f"{path}/{META}"):
        pre = values["preprocessing"]
        values["preprocessing"] = Preprocessing(
            **{**pre, "size": tuple(pre["size"]), "mean": tuple(pre["mean"]), "std": tuple(pre["std"])}
        )
        values["model"] = ModelConfig.model_validate(values["model"])
        return CheckpointMeta(**values)
