"""The handwritten digits of scikit-learn."""

from functools import cached_property
from typing import Any, Literal

from raysep.config.data import SourceConfig
from raysep.data.source import Record, Source, encode, source


@source
class Digits(Source):
    """The UCI handwritten digits of scikit-learn (`sklearn.datasets.load_digits`): 1,797 images of 8x8.

    The 17 grey levels are scaled to 0 to 255.
    """

    class Config(SourceConfig):
        """The 1,797 handwritten digits that ship inside scikit-learn (8x8 pixels, classes 0 to 9)."""

        kind: Literal["digits"] = "digits"

    def __init__(self, config: SourceConfig | None = None) -> None:
        pass

    def records(self) -> list[Record]:
        """List rows 0 to 1,796, of classes `0` to `9`."""
        from sklearn.datasets import load_digits

        targets = load_digits().target
        return [Record(f"digits-{row:04d}", str(target), row=row) for row, target in enumerate(targets)]

    def read(self, path: str | None, row: int | None) -> bytes:  # noqa: ARG002  (rows only)
        """Encode a digit as PNG."""
        from PIL import Image

        return encode(Image.fromarray(self._pixels[row]))

    @cached_property
    def _pixels(self) -> Any:  # (1797, 8, 8) uint8, read once per process
        import numpy as np
        from sklearn.datasets import load_digits

        return np.round(load_digits().images * (255 / 16)).astype(np.uint8)

    def __getstate__(self) -> dict[str, object]:
        return {}
