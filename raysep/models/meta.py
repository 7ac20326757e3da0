"""What is known of a checkpoint beside its weights. No torch here, so that a finished run is read quickly."""

from dataclasses import asdict, dataclass
from typing import Any

from raysep.config import ModelConfig
from raysep.data.images import Preprocessing
from raysep.storage.store import Storage

WEIGHTS, META = "model.safetensors", "meta.json"
# The name of the model that gives back the pixels it is given: the raw-pixel baseline.
PIXELS = "raysep:pixels"


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint is. Accuracies lie between 0 and 1, None where there is no trained classifier.

    Attributes:
        model: the model's section of the configuration.
        classes: seen classes by output of the classifier.
        preprocessing: how its images are prepared.
        trial: number of the trial, unique for the model.
        hyperparameters: what the trial was trained with.
        seed: of the trial.
        step: optimizer steps done.
        val_accuracy: on the part of seen_train that was held out.
        seen_accuracy: on seen_test.
        rotation: which draw of unseen classes it belongs to.
        sha256: of the weights file.
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
    """Where a checkpoint lies, relative to the run."""
    return f"checkpoints/{model_id}/trial={trial}/step={step}"


def to_json(meta: CheckpointMeta) -> dict[str, Any]:
    """Plain values, as `read_meta` takes them."""
    return {
        **vars(meta),
        "model": meta.model.model_dump(mode="json"),
        "preprocessing": asdict(meta.preprocessing),
    }


def read_meta(store: Storage, where: str) -> CheckpointMeta:
    """The meta of a checkpoint directory. Raises FileNotFoundError."""
    plain = store.read_json(f"{where}/{META}")
    with store.understood(f"{where}/{META}"):
        pre = plain["preprocessing"]
        plain["preprocessing"] = Preprocessing(
            **{**pre, "size": tuple(pre["size"]), "mean": tuple(pre["mean"]), "std": tuple(pre["std"])}
        )
        plain["model"] = ModelConfig.model_validate(plain["model"])
        return CheckpointMeta(**plain)
