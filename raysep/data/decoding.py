"""From the bytes of an image file to 8 bits a channel, so that nothing visible is lost.

**Values** of more than 8 bits are scaled by one range for all images of a kind, which is, in this order:

1. 0 to 2^b - 1 for a given `bit_depth` b. (Fewer than 8 bits in files of 8 are scaled up in the same way.)
2. What the file says: BitsPerSample of TIFF, or its MaxSampleValue or SMaxSampleValue where that is 2^k - 1; sBIT of
   PNG, where the values are not spread over 16 bits already; maxval of PGM; the precision of JPEG 2000.
3. All bits that the file has for integers (without the sign), and 0 to 1 for floats.

Unreadable, in words: a value beyond the range, negative ones, NaN, and integers of 32 bits that would all be black.

**Colours.** 1, L, P, PA, CMYK, YCbCr, HSV and LAB become RGB by Pillow's conversions, without colour profiles; grey is
made from RGB by ITU-R 601-2. WhiteIsZero of TIFF is inverted. Of animations and pages the first is taken; channels
beyond those of Pillow's modes (infrared, say) are left out.

**Transparency.** The image is laid on white, or on black where on white next to nothing of it could be seen (a white
drawing). The hidden colour of transparent pixels plays no part.
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

# 268 MB as RGB. Compressed, so many may be some kilobytes.
MOST_PIXELS = 89_478_485
# What Pillow's readers make of damaged files, as mutated ones have shown.
DAMAGED = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, RuntimeError, LookupError, ArithmeticError),
    *(struct.error, Image.DecompressionBombError),
)
# A smaller share of the range between the darkest and the brightest pixel is next to nothing.
LEAST_SPREAD = 0.05


class UnreadableImageError(ValueError):
    """The bytes are not an image that can be decoded whole."""


@dataclass(frozen=True)
class Samples:
    """What a file holds.

    Attributes:
        image: decoded by Pillow and upright, in Pillow's mode for the file.
        values: (H, W) or (H, W, bands), where `image` doesn't have them in 8 bits already, else None.
        white: the value that stands for white; black is 0.
        inverted: whether it is the other way round.
        kind: format and mode by Pillow's names, as in `TIFF I;16`.
    """

    image: Image.Image
    values: NDArray[Any] | None = None
    white: float = 255.0
    inverted: bool = False
    kind: str = ""


def decode(content: bytes, channels: int = 3, bit_depth: int | None = None) -> Image.Image:
    """Decode an image as the module says: 8 bits, EXIF rotation applied, first frame only.

    Args:
        channels: 3 gives RGB, 1 grey.
        bit_depth: bits that the values have, 1 to 32; None: what the file says, else all bits that it has.

    Raises:
        UnreadableImageError: empty, truncated, of more than `MOST_PIXELS`, values that nothing says the range of, or
            not an image.
    """
    samples = read_samples(content, bit_depth)
    with _in_words(content):
        return to_mode(eight_bits(samples), "RGB" if channels == 3 else "L")


def read_samples(content: bytes, bit_depth: int | None = None) -> Samples:
    """The values of an image file as they are stored. Raises UnreadableImageError."""
    with _in_words(content):
        opened = _open(content)
        rawmode, found = _rawmode(opened), range_of(opened, content)
        image = ImageOps.exif_transpose(_loaded(opened))
        kind = f"{opened.format} {opened.mode}"
        given = None if bit_depth is None or found.scaled else bit_depth
        white = found.white if given is None else 2.0**given - 1
        if image.mode in {"F", "I"} or image.mode.startswith("I;16"):
            values: NDArray[Any] = np.asarray(image)
            # Pillow has no mode for unsigned ones of 32 bits.
            values = values.view(np.uint32) if found.unsigned and image.mode == "I" else values
        elif rawmode.endswith((";16L", ";16B", ";16N")) and (given or found.bits or 16) < 16:
            values = _wide_colours(content, image, rawmode)
        elif given is not None and given < 8 and image.mode in {"L", "LA", "RGB", "RGBA"}:
            # Pillow spreads samples that are stored in fewer than 8 bits.
            packed = re.search(r";[124]", rawmode) is not None
            return Samples(image, kind=kind) if packed else Samples(image, np.asarray(image), white, kind=kind)
        else:
            return Samples(image, kind=kind)
        if given is None and opened.format == "PNG" and found.bits and is_spread(values, found.bits):
            white = 65535.0
        return Samples(image, values, white, found.inverted, kind)


def frames(content: bytes) -> int:
    """How many frames or pages a file has, of which the first is decoded; 1 for previews beside a photograph."""
    with _in_words(content):
        opened = _open(content)
        return 1 if opened.format == "MPO" else int(getattr(opened, "n_frames", 1))


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image of any of Pillow's modes with 8 bits a channel as `RGB` or `L`, without transparency."""
    if image.mode in {"La", "RGBa"}:
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode == "P" or image.has_transparency_data:
        image = _laid_on_a_ground(image.convert("RGBA"))
    if image.mode in {"LAB", "HSV"}:
        # To which other modes Pillow has no way.
        image = image.convert("RGB")
    return image.convert(mode)


def spread(image: Image.Image) -> int:
    """The largest difference between two pixels in one channel, 0 to 255: 0 where an image is of one colour."""
    extrema: Any = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return int(max(high - low for low, high in bands))


def eight_bits(samples: Samples) -> Image.Image:
    """The image with 8 bits a channel, transparency included. Raises UnreadableImageError."""
    image, values = samples.image, samples.values
    if values is None:
        return image
    # Transparency is no brightness: all of its 8 bits are used.
    alpha = values[..., -1:] if values.dtype == np.uint8 and image.mode in {"LA", "RGBA"} else None
    bands: Any = scaled(values if alpha is None else values[..., :-1], samples.white)
    if alpha is not None:
        bands = np.concatenate([bands, alpha], axis=2)
    if samples.inverted:
        bands = 255 - bands
    if bands.ndim == 3:
        return Image.merge(image.mode, [Image.fromarray(bands[..., band]) for band in range(bands.shape[2])])
    grey = Image.fromarray(bands)
    hole = image.info.get("transparency")
    if isinstance(hole, int):
        grey.putalpha(Image.fromarray(np.where(values == hole, 0, 255).astype(np.uint8)))
    return grey


def scaled(values: NDArray[Any], white: float) -> NDArray[np.uint8]:
    """0 to `white` as 0 to 255, rounded. Raises UnreadableImageError for what lies beyond, or would all be black."""
    whole = np.issubdtype(values.dtype, np.integer)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise UnreadableImageError("pixels are NaN or infinite")
    what = f"pixels are {'integers' if whole else 'floats'} from {low:.10g} to {high:.10g}"
    # Rounding errors of whoever wrote floats: less than half a grey level.
    slack = 0.0 if whole else white / 510
    if low < -slack:
        raise UnreadableImageError(f"{what}, expected none below 0: convert the files")
    if high > white + slack:
        raise UnreadableImageError(
            f"{what}, expected none above {white:.10g}: set data.bit_depth to the bits that the values have (8 where "
            "white is 255, 16 where it is 65535)"
        )
    if white > 65535 and 0 < high < white / 510:
        raise UnreadableImageError(
            f"{what}, which would all be black, as white is {white:.10g}: set data.bit_depth to the bits that the "
            "values have (10 where white is 1023)"
        )
    if whole and white <= 65535:
        levels: NDArray[np.uint8] = np.rint(np.arange(int(white) + 1) * (255 / white)).astype(np.uint8)[values]
    else:
        levels = np.rint(np.clip(values.astype(np.float64) * (255 / white), 0, 255)).astype(np.uint8)
    return levels


def _laid_on_a_ground(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB: as it looks on white, or on black where on white it can't be seen."""
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    on_white, on_black = (
        Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
        for ground in ("white", "black")
    )
    return on_black if spread(on_white) < LEAST_SPREAD * 255 and spread(on_black) > spread(on_white) else on_white


def _open(content: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content), formats=formats())
    if image.width * image.height > MOST_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS}")
    return image


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    hole = image.info.get("transparency")
    if isinstance(hole, tuple) and max(hole) > 255:
        # Of 16 bits, in an image of which Pillow keeps the high 8.
        image.info["transparency"] = tuple(value >> 8 for value in hole)
    return image


def _rawmode(image: Image.Image) -> str:
    """How Pillow calls the layout of the file's samples, as in `RGB;16B`. To be asked before pixels are loaded."""
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str((args[0] if isinstance(args, tuple) else args) or "")


def _wide_colours(content: bytes, image: Image.Image, rawmode: str) -> NDArray[np.uint16]:
    """(H, W, bands) values of 16 bits, of which Pillow keeps the high byte: the low one is the high one if swapped."""
    order = {"L": "B", "B": "L", "N": "B" if np.little_endian else "L"}[rawmode[-1]]
    if rawmode.startswith(("LA;", "RGBa;")):
        raise UnreadableImageError("fewer than 16 bits in a file of 16 with transparency: convert to RGBA or grey")
    other = _open(content)
    layout, tiles = f"{rawmode[:-1]}{order}", []
    for tile in other.tile:  # type: ignore[attr-defined]
        fields = (*tile[:3], (layout, *tile[3][1:]) if isinstance(tile[3], tuple) else layout)
        # Pillow 11 gave them names.
        tiles.append(type(tile)(*fields) if hasattr(tile, "_fields") else fields)
    other.tile = tiles  # type: ignore[attr-defined]
    low: Any = ImageOps.exif_transpose(_loaded(other))
    high: NDArray[np.uint16] = np.asarray(image).astype(np.uint16)
    values: NDArray[np.uint16] = high * np.uint16(256) + np.asarray(low)
    return values


@contextmanager
def _in_words(content: bytes) -> Iterator[None]:
    """Raise UnreadableImageError for everything that Pillow makes of a damaged file."""
    try:
        with warnings.catch_warnings():
            # About damaged metadata, and about sizes that are refused here.
            warnings.simplefilter("ignore")
            yield
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        # Pillow's own words hold an address in memory, which would make two runs differ.
        raise UnreadableImageError(_unknown(content[:HEAD_BYTES])) from None
    except DAMAGED as error:
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from None


def _unknown(head: bytes) -> str:
    if not head:
        return "empty file"
    suffix = foreign_suffix(head)
    if todo := advice(suffix):
        return f"not an image that can be decoded, but like {suffix} ({todo})"
    kind = format_of(head)
    return f"not an image that can be decoded, though it begins like {kind}: convert to PNG" if kind else "not an image"
