"""What tests share: a Ray for the whole session, small image trees, and the optional shared data."""

# ruff: noqa: E402
import logging
import os
import signal

# Two test processes and their workers share the cores: threads of BLAS and OpenMP that wait for each other by spinning
# would take most of them. Before numpy and torch are imported.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from raysep.data.sources.image_folder import ImageFolder

# Shared machines are slow at times: a deadline would test them and not the code.
settings.register_profile("shared", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

# Background jobs of scripts ignore SIGINT, and nohup SIGHUP; commands that a test interrupts would inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _quiet_ray() -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray of two CPUs for all tests that need one."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def write_images(root: Path, classes: dict[str, int], size: int = 16, seed: int = 0) -> None:
    """Images whose classes differ in colour: `classes` maps a class to its number of images."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 215, (len(classes), 3))
    for (name, count), colour in zip(classes.items(), colours, strict=True):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = np.clip(colour + rng.normal(0, 30, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:03d}.png")


class Deadly(ImageFolder):
    """Its first reader loses its process, as to a node that goes or a kernel that is out of memory."""

    def __init__(self, uri: str, marker: str) -> None:
        super().__init__(ImageFolder.Config(path=uri))
        self.marker = Path(marker)

    def read(self, path: str | None, row: int | None) -> bytes:
        if not self.marker.exists():
            self.marker.touch()
            self.lose()
        return super().read(path, row)

    def lose(self) -> None:
        """What happens to the first one."""
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of five classes with twelve images each."""
    root = tmp_path / "images"
    write_images(root, dict.fromkeys("abcde", 12))
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The calligraphy images and pretrained weights, where the machine has them."""
    place = Path(os.environ.get("RAYSEP_SHARED_DATA", REPOSITORY.parent / "shared"))
    if not (place / "data" / "calligraphy").is_dir() or not (place / "weights").is_dir():
        pytest.skip(f"no calligraphy images and weights at {place}; RAYSEP_SHARED_DATA names their directory")
    return place


TINY_CNN = {"name": "test_resnet", "pretrained": False, "image_size": 32}
TINY_VIT = {"name": "test_vit", "pretrained": False, "image_size": 32, "kwargs": {"patch_size": 8, "depth": 3}}
