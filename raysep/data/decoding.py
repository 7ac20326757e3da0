"""Decode image files to 8 bits per channel without visible loss.

**Values** of more than 8 bits are scaled by one range per file type, never per image. The range is the first of:

1. 0 to 2^b - 1 for a configured `bit_depth` b. (It also scales up values of fewer than 8 bits in 8-bit files.)
2. The file's metadata: BitsPerSample of TIFF, or its MaxSampleValue or SMaxSampleValue if that is 2^k - 1; sBIT of
   PNG, unless the values are already scaled to 16 bits; maxval of PGM; the precision of JPEG 2000.
3. All bits of the sample format for integers (without the sign), and 0 to 1 for floats.

UnreadableImageError: values above the range, negative values, NaN, and 32-bit integers that would all become black.

**Colours.** Pillow converts 1, L, P, PA, CMYK, YCbCr, HSV and LAB to RGB, without colour profiles, and RGB to grey by
ITU-R 601-2. WhiteIsZero of TIFF is inverted. Only the first frame or page is decoded. Channels beyond those of
Pillow's modes (for example infrared) are dropped.

**Transparency.** Images are composited on white, or on black if they would be nearly invisible on white (a white
drawing). The hidden colour of fully transparent pixels has no effect.
"""

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from raysep.data.formats import HEAD_BYTES, advice, foreign_suffix, format_of, formats
from raysep.data.ranges import is_spread, range_of

# 268 MB as RGB, against decompression bombs: the compressed file may have a few kilobytes.
MAX_PIXELS = 89_478_485
# Exceptions that Pillow raises for damaged files, found by fuzzing.
DECODE_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, RuntimeError, LookupError, ArithmeticError),
    *(struct.error, Image.DecompressionBombError),
)
# Images with a smaller contrast, as a share of the full range, count as nearly invisible.
MIN_CONTRAST = 0.05


class UnreadableImageError(ValueError):
    """The content is not an image, or cannot be decoded completely."""


@dataclass(frozen=True)
class Samples:
    """The sample values of an image file.

    Attributes:
        image: decoded by Pillow in the file's mode, EXIF rotation applied.
        values: (H, W) or (H, W, bands) unscaled values; None if `image` already has them in 8 bits.
        white: the value of white; black is 0.
        inverted: the reverse: 0 is white, `white` is black.
        kind: Pillow's format and mode, as in `TIFF I;16`.
    """

    image: Image.Image
    values: NDArray[Any] | None = None
    white: float = 255.0
    inverted: bool = False
    kind: str = ""


def decode(content: bytes, channels: int = 3, bit_depth: int | None = None) -> Image.Image:
    """Decode an image to 8 bits per channel: EXIF rotation applied, first frame only. See the module for the rules.

    Args:
        channels: 3 for RGB, 1 for grey.
        bit_depth: significant bits of the values, 1 to 32; None: from the file's metadata, else its sample format.

    Raises:
        UnreadableImageError: empty, truncated, more than `MAX_PIXELS`, values of unknown range, or not an image.
    """
    samples = read_samples(content, bit_depth)
    with _decode_errors(content):
        return to_mode(eight_bits(samples), "RGB" if channels == 3 else "L")


def read_samples(content: bytes, bit_depth: int | None = None) -> Samples:
    """Read the unscaled values of an image file. Raises UnreadableImageError."""
    with _decode_errors(content):
        opened = _open(content)
        rawmode, stored = _rawmode(opened), range_of(opened, content)
        image = ImageOps.exif_transpose(_loaded(opened))
        kind = f"{opened.format} {opened.mode}"
        depth = None if bit_depth is None or stored.scaled else bit_depth
        white = stored.white if depth is None else 2.0**depth - 1
        if image.mode in {"F", "I"} or image.mode.startswith("I;16"):
            values: NDArray[Any] = np.asarray(image)
            # Pillow has no mode for unsigned 32-bit integers.
            values = values.view(np.uint32) if stored.unsigned and image.mode == "I" else values
        elif rawmode.endswith((";16L", ";16B", ";16N")) and (depth or stored.bits or 16) < 16:
            values = _wide_colours(content, image, rawmode)
        elif depth is not None and depth < 8 and image.mode in {"L", "LA", "RGB", "RGBA"}:
            # Pillow itself scales samples that are stored in fewer than 8 bits.
            packed = re.search(r";[124]", rawmode) is not None
            return Samples(image, kind=kind) if packed else Samples(image, np.asarray(image), white, kind=kind)
        else:
            return Samples(image, kind=kind)
        if depth is None and opened.format == "PNG" and stored.bits and is_spread(values, stored.bits):
            white = 65535.0
        return Samples(image, values, white, stored.inverted, kind)


def frames(content: bytes) -> int:
    """The number of frames or pages in a file. A photograph with embedded previews (MPO) counts as 1."""
    with _decode_errors(content):
        opened = _open(content)
        return 1 if opened.format == "MPO" else int(getattr(opened, "n_frames", 1))


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image of 8 bits per channel in any Pillow mode to `RGB` or `L`, without transparency."""
    if image.mode in {"La", "RGBa"}:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode == "P" or image.has_transparency_data:
        image = _composited(image.convert("RGBA"))
    if image.mode in {"LAB", "HSV"}:
        # Pillow converts these to no other mode.
        image = image.convert("RGB")
    return image.convert(mode)


def contrast(image: Image.Image) -> int:
    """The largest difference between two pixels in one channel, 0 (uniform colour) to 255."""
    extrema: Any = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return int(max(high - low for low, high in bands))


def eight_bits(samples: Samples) -> Image.Image:
    """Scale samples to 8 bits per channel, keeping transparency. Raises UnreadableImageError."""
    image, values = samples.image, samples.values
    if values is None:
        return image
    # `white` does not apply to the alpha channel, which uses all 8 bits.
    alpha = values[..., -1:] if values.dtype == np.uint8 and image.mode in {"LA", "RGBA"} else None
    bands: Any = scaled(values if alpha is None else values[..., :-1], samples.white)
    if alpha is not None:
        bands = np.concatenate([bands, alpha], axis=2)
    if samples.inverted:
        bands = 255 - bands
    if bands.ndim == 3:
        return Image.merge(image.mode, [Image.fromarray(bands[..., band]) for band in range(bands.shape[2])])
    grey = Image.fromarray(bands)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def scaled(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """Scale [0, `white`] to [0, 255], rounded. Raises UnreadableImageError for values out of range or all black."""
    whole = np.issubdtype(values.dtype, np.integer)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise UnreadableImageError("pixels are NaN or infinite")
    summary = f"pixels are {'integers' if whole else 'floats'} from {low:.10g} to {high:.10g}"
    # Less than half a grey level, for rounding errors in float files.
    tolerance = 0.0 if whole else white / 510
    if low < -tolerance:
        raise UnreadableImageError(f"{summary}, expected none below 0: make all values >= 0")
    if high > white + tolerance:
        raise UnreadableImageError(
            f"{summary}, expected none above {white:.10g}: set data.bit_depth to the number of significant bits (8 if "
            "white is 255, 16 if it is 65535)"
        )
    if white > 65535 and 0 < high < white / 510:
        raise UnreadableImageError(
            f"{summary}, which would all be black, as white is {white:.10g}: set data.bit_depth to the number of "
            "significant bits (10 if white is 1023)"
        )
    if whole and white <= 65535:
        levels: NDArray[np.uint8] = np.rint(np.arange(int(white) + 1) * (255 / white)).astype(np.uint8)[values]
    else:
        levels = np.rint(np.clip(values.astype(np.float64) * (255 / white), 0, 255)).astype(np.uint8)
    return levels


def _composited(image: Image.Image) -> Image.Image:
    """Composite an RGBA image on white, or on black if it is nearly invisible on white."""
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    on_white, on_black = (
        Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
        for background in ("white", "black")
    )
    return on_black if contrast(on_white) < MIN_CONTRAST * 255 and contrast(on_black) > contrast(on_white) else on_white


def _open(content: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content), formats=formats())
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:
        # A 16-bit colour, while Pillow keeps only the high 8 bits of the pixels.
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def _rawmode(image: Image.Image) -> str:
    """Pillow's name of the stored sample layout, as in `RGB;16B`. Call it before the pixels are loaded."""
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str((args[0] if isinstance(args, tuple) else args) or "")


def _wide_colours(content: bytes, image: Image.Image, rawmode: str) -> NDArray[np.uint16]:
    """(H, W, bands) 16-bit values. Pillow keeps only the high byte: decode again with swapped bytes for the low one."""
    order = {"L": "B", "B": "L", "N": "B" if np.little_endian else "L"}[rawmode[-1]]
    if rawmode.startswith(("LA;", "RGBa;")):
        raise UnreadableImageError(
            "16-bit files with alpha and fewer than 16 significant bits are not supported: convert to 8-bit RGBA, or "
            "to grey"
        )
    other = _open(content)
    layout, tiles = f"{rawmode[:-1]}{order}", []
    for tile in other.tile:  # type: ignore[attr-defined]
        fields = (*tile[:3], (layout, *tile[3][1:]) if isinstance(tile[3], tuple) else layout)
        # Tiles are named tuples since Pillow 11.
        tiles.append(type(tile)(*fields) if hasattr(tile, "_fields") else fields)
    other.tile = tiles  # type: ignore[attr-defined]
    low: Any = ImageOps.exif_transpose(_loaded(other))
    high: NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
    values: NDArray[np.uint16] = high * np.uint16(256) + np.asarray(low)
    return values


@contextmanager
def _decode_errors(content: bytes) -> Iterator[None]:
    """Convert the exceptions that Pillow raises for damaged files to UnreadableImageError."""
    try:
        with warnings.catch_warnings():
            # Damaged metadata is harmless, and `_open` checks the size.
            warnings.simplefilter("ignore")
            yield
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        # Pillow's message contains a memory address, which would make the records of two runs differ.
        raise UnreadableImageError(_unidentified(content[:HEAD_BYTES])) from None
    except DECODE_ERRORS as error:
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from None


def _unidentified(head: bytes) -> str:
    if not head:
        return "empty file"
    suffix = foreign_suffix(head)
    if hint := advice(suffix):
        return f"not a decodable image; the content looks like {suffix} ({hint})"
    kind = format_of(head)
    return f"not a decodable image, though it begins like {kind}: convert to PNG" if kind else "not an image"
