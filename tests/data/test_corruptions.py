from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysep.config.registry import CORRUPTIONS
from raysep.data.corruptions import Corrupted
from raysep.data.images import UnreadableImageError, decode
from raysep.data.sources.digits import Digits
from raysep.data.sources.image_folder import ImageFolder


@pytest.fixture
def image(tmp_path: Path) -> np.ndarray:
    """A picture with edges, smooth parts and colour, in a tree of one class."""
    rows, columns = np.mgrid[0:48, 0:64]
    pixels = np.stack([(columns * 4) % 256, rows * 5, ((rows // 8 + columns // 8) % 2) * 200], axis=2).astype(np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    return pixels


def test_all_documented_corruptions_are_registered() -> None:
    assert set(CORRUPTIONS) == {"blur", "noise", "contrast", "jpeg", "rotation", "colour"}


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_higher_severities_change_images_more(name: str, image: np.ndarray, tmp_path: Path) -> None:
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path)))
    changes = []
    for severity in range(1, 6):
        corrupted = Corrupted(source, name, severity)
        content = corrupted.read("a/x.png", None)
        assert content == corrupted.read("a/x.png", None)
        pixels = np.asarray(decode(content)).astype(float)
        assert pixels.shape == image.shape
        changes.append(np.abs(pixels - image).mean())
    assert changes[0] > 0
    # Rotation and colour are random: only the strongest severities must exceed the weakest.
    if name in {"rotation", "colour"}:
        assert max(changes[3:]) > changes[0]
    else:
        assert changes == sorted(changes)


def test_corruptions_differ_between_images() -> None:
    noisy = Corrupted(Digits(), "noise", 5)
    one, two = (np.asarray(decode(noisy.read(None, row))).astype(float) for row in (0, 1))
    plain = [np.asarray(decode(Digits().read(None, row))).astype(float) for row in (0, 1)]
    assert not np.array_equal(one - plain[0], two - plain[1])


def test_an_unreadable_image_stays_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError):
        Corrupted(ImageFolder(ImageFolder.Config(path=str(tmp_path))), "blur", 1).read("a/x.png", None)
