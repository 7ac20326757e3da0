"""Models opened for layer-wise reading, as configured; and their layers without weights."""

from torch import nn

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.build import checked_forward, create, on_meta, preprocessing_of
from raysep.models.layers import Layer
from raysep.models.pixels import LayeredPixels, Pixels
from raysep.models.taps import LayeredModel


def open_layers(
    model: nn.Module, input_size: tuple[int, int, int], config: ModelConfig
) -> LayeredModel | LayeredPixels:
    """Wrap a model for layer-wise reading, as configured. Raises as `LayeredModel` does."""
    if isinstance(model, Pixels):
        return LayeredPixels(model, input_size)
    try:
        return LayeredModel(model, input_size, config.layers, config.pooling, config.final_norm)
    except ConfigError as error:
        problems = [problem.removeprefix("models: ") for problem in error.problems]
        raise ConfigError([f"models: {config.id}: {problem}" for problem in problems], error.source) from None


def describe(config: ModelConfig) -> list[Layer]:
    """The layers of a model, without weights, and on the meta device if possible.

    Raises:
        ConfigError: for the reasons of `create` and `LayeredModel`, or an unsupported image size.
    """
    return on_meta(lambda: _described(config))


def _described(config: ModelConfig) -> list[Layer]:
    model = create(config, weights=False)
    with checked_forward(model, config):
        preprocessing = preprocessing_of(model, config)
        return open_layers(model, (preprocessing.channels, *preprocessing.size), config).layers
