"""Plans the trials of a run, and selects the best hyperparameters of each model. Uses neither torch nor Ray."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from raysep.config import FinetuneConfig, ModelConfig, RunConfig, SearchSpace
from raysep.models.meta import META, PIXELS, WEIGHTS
from raysep.storage.store import Storage

State = Literal["finished", "stopped", "failed"]
RESULT = "trial.json"
# Draws a value from a random search space: (name in Ray Tune, arguments, seed) -> value.
Sampler = Callable[[str, Any, int], float]


@dataclass(frozen=True)
class Trial:
    """A model with hyperparameters, seed and rotation of unseen classes. `number` is unique per model.

    The model of a trial without hyperparameters is evaluated without training, at step 0.
    """

    model: ModelConfig
    number: int
    seed: int
    hyperparameters: dict[str, float] = field(default_factory=dict)
    rotation: int = 0

    @property
    def directory(self) -> str:
        """Directory of the checkpoints, relative to the run."""
        return f"checkpoints/{self.model.id}/trial={self.number}"


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial.

    Attributes:
        val_accuracy: by step, between 0 and 1, on the validation images held out from seen_train.
        seen_accuracy: by step, on seen_test; never used for selection.
        seconds: training time.
        unreadable: reason for each unreadable image, by image_id.
        error: cause of failure, else None.
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
    """The hyperparameter settings to train each model with.

    Grids are crossed. Random spaces are sampled `num_samples` times with fixed seeds, so that all models and seeds use
    the same settings, and a resumed run draws them again.
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
    """All trials of a run, in a fixed order: model x hyperparameters x rotation x seed, then the baselines."""
    rotations = range(config.data.rotations)
    fixed_models = [*(config.models if config.finetune is None else []), *baseline_models(config)]
    fixed = [Trial(model, rotation, seed=0, rotation=rotation) for model in fixed_models for rotation in rotations]
    if config.finetune is None:
        return fixed
    settings = candidates(config.finetune, sample)
    seeds = config.finetune.seeds
    trained = [
        Trial(model, (index * len(rotations) + rotation) * len(seeds) + seed_index, seed, setting, rotation)
        for model in config.models
        for index, setting in enumerate(settings)
        for rotation in rotations
        for seed_index, seed in enumerate(seeds)
    ]
    return trained + fixed


def baseline_models(config: RunConfig) -> list[ModelConfig]:
    """The baseline models: every network untrained, and raw pixels after the preprocessing of each network."""
    baselines = []
    if config.baselines.untrained:
        baselines += [
            model.model_copy(update={"id": f"{model.id}--untrained", "pretrained": False}) for model in config.models
        ]
    if config.baselines.pixels is not None:
        for model in config.models:
            if pixels_id(config, model) == f"{model.id}--pixels":
                kwargs = {"of": model.name, "kwargs": model.kwargs, "edge": config.baselines.pixels}
                baselines.append(
                    ModelConfig(
                        name=PIXELS,
                        id=f"{model.id}--pixels",
                        kwargs=kwargs,
                        pretrained=False,
                        image_size=model.image_size,
                        crop_pct=model.crop_pct,
                    )
                )
    return baselines


def pixels_id(config: RunConfig, model: ModelConfig) -> str:
    """The id of a model's raw-pixel baseline. Models with the same preprocessing share one."""

    def preprocessing_key(other: ModelConfig) -> tuple[object, ...]:
        return other.name, other.kwargs, other.image_size, other.crop_pct

    return f"{next(m.id for m in config.models if preprocessing_key(m) == preprocessing_key(model))}--pixels"


def choose(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Select the trials to evaluate: for each model, those with the best hyperparameters.

    Settings rank by the number of finished trials, so that a setting can't win because its worst trials failed or were
    stopped; then by final validation accuracy, averaged over seeds and rotations; then by smaller learning rate.
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
    final = [result.val_accuracy[max(result.val_accuracy)] for result in group if result.val_accuracy]
    mean = sum(final) / len(final) if final else 0.0
    return len(group), mean, -group[0].hyperparameters.get("learning_rate", 0.0)


def write_result(store: Storage, trial: Trial, result: TrialResult) -> None:
    """Write the result of an ended trial, which makes its checkpoints valid."""
    store.write_json(f"{trial.directory}/{RESULT}", asdict(result))


def read_result(store: Storage, trial: Trial, steps: Sequence[int]) -> TrialResult | None:
    """Read the result of a trial; None if it must be trained, as it is unfinished, failed or lacks a checkpoint."""
    try:
        content = store.read_json(f"{trial.directory}/{RESULT}")
    except FileNotFoundError:
        return None
    with store.understood(f"{trial.directory}/{RESULT}"):
        for name in ("val_accuracy", "seen_accuracy"):
            content[name] = {int(step): value for step, value in content[name].items()}
        result = TrialResult(**content)
    if result.state == "finished":
        valid = all(store.exists(f"{trial.directory}/step={step}/{name}") for step in steps for name in (META, WEIGHTS))
        return result if valid else None
    return result if result.state == "stopped" else None
