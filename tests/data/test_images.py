import io
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform  # type: ignore[attr-defined]

from raysep.data.images import Preprocessing, UnreadableImageError, check_share, decode, load_batch
from raysep.errors import StageError

IMAGENET = Preprocessing((32, 32), 3, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875, "center")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def noise(height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb_or_grey(mode: str) -> None:
    if mode == "I;16":
        content = encoded(Image.fromarray(noise()[..., 0].astype(np.uint16) * 257))
    else:
        content = encoded(Image.fromarray(noise()).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    assert decode(content).mode == "RGB"
    assert decode(content, channels=1).mode == "L"


def test_sixteen_bit_greys_keep_their_brightness() -> None:
    grey = noise()[..., 0]
    decoded = decode(encoded(Image.fromarray(grey.astype(np.uint16) * 257)), channels=1)
    np.testing.assert_array_equal(np.asarray(decoded), grey)


def test_exif_rotation_is_applied() -> None:
    image = Image.fromarray(noise(40, 50))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(image, "JPEG", exif=exif)).size == (40, 50)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", encoded(Image.fromarray(noise()))[:200], encoded(Image.fromarray(noise()), "JPEG")[:-500]],
    ids=["empty", "text", "half a png", "truncated jpeg"],
)
def test_incomplete_images_are_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        decode(content)


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A grey PNG with the given size in its header, whatever its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (png(20_000, 20_000), "pixels"),
        (png(0, 8), "not a decodable image"),
        (encoded(Image.fromarray(np.full((4, 4), 7.0, np.float32)), "TIFF"), "floats"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "not a decodable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a decodable image"),
    ],
    ids=["20,000 pixels a side", "no pixels", "floats", "a program", "a vector image"],
)
def test_oversized_empty_and_non_raster_images_are_unreadable(content: bytes, why: str) -> None:
    with pytest.raises(UnreadableImageError, match=why):
        decode(content)


def test_long_thin_images_and_first_frames_are_decoded() -> None:
    assert decode(encoded(Image.new("RGB", (20_000, 2)))).size == (20_000, 2)
    red, green = (Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0)))
    animated = encoded(red, "GIF", save_all=True, append_images=[green])
    assert decode(animated).getpixel((0, 0)) == (255, 0, 0)


def test_transient_storage_errors_are_not_unreadable_images() -> None:
    class Unavailable:
        def read(self, path: str | None, row: int | None) -> bytes:
            raise TimeoutError("no answer")

    with pytest.raises(TimeoutError):
        load_batch(Unavailable(), [("a", None)], IMAGENET)


@given(st.binary(max_size=64), st.integers(0, 400))
def test_damaged_bytes_are_decoded_or_unreadable(damage: bytes, position: int) -> None:
    content = bytearray(encoded(Image.fromarray(noise(8, 8)), "JPEG"))
    content[position : position + len(damage)] = damage
    try:
        assert decode(bytes(content)).mode == "RGB"
    except UnreadableImageError as error:
        assert str(error)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_preprocessing_equals_timms(mode: str) -> None:
    ours = Preprocessing((32, 32), 3, "bicubic", IMAGENET.mean, IMAGENET.std, 0.9, mode)
    theirs = create_transform(
        (3, 32, 32),
        is_training=False,
        interpolation="bicubic",
        mean=ours.mean,
        std=ours.std,
        crop_pct=0.9,
        crop_mode=mode,
    )
    image = Image.fromarray(noise(70, 50))
    again = pickle.loads(pickle.dumps(ours))
    torch.testing.assert_close(again.normalize(again.pixels(image)[None])[0], theirs(image), atol=1e-6, rtol=0)


class InMemory:
    def __init__(self, contents: list[bytes]) -> None:
        self.contents = contents

    def records(self) -> None:
        raise AssertionError

    def read(self, path: Any, row: Any) -> Any:
        if row is None:
            raise OSError(f"no file {path}")
        return self.contents[row]


def test_a_batch_reports_unreadable_images() -> None:
    source = InMemory([encoded(Image.fromarray(noise())), b"broken"])
    pixels, good, failed = load_batch(source, [(None, 0), (None, 1), ("gone", None), (None, 0)], IMAGENET)
    assert (pixels.shape, pixels.dtype, good) == ((2, 3, 32, 32), torch.uint8, [0, 3])
    assert set(failed) == {1, 2}
    assert "gone" in failed[2]
    assert load_batch(source, [(None, 1)], IMAGENET)[0].shape == (0, 3, 32, 32)


def test_too_many_failures_name_examples() -> None:
    check_share({"a": "x"}, 100, 0.01)
    with pytest.raises(StageError, match=r"2 of 100 .* a \(x\); b \(y\)"):
        check_share({"b": "y", "a": "x"}, 100, 0.01)
