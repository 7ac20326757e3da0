"""The values of black and white in an image file, from its metadata and sample format.

The range never depends on an image's own darkest and brightest pixel: brightness is information, and the images of a
data set must stay comparable.
"""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

# TIFF tags.
_BITS, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT, _SMAX_SAMPLE = 258, 262, 281, 339, 341


@dataclass(frozen=True)
class Range:
    """Value range of a file's samples. Black is 0.

    Attributes:
        white: the value of white.
        bits: significant bits, if the file declares fewer than it stores.
        scaled: Pillow itself scales the values to the full range, according to the file's metadata.
        inverted: Pillow returns 0 for white.
        unsigned: Pillow returns unsigned 32-bit values as signed ones.
    """

    white: float
    bits: int | None = None
    scaled: bool = False
    inverted: bool = False
    unsigned: bool = False


def range_of(image: Image.Image, content: bytes) -> Range:
    """The value range of an image that Pillow has opened but not yet loaded.

    Args:
        content: the file's bytes.
    """
    whole = 1.0 if image.mode == "F" else 65535.0
    if image.format == "TIFF":
        return _of_tiff(image)
    if image.format == "PNG":
        bits = _significant_bits(content)
        return Range(2.0**bits - 1 if bits else whole, bits)
    if image.format == "PPM":
        return Range(whole, scaled=image.tile[0][0] != "raw")  # type: ignore[attr-defined]
    if image.format == "JPEG2000":
        # Ssiz of the first component, in the marker segment SIZ, which follows SOC (ISO 15444-1, A.5.1).
        at = content.find(b"\xff\x4f\xff\x51") + 42
        bits = (content[at] & 0x7F) + 1 if 42 <= at < len(content) else 16
        # Pillow shifts the values to the left.
        return Range(float((2**bits - 1) << max(0, 16 - bits)), scaled=bits < 16)
    return Range(whole)


def is_spread(values: NDArray[Any], bits: int) -> bool:
    """Whether the 16-bit values of a PNG with sBIT `bits` were scaled to 16 bits, as its specification requires.

    Some programs write sBIT for unscaled values. The low bits of scaled values are 0 or repeat the high bits.
    """
    if values.max() >= 2**bits:
        return True
    low = values & (2 ** (16 - bits) - 1)
    return bool((low <= (values >> bits) + 1).all())


def _of_tiff(image: Image.Image) -> Range:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]

    def first(tag: int, default: Any) -> Any:
        value = tags.get(tag, default)
        return value[0] if isinstance(value, tuple) and value else value

    # Values other than 2^k - 1 are statistics of one image, which by TIFF 6.0 must not change its appearance.
    declared = [first(tag, None) for tag in (_SMAX_SAMPLE, _MAX_SAMPLE)]
    depths = [bits for value in declared for bits in range(1, 33) if value == 2**bits - 1]
    inverted = first(_PHOTOMETRIC, 1) == 0 and image.mode in {"I", "I;16", "I;16B", "F"}
    if image.mode == "F":
        return Range(2.0 ** depths[0] - 1 if depths else 1.0, inverted=inverted)
    signed = first(_SAMPLE_FORMAT, 1) == 2
    stored = int(first(_BITS, 8)) - signed
    bits = depths[0] if depths and depths[0] < stored else stored
    unsigned = not signed and stored == 32
    return Range(2.0**bits - 1, bits if bits < stored else None, inverted=inverted, unsigned=unsigned)


def _significant_bits(content: bytes) -> int | None:
    """The largest number of significant bits per channel in the sBIT chunk of a PNG, if below 16, else None."""
    at = 8
    while at + 12 <= len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if kind == b"sBIT" and 1 <= size <= 4:
            bits = max(content[at + 8 : at + 8 + size])
            return bits if 0 < bits < 16 else None
        if kind in {b"IDAT", b"PLTE"}:
            return None
        at += 12 + size
    return None
