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
from torch import Tensor, nn

from raysep.config import AugmentConfig, FinetuneConfig, Precision
from raysep.data.images import Preprocessing, check_share, load_batch
from raysep.data.sources import Reader
from raysep.data.splits import SEEN_TEST, SEEN_TRAIN, hold_out, seen_classes, select
from raysep.errors import StageError
from raysep.finetune import state as kept
from raysep.finetune.trials import Trial
from raysep.models.build import create, preprocessing_of
from raysep.models.checkpoints import save_checkpoint
from raysep.models.meta import CheckpointMeta
from raysep.storage import Storage

# Images kept decoded in memory, in bytes; beyond it each batch is decoded when it is needed.
CACHE_BYTES = 2 * 1024**3
# So much work is lost at most where a trial loses its process; shorter trials begin anew.
KEEP_INTERVAL_S = 60.0


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


class Images:
    """Labelled images as uint8 batches. Unreadable ones are left out, and kept in `failed`.

    Args:
        rows: rows of the split's table.
    """

    def __init__(self, rows: pa.Table, source: Reader, preprocessing: Preprocessing) -> None:
        self._places = list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True))
        self._labels = torch.from_numpy(rows["label"].to_numpy().astype(np.int64))
        self._source, self._preprocessing = source, preprocessing
        bytes_per_image = preprocessing.channels * math.prod(preprocessing.size)
        self._cache: dict[int, Tensor] | None = {} if len(self._places) * bytes_per_image <= CACHE_BYTES else None
        self._ids = rows["image_id"].to_pylist()
        self.failed: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) uint8 and (n,) labels of what can be read; n may be less than asked for."""
        cache = self._cache if self._cache is not None else {}
        wanted = [index for index in indices if index not in cache and self._ids[index] not in self.failed]
        pixels, good, failed = load_batch(self._source, [self._places[i] for i in wanted], self._preprocessing)
        loaded = {wanted[position]: image for position, image in zip(good, pixels, strict=True)}
        self.failed |= {self._ids[wanted[position]]: reason for position, reason in failed.items()}
        if self._cache is not None:
            self._cache |= loaded
        have = [index for index in indices if index in cache or index in loaded]
        if not have:
            raise StageError(f"no image of a batch of {len(indices)} can be read: {next(iter(self.failed.items()))}")
        return torch.stack([cache[i] if i in cache else loaded[i] for i in have]), self._labels[have]


def prepare(trial: Trial, run: Storage, split: pa.Table) -> None:
    """The one checkpoint of a model that is evaluated as it is: step 0, no accuracy."""
    torch.manual_seed(trial.seed)
    classes = seen_classes(split, trial.rotation)
    model = create(trial.model, num_classes=len(classes))
    save_checkpoint(run, model, _meta(trial, classes, preprocessing_of(model, trial.model), 0, None, None))


def train(
    trial: Trial,
    config: FinetuneConfig,
    run: Storage,
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
        run: the run directory, for the checkpoints.
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
    images = Images(seen_train.filter(pa.array(~held)), source, preprocessing)
    validation = Images(seen_train.filter(pa.array(held)), source, preprocessing)
    seen_test = Images(select(split, SEEN_TEST, trial.rotation), source, preprocessing)

    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=trial.hyperparameters["learning_rate"],
        weight_decay=trial.hyperparameters["weight_decay"],
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, config))
    dtype = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    augment = _augmentation(config.augment, preprocessing)
    batches = Batches(len(images), config.batch_size, trial.seed)
    losses: list[float] = []
    evaluations: list[Evaluation] = []
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
        "batches": batches,
    }
    begin, seconds_before = 0, 0.0
    if (state := kept.load(run, trial)) is not None:
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        kept.set_random_state(state["random"])
        begin, seconds_before, losses = state["step"], state["seconds"], state["losses"]
        evaluations = [Evaluation(**evaluation) for evaluation in state["evaluations"]]
        yield from evaluations
    saved = time.monotonic()
    for step in range(begin, config.steps + 1):
        if step in config.evaluate_at:
            val = accuracy(model, validation, preprocessing, config.batch_size, dtype, device)
            seen = accuracy(model, seen_test, preprocessing, config.batch_size, dtype, device)
            save_checkpoint(run, model, _meta(trial, classes, preprocessing, step, val, seen))
            mean_loss = float(np.mean(losses)) if losses else None
            losses.clear()
            unreadable = images.failed | validation.failed | seen_test.failed
            check_share(unreadable, len(images) + len(validation) + len(seen_test), max_failed_share)
            seconds = seconds_before + time.perf_counter() - start
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
        if time.monotonic() - saved >= KEEP_INTERVAL_S:
            state = {
                "step": step + 1,
                "seconds": seconds_before + time.perf_counter() - start,
                "losses": losses,
                "evaluations": [asdict(evaluation) for evaluation in evaluations],
                "random": kept.random_state(device),
                "parts": {name: part.state_dict() for name, part in parts.items()},
            }
            kept.save(run, trial, state)
            saved = time.monotonic()


def accuracy(
    model: nn.Module,
    images: Images,
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


class Batches:
    """Batches without end: each epoch in a new order, the last batch of it filled from the next."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._batch_size = count, batch_size
        self._rng, self._queue = np.random.default_rng(seed), list[int]()

    def __next__(self) -> list[int]:
        while len(self._queue) < self._batch_size:
            self._queue += self._rng.permutation(self._count).tolist()
        batch, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        return batch

    def state_dict(self) -> dict[str, Any]:
        """As `load_state_dict` takes it."""
        return {"rng": self._rng.bit_generator.state, "queue": self._queue}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another one was."""
        self._rng.bit_generator.state, self._queue = state["rng"], list(state["queue"])


def _augmentation(config: AugmentConfig, preprocessing: Preprocessing) -> Any:
    from torchvision.transforms import v2

    steps: list[Any] = []
    if config.min_crop_scale < 1:
        steps.append(v2.RandomResizedCrop(preprocessing.size, scale=(config.min_crop_scale, 1.0), antialias=True))
    if config.rotation_degrees > 0:
        fill = [round(255 * value) for value in preprocessing.mean]
        steps.append(v2.RandomRotation(config.rotation_degrees, interpolation=v2.InterpolationMode.BILINEAR, fill=fill))
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if not steps:
        return lambda pixels: pixels
    one = v2.Compose(steps)
    # One draw for each image, not one for the batch.
    return lambda pixels: torch.stack([one(image) for image in pixels])


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
