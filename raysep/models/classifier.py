"""Whether a model can be trained: one forward pass of its classifier, without values where that is possible."""

import torch
from torch import Tensor

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.build import create, on_meta, passes, preprocessing_of

# Of the classifier that is tried.
CLASSES, IMAGES = 3, 2


def check_classifier(config: ModelConfig) -> None:
    """Raise ConfigError for a model that can't be trained: its outputs are not one number for an image and class."""
    on_meta(lambda: _check_classifier(config))


def _check_classifier(config: ModelConfig) -> None:
    model = create(config, CLASSES, weights=False)
    with passes(model, config), torch.no_grad():
        preprocessing = preprocessing_of(model, config)
        images = torch.zeros(IMAGES, preprocessing.channels, *preprocessing.size)
        outputs = [model.train(training)(images) for training in (False, True)]
    for output in outputs:
        if not isinstance(output, Tensor) or output.shape != (IMAGES, CLASSES):
            came = f"{list(output.shape)}" if isinstance(output, Tensor) else f"{len(output)} outputs"
            raise ConfigError(
                [
                    f"models: {config.id} can't be trained with these arguments: its classifier gives {came} for "
                    f"{IMAGES} images and {CLASSES} classes, expected [{IMAGES}, {CLASSES}] (look at kwargs: "
                    "global_pool, aux_logits)"
                ]
            )
