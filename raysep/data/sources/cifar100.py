"""CIFAR-100, read by torchvision."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from raysep.config.data import SourceConfig
from raysep.data.source import Record, Source, encode, source
from raysep.errors import ConfigError

PARTS = ("train", "test")


@source
class Cifar100(Source):
    """The 60,000 images of CIFAR-100 (Krizhevsky 2009) with fine labels, split into train and test.

    torchvision verifies the MD5 hashes of the files, and downloads the archive only with `download: true`.

    Args:
        config: path and download.
    """

    class Config(SourceConfig):
        """CIFAR-100 by torchvision: 100 classes of 500 training and 100 test images, 32x32 pixels."""

        kind: Literal["cifar100"] = "cifar100"
        path: str = Field(description="directory with `cifar-100-python` or its archive in it")
        download: bool = Field(False, description="fetch the archive where it is missing")

    def __init__(self, config: Config) -> None:
        # Absolute, because workers have another working directory.
        self._config = config.model_copy(update={"path": str(Path(config.path).expanduser().resolve())})

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config}

    def records(self) -> list[Record]:
        """List 50,000 images of part `train` and 10,000 of `test`."""
        return sorted(
            (
                Record(f"{part}/{row:05d}", data.classes[target], path=part, row=row, part=part)
                for part, data in self._parts.items()
                for row, target in enumerate(data.targets)
            ),
            key=lambda record: record.image_id,
        )

    def read(self, path: str | None, row: int | None) -> bytes:
        """Encode an image as PNG."""
        from PIL import Image

        assert path is not None
        return encode(Image.fromarray(self._parts[path].data[row]))

    @cached_property
    def _parts(self) -> dict[str, Any]:
        from torchvision.datasets import CIFAR100

        try:
            return {
                part: CIFAR100(self._config.path, train=part == "train", download=self._config.download)
                for part in PARTS
            }
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                [
                    f"data.source: no CIFAR-100 at {self._config.path}: {error}. Put cifar-100-python.tar.gz there and "
                    "unpack it, or set `download: true` on a machine with network access"
                ]
            ) from None
