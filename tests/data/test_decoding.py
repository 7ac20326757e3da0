"""Decoded pixel values for every mode, bit depth, tag and kind of transparency."""

import io
import struct
import subprocess
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from raysep.data.decoding import UnreadableImageError, contrast, decode, to_mode

# Every grey level once, so that the tests see any lost level.
LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([LEVELS, LEVELS[::-1], LEVELS.T], axis=2)
MAX_SAMPLE, SMAX_SAMPLE, PHOTOMETRIC = 281, 341, 262


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def tiff(values: np.ndarray, **tags: Any) -> bytes:
    """A single-channel TIFF with extra tags, by their names above."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[globals()[name]] = value
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=info)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(values: np.ndarray, bits: int | None = None, transparent: bytes = b"") -> bytes:
    """A 16-bit PNG (grey, grey with alpha, RGB or RGBA, by shape) with optional sBIT and tRNS."""
    height, width, bands = values.reshape(*values.shape[:2], -1).shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    content += chunk(b"sBIT", bytes([bits] * bands)) if bits else b""
    content += chunk(b"tRNS", transparent) if transparent else b""
    return content + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values: np.ndarray, order: str = "<", compression: int = 1) -> bytes:
    """A TIFF with 16 bits per RGB channel, which Pillow can read but not write."""
    height, width, bands = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if compression == 8 else pixels
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, 200), (259, 3, 1, compression), (262, 3, 1, 2)),
        *((273, 4, 1, 300), (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, len(pixels))),
    ]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(
            f"{order}{'HH' if kind == 3 and count == 1 else 'I'}", value, *([0] * (kind == 3 and count == 1))
        )
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    content = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + directory + bytes(4)
    content = content.ljust(200, b"\0") + struct.pack(f"{order}{bands}H", *[16] * bands)
    return content.ljust(300, b"\0") + pixels


def pgm(values: np.ndarray, white: int) -> bytes:
    return b"P5 %d %d %d\n" % (values.shape[1], values.shape[0], white) + values.astype(">u2").tobytes()


def spread_over(bits: int) -> np.ndarray:
    """`LEVELS` scaled to `bits` bits: 0 stays 0, and 255 becomes all ones."""
    return np.rint(LEVELS * ((2.0**bits - 1) / 255)).astype(np.uint16 if bits <= 16 else np.uint32)


GREYS: dict[str, tuple[bytes, int | None]] = {
    "16 bits": (tiff(spread_over(16)), None),
    "16 bits as PNG": (png16(spread_over(16)), None),
    "16 bits, big-endian": (encoded(Image.fromarray(spread_over(16).astype(">u2")), "TIFF"), None),
    "12 bits given": (tiff(spread_over(12)), 12),
    "12 bits given, PNG": (png16(spread_over(12)), 12),
    "10 bits given": (tiff(spread_over(10)), 10),
    "8 bits in 16 given": (tiff(spread_over(8).astype(np.uint16)), 8),
    "12 bits by MaxSampleValue": (tiff(spread_over(12), MAX_SAMPLE=4095), None),
    "14 bits by SMaxSampleValue": (tiff(spread_over(14), SMAX_SAMPLE=16383), None),
    "a statistic in MaxSampleValue has no effect": (tiff(spread_over(16), MAX_SAMPLE=60_000), None),
    "given bits before the file's": (tiff(spread_over(12), MAX_SAMPLE=16383), 12),
    "12 bits by sBIT, not spread": (png16(spread_over(12), bits=12), None),
    "12 bits by sBIT, spread by shifts": (png16(LEVELS.astype(np.uint16) * 257 & 0xFFF0, bits=12), None),
    "12 bits by sBIT, spread by repeats": (png16(spread_over(12) << 4 | spread_over(12) >> 8, bits=12), None),
    "12 bits by maxval": (pgm(spread_over(12), 4095), None),
    "12 bits by maxval, and given": (pgm(spread_over(12), 4095), 12),
    "12 bits given beyond maxval": (pgm(spread_over(12), 65535), 12),
    "16 bits by maxval": (pgm(spread_over(16), 65535), None),
    "32 bits": (tiff(spread_over(31).astype(np.int32)), None),
    # Pillow writes the tag SampleFormat as 2, signed, in any case.
    "32 bits without a sign": (
        tiff(spread_over(32).view(np.int32)).replace(b"\x53\x01\x03\0\1\0\0\0\2", b"\x53\x01\x03\0\1\0\0\0\1"),
        None,
    ),
    "10 bits in 32": (tiff(spread_over(10).astype(np.int32)), 10),
    "16 bits in 32": (tiff(spread_over(16).astype(np.int32)), 16),
    "16 bits in 32 by a tag": (tiff(spread_over(16).astype(np.int32), SMAX_SAMPLE=65535), None),
    "8 bits in 32": (tiff(LEVELS.astype(np.int32)), 8),
    "floats to 1": (tiff((LEVELS / 255).astype(np.float32)), None),
    "floats a rounding error beyond 1": (tiff((LEVELS / 255 * 1.0005).astype(np.float32)), None),
    "floats to 255": (tiff(LEVELS.astype(np.float32)), 8),
    "floats to 255 by a tag": (tiff(LEVELS.astype(np.float32), SMAX_SAMPLE=255.0), None),
    "floats to 4095": (tiff(spread_over(12).astype(np.float32)), 12),
    "white is 0, 16 bits": (tiff(65535 - spread_over(16), PHOTOMETRIC=0), None),
    "white is 0, 12 bits given": (tiff(4095 - spread_over(12), PHOTOMETRIC=0), 12),
    "white is 0, floats": (tiff((1 - LEVELS / 255).astype(np.float32), PHOTOMETRIC=0), None),
    "JPEG 2000": (encoded(Image.fromarray(spread_over(16)), "JPEG2000", irreversible=False), None),
    "8 bits": (encoded(Image.fromarray(LEVELS)), None),
    "8 bits, more given": (encoded(Image.fromarray(LEVELS)), 12),
}


@pytest.mark.parametrize(("content", "bit_depth"), GREYS.values(), ids=GREYS.keys())
def test_every_grey_level_survives_at_every_bit_depth(content: bytes, bit_depth: int | None) -> None:
    grey = np.asarray(decode(content, channels=1, bit_depth=bit_depth))
    np.testing.assert_array_equal(grey, LEVELS)
    np.testing.assert_array_equal(np.asarray(decode(content, bit_depth=bit_depth)), np.stack([grey] * 3, axis=2))


def test_fewer_than_8_bits_in_8_bit_files() -> None:
    sixteen = (LEVELS >> 4).astype(np.uint8)
    for mode, pixels in (("L", sixteen), ("RGB", np.stack([sixteen] * 3, axis=2))):
        grey = np.asarray(decode(encoded(Image.fromarray(pixels, mode)), channels=1, bit_depth=4))
        np.testing.assert_array_equal(grey, sixteen * 17)
    # The alpha channel keeps all 8 bits.
    both = np.stack([sixteen, np.full_like(sixteen, 255)], axis=2)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(both, "LA")), 1, bit_depth=4), sixteen * 17)
    # Pillow itself scales values stored in 4 bits to 8.
    palette = encoded(Image.fromarray(LEVELS).quantize(16), bits=4)
    np.testing.assert_array_equal(decode(palette, bit_depth=4), decode(palette))
    np.testing.assert_array_equal(decode(pgm8 := b"P5 2 1 15\n\x00\x0f", 1, bit_depth=4), [[0, 255]])
    np.testing.assert_array_equal(decode(pgm8, 1), [[0, 255]])


COLOURED = {
    "PNG": png16(spread_over(12)[..., None].repeat(3, 2)),
    "PNG, sBIT": png16(spread_over(12)[..., None].repeat(3, 2), bits=12),
    "PNG, alpha": png16(np.dstack([*[spread_over(12)] * 3, np.full((16, 16), 4095)]).astype(np.uint16)),
    "TIFF": tiff16(spread_over(12)[..., None].repeat(3, 2)),
    "TIFF, big-endian": tiff16(spread_over(12)[..., None].repeat(3, 2), ">"),
    "TIFF, deflate": tiff16(spread_over(12)[..., None].repeat(3, 2), compression=8),
    "TIFF, big-endian, deflate": tiff16(spread_over(12)[..., None].repeat(3, 2), ">", compression=8),
}


@pytest.mark.parametrize("kind", COLOURED)
def test_12_bit_colours_in_16_bit_files_keep_every_level(kind: str) -> None:
    bit_depth = None if "sBIT" in kind else 12
    np.testing.assert_array_equal(decode(COLOURED[kind], bit_depth=bit_depth), np.stack([LEVELS] * 3, axis=2))


@pytest.mark.parametrize("content", [png16(COLOURS.astype(np.uint16) * 257), tiff16(COLOURS.astype(np.uint16) * 257)])
@pytest.mark.parametrize("bit_depth", [None, 16])
def test_16_bit_colours_equal_those_of_pillow(content: bytes, bit_depth: int | None) -> None:
    np.testing.assert_array_equal(np.asarray(decode(content, bit_depth=bit_depth)), COLOURS)


def filled(value: float, kind: type = np.float32) -> np.ndarray:
    return np.linspace(0, value, 16).reshape(4, 4).astype(kind)


@pytest.mark.parametrize(
    ("content", "bit_depth", "why"),
    [
        (tiff(filled(255)), None, r"floats from 0 to 255, expected none above 1: set data\.bit_depth .*8 if"),
        (tiff(filled(256)), 8, "floats from 0 to 256, expected none above 255"),
        (tiff(filled(-1)), None, "floats from -1 to 0, expected none below 0"),
        (tiff(np.array([[0, np.nan]], np.float32)), None, "NaN or infinite"),
        (tiff(np.array([[0, np.inf]], np.float32)), 8, "NaN or infinite"),
        (tiff(filled(1023, np.int32)), None, r"integers from 0 to 1023, which would all be black, .*data\.bit_depth"),
        (tiff(filled(255, np.int32)), None, "would all be black"),
        (tiff(filled(-5, np.int32)), 8, "integers from -5 to 0, expected none below 0"),
        (tiff(filled(5000, np.uint16)), 12, "integers from 0 to 5000, expected none above 4095"),
        (encoded(Image.fromarray(LEVELS)), 4, "integers from 0 to 255, expected none above 15"),
        (
            png16(np.dstack([spread_over(12)] * 2)),
            12,
            "16-bit files with alpha and fewer than 16 significant bits",
        ),
        pytest.param(
            b"\x00\x00\x00\x18ftypheic" + bytes(40),
            None,
            r"looks like \.heic \(HEIF: pip install pillow-heif\)",
            marks=pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="HEIF is decoded here"),
        ),
        (b"\xff\x0a" + bytes(40), None, "JPEG XL: convert to PNG"),
        (b"%PDF-1.7", None, "render to PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", None, r"Git LFS pointer \(git lfs pull\)"),
        (b"<html>", None, "not an image"),
        (tiff(filled(1))[:60], None, "begins like TIFF|Error"),
    ],
)
def test_undecodable_content_comes_with_advice(content: bytes, bit_depth: int | None, why: str) -> None:
    with pytest.raises(UnreadableImageError, match=why):
        decode(content, bit_depth=bit_depth)


def test_black_images_of_any_depth_are_black() -> None:
    for kind in (np.uint8, np.uint16, np.int32, np.float32):
        assert decode(tiff(np.zeros((4, 4), kind))).getextrema() == ((0, 0),) * 3


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa", "La"]


@pytest.mark.parametrize("mode", MODES)
def test_every_pillow_mode_converts_to_rgb_and_grey(mode: str) -> None:
    half = Image.new("L", (8, 8), 0)
    half.paste(255, (0, 0, 4, 8))
    if mode == "LAB":
        # Lightness, and the two colour axes at their middle.
        image = Image.merge("LAB", [half, *[Image.new("L", (8, 8), 128)] * 2])
    elif mode in {"La", "RGBa"}:
        image = half.convert(mode.upper()).convert(mode)
    else:
        image = half.convert("RGB").convert(mode) if mode not in {"PA", "LA"} else half.convert("LA").convert(mode)
    for wanted in ("RGB", "L"):
        pixels = np.asarray(to_mode(image, wanted)).reshape(8, 8, -1).astype(int)
        assert pixels.shape[2] == (3 if wanted == "RGB" else 1)
        assert pixels[:, :4].min() >= 254
        assert pixels[:, 4:].max() <= 1


FILES = {
    "1": "PNG", "L": "JPEG", "P": "GIF", "RGB": "WEBP", "CMYK": "JPEG", "YCbCr": "TIFF", "LAB": "TIFF", "RGBA": "AVIF",
}  # fmt: skip


@pytest.mark.parametrize("mode", FILES)
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_every_mode_become_rgb_or_grey(mode: str, channels: int) -> None:
    image = Image.new("LAB", (16, 16)) if mode == "LAB" else Image.fromarray(COLOURS).convert(mode)
    found = decode(encoded(image, FILES[mode]), channels)
    assert (found.mode, found.size) == ("RGB" if channels == 3 else "L", (16, 16))


def drawing(ink: tuple[int, ...], hidden: tuple[int, ...]) -> Image.Image:
    """A disc of colour `ink` on transparent pixels of the hidden colour `hidden`."""
    rows, columns = np.mgrid[-8:8, -8:8]
    inside = rows**2 + columns**2 < 25
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[inside], pixels[~inside] = (*ink, 255), (*hidden, 0)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("ink", "background"), [(0, 255), (100, 255), (255, 0), (250, 0)])
@pytest.mark.parametrize("hidden", [0, 255, 77])
def test_drawings_on_transparency_stay_visible(mode: str, ink: int, background: int, hidden: int) -> None:
    image = drawing((ink,) * 3, (hidden,) * 3)
    content = encoded(image.convert(mode) if mode != "P" else image.quantize())
    pixels = np.asarray(decode(content, channels=1))
    assert pixels[8, 8] == ink
    assert pixels[0, 0] == background


def test_opaque_alpha_changes_nothing_and_half_alpha_mixes_with_white() -> None:
    opaque = Image.fromarray(COLOURS).convert("RGBA")
    np.testing.assert_array_equal(decode(encoded(opaque)), COLOURS)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half.paste((0, 0, 0, 128), (0, 0, 2, 4))
    assert decode(encoded(half)).getpixel((0, 0)) == (127, 127, 127)


def test_a_transparent_value_in_grey_rgb_and_16_bits() -> None:
    grey = Image.fromarray(np.array([[0, 7]], np.uint8))
    np.testing.assert_array_equal(decode(encoded(grey, transparency=7), 1), [[0, 255]])
    rgb = Image.fromarray(np.array([[[0, 0, 0], [7, 8, 9]]], np.uint8))
    assert decode(encoded(rgb, transparency=(7, 8, 9))).getpixel((1, 0)) == (255, 255, 255)
    wide = np.array([[0, 30_000]], np.uint16)
    np.testing.assert_array_equal(decode(png16(wide, transparent=struct.pack(">H", 30_000)), 1), [[0, 255]])
    colours = np.array([[[0, 0, 0], [300, 3000, 30_000]]], np.uint16)
    content = png16(colours, transparent=struct.pack(">HHH", 300, 3000, 30_000))
    assert decode(content).getpixel((1, 0)) == (255, 255, 255)


def test_contrast_is_the_largest_of_the_channels() -> None:
    assert contrast(Image.new("RGB", (4, 4), (9, 200, 3))) == 0
    assert contrast(Image.fromarray(np.array([[[0, 5, 0], [0, 9, 255]]], np.uint8))) == 255
    assert contrast(Image.fromarray(np.array([[3, 5]], np.uint8))) == 2


def test_heif_is_decoded_if_pillow_heif_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    code = (
        "import io, sys, pillow_heif; from PIL import Image; from raysep.data.decoding import decode\n"
        "pillow_heif.register_heif_opener(); sink = io.BytesIO()\n"
        "Image.new('RGB', (64, 64), 'red').save(sink, 'HEIF')\n"
        "sys.exit(decode(sink.getvalue()).size != (64, 64))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
