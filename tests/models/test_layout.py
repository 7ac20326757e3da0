"""The memory format changes the speed but not the layers."""

import pytest
import torch

from raysep.config import ModelConfig
from raysep.models.build import create
from raysep.models.layered import open_layers
from raysep.models.layout import fastest_layout
from raysep.models.taps import LayeredModel
from tests.conftest import TINY_CNN, TINY_VIT

SIZE = (3, 32, 32)


def opened(section: dict[str, object]) -> LayeredModel:
    config = ModelConfig.model_validate(section)
    torch.manual_seed(0)
    return open_layers(create(config), SIZE, config).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("section", [TINY_CNN, TINY_VIT])
def test_the_memory_format_does_not_change_the_layers(section: dict[str, object]) -> None:
    plain, fast = opened(section), opened(section)
    layout = fastest_layout(fast, SIZE, "cpu", None)
    assert layout is torch.channels_last
    x = torch.randn(4, *SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x.to(memory_format=layout)), plain(x), atol=1e-5, rtol=1e-5)


def test_a_model_that_requires_contiguous_features(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(TINY_CNN)
    forward = model.forward

    def picky(x: torch.Tensor) -> torch.Tensor:
        x.view(len(x), -1)
        return forward(x)

    monkeypatch.setattr(model, "forward", picky)
    assert fastest_layout(model, SIZE, "cpu", None) is torch.contiguous_format
    assert all(value.is_contiguous() for value in model.parameters())
    model(torch.zeros(1, *SIZE))
