"""Check that a model can be trained: one forward pass of its classifier, on the meta device if possible."""

import torch
from torch import Tensor

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.models.build import checked_forward, create, on_meta, preprocessing_of

# Size of the trial batch.
CLASSES, IMAGES = 3, 2


def check_classifier(config: ModelConfig) -> None:
    """Raise ConfigError unless the model outputs a tensor of shape (images, classes)."""
    on_meta(lambda: _check_classifier(config))


def _check_classifier(config: ModelConfig) -> None:
    model = create(config, CLASSES, weights=False)
    with checked_forward(model, config), torch.no_grad():
        preprocessing = preprocessing_of(model, config)
        images = torch.zeros(IMAGES, preprocessing.channels, *preprocessing.size)
        outputs = [model.train(training)(images) for training in (False, True)]
    for output in outputs:
        if not isinstance(output, Tensor) or output.shape != (IMAGES, CLASSES):
            actual = f"{list(output.shape)}" if isinstance(output, Tensor) else f"{len(output)} outputs"
            raise ConfigError(
                [
                    f"models: {config.id} can't be trained with these arguments: its classifier returns {actual} for "
                    f"{IMAGES} images and {CLASSES} classes, expected [{IMAGES}, {CLASSES}] (check kwargs: "
                    "global_pool, aux_logits)"
                ]
            )
