"""What is trained, and which hyperparameters of each model are chosen. No training here, and no Ray."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from raysep.config import FinetuneConfig, ModelConfig, RunConfig, SearchSpace
from raysep.models.meta import META, PIXELS, WEIGHTS
from raysep.storage.store import Storage

State = Literal["finished", "stopped", "failed"]
RESULT = "trial.json"
# Draws one value of a random search space: its name in Ray Tune, its arguments, a seed.
Sampler = Callable[[str, Any, int], float]


@dataclass(frozen=True)
class Trial:
    """One training: a model, hyperparameters, a seed, a draw of unseen classes. `number` is unique for the model.

    A trial without hyperparameters trains nothing: its model is evaluated as it is, at step 0.
    """

    model: ModelConfig
    number: int
    seed: int
    hyperparameters: dict[str, float] = field(default_factory=dict)
    rotation: int = 0

    @property
    def directory(self) -> str:
        """Where its checkpoints lie, relative to the run."""
        return f"checkpoints/{self.model.id}/trial={self.number}"


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        val_accuracy: by step, between 0 and 1, on the part of seen_train that was held out.
        seen_accuracy: by step, on seen_test; never used to choose.
        unreadable: image_id and reason of each image that could not be read.
        error: why it failed, else None.
    """

    model_id: str
    number: int
    seed: int
    hyperparameters: dict[str, float]
    state: State
    val_accuracy: dict[int, float]
    seen_accuracy: dict[int, float]
    seconds: float
    unreadable: dict[str, str]
    error: str | None = None


def candidates(config: FinetuneConfig, sample: Sampler) -> list[dict[str, float]]:
    """The hyperparameter settings that each model is trained with.

    Grids are crossed; random spaces are drawn `num_samples` times, with seeds that don't change, so that
    every model and every seed is trained with the same settings and the same run draws the same ones.
    """
    settings: list[dict[str, float]] = [{}]
    spaces = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
    for name, space in spaces.items():
        if not isinstance(space, SearchSpace):
            values = space if isinstance(space, list) else [space]
            settings = [{**setting, name: float(value)} for setting in settings for value in values]
    drawn = {name: space for name, space in spaces.items() if isinstance(space, SearchSpace)}
    if drawn:
        settings = [
            {
                **setting,
                **{
                    name: sample(*space.named(), 1000 * position + draw)
                    for position, (name, space) in enumerate(drawn.items())
                },
            }
            for setting in settings
            for draw in range(config.num_samples)
        ]
    return list({tuple(setting.items()): setting for setting in settings}.values())


def plan(config: RunConfig, sample: Sampler) -> list[Trial]:
    """Every trial of a run, in a fixed order: model x hyperparameters x rotation x seed, then the baselines."""
    rotations = range(config.data.rotations)
    as_they_are = [*(config.models if config.finetune is None else []), *baseline_models(config)]
    still = [Trial(model, rotation, seed=0, rotation=rotation) for model in as_they_are for rotation in rotations]
    if config.finetune is None:
        return still
    settings = candidates(config.finetune, sample)
    seeds = config.finetune.seeds
    trained = [
        Trial(model, (index * len(rotations) + rotation) * len(seeds) + position, seed, setting, rotation)
        for model in config.models
        for index, setting in enumerate(settings)
        for rotation in rotations
        for position, seed in enumerate(seeds)
    ]
    return trained + still


def baseline_models(config: RunConfig) -> list[ModelConfig]:
    """The models that each curve is held against: every network untrained, and raw pixels as it sees them."""
    found = []
    if config.baselines.untrained:
        found += [
            model.model_copy(update={"id": f"{model.id}--untrained", "pretrained": False}) for model in config.models
        ]
    if config.baselines.pixels is not None:
        for model in config.models:
            if pixels_id(config, model) == f"{model.id}--pixels":
                kwargs = {"of": model.name, "kwargs": model.kwargs, "edge": config.baselines.pixels}
                found.append(
                    ModelConfig(
                        name=PIXELS,
                        id=f"{model.id}--pixels",
                        kwargs=kwargs,
                        pretrained=False,
                        image_size=model.image_size,
                        crop_pct=model.crop_pct,
                    )
                )
    return found


def pixels_id(config: RunConfig, model: ModelConfig) -> str:
    """The id of a model's raw-pixel baseline: entries that prepare images alike share one."""

    def seen_as(other: ModelConfig) -> tuple[object, ...]:
        return other.name, other.kwargs, other.image_size, other.crop_pct

    return f"{next(m.id for m in config.models if seen_as(m) == seen_as(model))}--pixels"


def choose(results: Iterable[TrialResult]) -> list[TrialResult]:
    """The trials that are evaluated: for each model, those with the best hyperparameters.

    The best have the highest last validation accuracy, averaged over seeds and rotations. Settings that
    finished with more trials come first, so that a stopped or failed trial can't win by what is left of it; between
    equals the smaller learning rate wins.
    """
    by_model: dict[str, dict[tuple[tuple[str, float], ...], list[TrialResult]]] = {}
    for result in results:
        setting = tuple(sorted(result.hyperparameters.items()))
        by_model.setdefault(result.model_id, {}).setdefault(setting, []).append(result)
    chosen: list[TrialResult] = []
    for settings in by_model.values():
        finished = [[r for r in group if r.state == "finished"] for group in settings.values()]
        usable = [group for group in finished if group]
        if usable:
            chosen += sorted(usable, key=_rank)[-1]
    return sorted(chosen, key=lambda result: (result.model_id, result.number))


def _rank(group: list[TrialResult]) -> tuple[int, float, float]:
    last = [result.val_accuracy[max(result.val_accuracy)] for result in group if result.val_accuracy]
    mean = sum(last) / len(last) if last else 0.0
    return len(group), mean, -group[0].hyperparameters.get("learning_rate", 0.0)


def write_result(store: Storage, trial: Trial, result: TrialResult) -> None:
    """Say that a trial has ended; its checkpoints count from then on."""
    store.write_json(f"{trial.directory}/{RESULT}", asdict(result))


def read_result(store: Storage, trial: Trial, steps: Sequence[int]) -> TrialResult | None:
    """How a trial ended, or None if it has to be trained: never ended, failed, or lost a checkpoint."""
    try:
        plain = store.read_json(f"{trial.directory}/{RESULT}")
    except FileNotFoundError:
        return None
    with store.understood(f"{trial.directory}/{RESULT}"):
        for name in ("val_accuracy", "seen_accuracy"):
            plain[name] = {int(step): value for step, value in plain[name].items()}
        result = TrialResult(**plain)
    if result.state == "finished":
        whole = all(store.exists(f"{trial.directory}/step={step}/{name}") for step in steps for name in (META, WEIGHTS))
        return result if whole else None
    return result if result.state == "stopped" else None
