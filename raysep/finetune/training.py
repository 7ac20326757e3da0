"""One trial in plain torch: train on the seen classes, evaluate and save at given steps.

N images, B of them in a batch, K seen classes.
"""

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
from raysep.finetune.resume import Progress, State
from raysep.finetune.trials import Trial
from raysep.models.build import create, preprocessing_of
from raysep.models.checkpoints import save_checkpoint
from raysep.models.meta import CheckpointMeta
from raysep.storage.store import Storage


@dataclass(frozen=True)
class Evaluation:
    """Where a trial stands after `step` optimizer steps.

    Attributes:
        val_accuracy, seen_accuracy: between 0 and 1, on the validation part and on seen_test.
        loss: mean of the training loss since the last evaluation.
        seconds: since the trial began.
        unreadable: image_id and reason of each image that could not be read so far.
    """

    step: int
    val_accuracy: float | None
    seen_accuracy: float | None
    loss: float | None
    seconds: float
    unreadable: dict[str, str]


def prepare(trial: Trial, store: Storage, split: pa.Table) -> None:
    """The one checkpoint of a model that is evaluated as it is: step 0, no accuracy."""
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
    """Train one trial. Yields after each evaluation, when its checkpoint is written.

    A trial that was stopped before goes on from where its state was kept last, and yields the evaluations before that
    once more. The validation part is the same for all trials of a run, so that they can be compared. Seeds decide
    the weights that start from scratch, the order of the images and the augmentation.

    Args:
        trial: what to train; `learning_rate` and `weight_decay` are among its hyperparameters.
        config: for how long, and how.
        store: the run directory, for the checkpoints.
        split: the split's table.
        source: where the images are.
        device: a torch device.
        max_failed_share: of the images, that may be unreadable; they are left out.
        on_step: called after each optimizer step with the number of steps done.

    Raises:
        StageError: the loss is not finite, or too many images can't be read.
    """
    start = time.perf_counter()
    torch.manual_seed(trial.seed)
    classes = seen_classes(split, trial.rotation)
    model = create(trial.model, num_classes=len(classes)).to(device)
    preprocessing = preprocessing_of(model, trial.model)
    seen_train = select(split, SEEN_TRAIN, trial.rotation)
    held = hold_out(seen_train["label"].to_numpy(), config.validation_fraction, seed=0)
    images = LabelledImages(seen_train.filter(pa.array(~held)), source, preprocessing)
    validation = LabelledImages(seen_train.filter(pa.array(held)), source, preprocessing)
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
    state = State(store, trial, parts, device)
    before = state.restored()
    evaluations = [Evaluation(**evaluation) for evaluation in before.evaluations]
    yield from evaluations
    losses = before.losses
    for step in range(before.step, config.steps + 1):
        if step in config.evaluate_at:
            val = accuracy(model, validation, preprocessing, config.batch_size, dtype, device)
            seen = accuracy(model, seen_test, preprocessing, config.batch_size, dtype, device)
            save_checkpoint(store, model, _meta(trial, classes, preprocessing, step, val, seen))
            mean_loss = float(np.mean(losses)) if losses else None
            losses.clear()
            unreadable = images.failed | validation.failed | seen_test.failed
            check_share(unreadable, len(images) + len(validation) + len(seen_test), max_failed_share)
            seconds = before.seconds + time.perf_counter() - start
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
                "take a smaller learning rate or a warm-up"
            )
        if state.is_due():
            seconds = before.seconds + time.perf_counter() - start
            state.keep(Progress(step + 1, seconds, losses, [asdict(evaluation) for evaluation in evaluations]))


def accuracy(
    model: nn.Module,
    images: LabelledImages,
    preprocessing: Preprocessing,
    batch_size: int,
    dtype: torch.dtype | None,
    device: str,
) -> float | None:
    """Share of images, between 0 and 1, whose highest output is their label; None without images."""
    if not len(images):
        return None
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for first in range(0, len(images), batch_size):
            pixels, labels = images.batch(list(range(first, min(first + batch_size, len(images)))))
            with _autocast(dtype, device):
                outputs = model(preprocessing.normalize(pixels.to(device)))
            right += int((outputs.argmax(dim=1).cpu() == labels).sum())
            total += len(labels)
    return right / total


def rate_factor(step: int, config: FinetuneConfig) -> float:
    """The factor of the learning rate at a step: linear warm-up, then constant or a half cosine to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def autocast_dtype(precision: Precision, device: str) -> torch.dtype | None:
    """The type of mixed precision, or None for plain float32."""
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
