"""The training loop of one trial, in plain torch: trains on the seen classes, evaluates and saves at given steps."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raysep.config import FinetuneConfig, Precision
from raysep.data.images import Preprocessing, check_share
from raysep.data.source import Reader
from raysep.data.splits import SEEN_TEST, SEEN_TRAIN, hold_out, seen_classes, select
from raysep.errors import StageError
from raysep.finetune.images import Batches, LabelledImages, augmentation
from raysep.finetune.resume import Progress, TrainingState
from raysep.finetune.trials import Trial
from raysep.models.build import create, preprocessing_of
from raysep.models.checkpoints import save_checkpoint
from raysep.models.meta import CheckpointMeta
from raysep.storage.store import Storage


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a trial after `step` optimizer steps.

    Attributes:
        val_accuracy, seen_accuracy: between 0 and 1, on the validation images and on seen_test; None without images.
        loss: mean training loss since the last evaluation; None at the first.
        seconds: training time so far.
        unreadable: reason for each unreadable image so far, by image_id.
    """

    step: int
    val_accuracy: float | None
    seen_accuracy: float | None
    loss: float | None
    seconds: float
    unreadable: dict[str, str]


def prepare(trial: Trial, store: Storage, split: pa.Table) -> None:
    """Save the only checkpoint of a model that is evaluated without training: step 0, no accuracy."""
    torch.manual_seed(trial.seed)
    classes = seen_classes(split, trial.rotation)
    model = create(trial.model, num_classes=len(classes))
    save_checkpoint(store, model, _meta(trial, classes, preprocessing_of(model, trial.model), 0, None, None))


def train(
    trial: Trial,
    config: FinetuneConfig,
    store: Storage,
    split: pa.Table,
    source: Reader,
    device: str = "cpu",
    max_failed_share: float = 0.0,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Evaluation]:
    """Train one trial, and yield each evaluation after writing its checkpoint.

    An interrupted trial resumes from its last saved state, and yields the earlier evaluations again. All trials of a
    run share the validation images, so that they can be compared. The seed determines randomly initialised weights,
    the order of the images and the augmentation.

    Args:
        trial: the trial, with hyperparameters `learning_rate` and `weight_decay`.
        config: steps, schedule, batch size, precision and augmentation.
        store: the run directory, for checkpoints and state.
        split: table of the split.
        source: reads the images.
        device: a torch device.
        max_failed_share: largest tolerated share of unreadable images, which are skipped.
        on_step: called after each optimizer step with the number of finished steps.

    Raises:
        StageError: the loss is not finite, or too many images are unreadable.
    """
    start = time.perf_counter()
    torch.manual_seed(trial.seed)
    classes = seen_classes(split, trial.rotation)
    model = create(trial.model, num_classes=len(classes)).to(device)
    preprocessing = preprocessing_of(model, trial.model)
    seen_train = select(split, SEEN_TRAIN, trial.rotation)
    held_out = hold_out(seen_train["label"].to_numpy(), config.validation_fraction, seed=0)
    images = LabelledImages(seen_train.filter(pa.array(~held_out)), source, preprocessing)
    validation = LabelledImages(seen_train.filter(pa.array(held_out)), source, preprocessing)
    seen_test = LabelledImages(select(split, SEEN_TEST, trial.rotation), source, preprocessing)

    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=trial.hyperparameters["learning_rate"],
        weight_decay=trial.hyperparameters["weight_decay"],
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, config))
    dtype = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    augment = augmentation(config.augment, preprocessing)
    batches = Batches(len(images), config.batch_size, trial.seed)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "batches": batches}
    state = TrainingState(store, trial, parts, device)
    resumed = state.restore()
    evaluations = [Evaluation(**evaluation) for evaluation in resumed.evaluations]
    yield from evaluations
    losses = resumed.losses
    for step in range(resumed.step, config.steps + 1):
        if step in config.evaluate_at:
            val = accuracy(model, validation, preprocessing, config.batch_size, dtype, device)
            seen = accuracy(model, seen_test, preprocessing, config.batch_size, dtype, device)
            save_checkpoint(store, model, _meta(trial, classes, preprocessing, step, val, seen))
            mean_loss = float(np.mean(losses)) if losses else None
            losses.clear()
            unreadable = images.failed | validation.failed | seen_test.failed
            check_share(unreadable, len(images) + len(validation) + len(seen_test), max_failed_share)
            seconds = resumed.seconds + time.perf_counter() - start
            evaluations.append(Evaluation(step, val, seen, mean_loss, seconds, unreadable))
            yield evaluations[-1]
        if step == config.steps:
            return
        pixels, labels = images.batch(next(batches))
        model.train()
        with _autocast(dtype, device):
            inputs = preprocessing.normalize(augment(pixels.to(device)))
            loss = nn.functional.cross_entropy(model(inputs), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(step + 1)
        if not math.isfinite(losses[-1]):
            raise StageError(
                f"{trial.model.id}: the loss is {losses[-1]} at step {step + 1} with {trial.hyperparameters}; "
                "use a smaller learning rate or a warm-up"
            )
        if state.is_due():
            seconds = resumed.seconds + time.perf_counter() - start
            state.save(Progress(step + 1, seconds, losses, [asdict(evaluation) for evaluation in evaluations]))


def accuracy(
    model: nn.Module,
    images: LabelledImages,
    preprocessing: Preprocessing,
    batch_size: int,
    dtype: torch.dtype | None,
    device: str,
) -> float | None:
    """Top-1 accuracy, between 0 and 1; None without images."""
    if not len(images):
        return None
    model.eval()
    correct = total = 0
    with torch.inference_mode():
        for first in range(0, len(images), batch_size):
            pixels, labels = images.batch(list(range(first, min(first + batch_size, len(images)))))
            with _autocast(dtype, device):
                outputs = model(preprocessing.normalize(pixels.to(device)))
            correct += int((outputs.argmax(dim=1).cpu() == labels).sum())
            total += len(labels)
    return correct / total


def rate_factor(step: int, config: FinetuneConfig) -> float:
    """Learning rate factor at a step: linear warm-up, then constant or cosine decay to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def autocast_dtype(precision: Precision, device: str) -> torch.dtype | None:
    """The autocast dtype of a precision, or None for float32."""
    if precision == "auto":
        return torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _autocast(dtype: torch.dtype | None, device: str) -> contextlib.AbstractContextManager[Any]:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def _meta(
    trial: Trial,
    classes: list[str],
    preprocessing: Preprocessing,
    step: int,
    val_accuracy: float | None,
    seen_accuracy: float | None,
) -> CheckpointMeta:
    return CheckpointMeta(
        model=trial.model,
        classes=classes,
        preprocessing=preprocessing,
        trial=trial.number,
        hyperparameters=trial.hyperparameters,
        seed=trial.seed,
        step=step,
        val_accuracy=val_accuracy,
        seen_accuracy=seen_accuracy,
        rotation=trial.rotation,
    )
