"""Which values stand for black and white in an image file, by what the file says and by what it has.

The range is of the file's kind, never of one image's own darkest and brightest pixel: brightness is information, and
the images of one set stay comparable.
"""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

# Tags of TIFF.
_BITS, _PHOTOMETRIC, _MAX_SAMPLE, _SAMPLE_FORMAT, _SMAX_SAMPLE = 258, 262, 281, 339, 341


@dataclass(frozen=True)
class Range:
    """The values of a file's samples. Black is 0.

    Attributes:
        white: the value that stands for white.
        bits: how many of the stored bits are used, where the file says so and it isn't all.
        scaled: whether Pillow spreads the values over all bits itself, as the file says.
        inverted: whether Pillow gives 0 for white.
        unsigned: whether Pillow gives values of 32 bits with the wrong sign.
    """

    white: float
    bits: int | None = None
    scaled: bool = False
    inverted: bool = False
    unsigned: bool = False


def range_of(image: Image.Image, content: bytes) -> Range:
    """The range of a file that Pillow has opened and not yet loaded.

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
        # Pillow shifts them to the left.
        return Range(float((2**bits - 1) << max(0, 16 - bits)), scaled=bits < 16)
    return Range(whole)


def is_spread(values: NDArray[Any], bits: int) -> bool:
    """Whether the values of 16 bits of a PNG are `bits` bits spread over 16, which sBIT means by PNG's specification.

    Some programs write sBIT beside values that were not spread. Those are told by their low bits, which after spreading
    are 0 or repeat the high ones.
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

    # Other values than those of a bit depth are statistics of one image, which TIFF 6.0 says must not change its look.
    said = [first(tag, None) for tag in (_SMAX_SAMPLE, _MAX_SAMPLE)]
    named = [bits for value in said for bits in range(1, 33) if value == 2**bits - 1]
    inverted = first(_PHOTOMETRIC, 1) == 0 and image.mode in {"I", "I;16", "I;16B", "F"}
    if image.mode == "F":
        return Range(2.0 ** named[0] - 1 if named else 1.0, inverted=inverted)
    signed = first(_SAMPLE_FORMAT, 1) == 2
    stored = int(first(_BITS, 8)) - signed
    bits = named[0] if named and named[0] < stored else stored
    unsigned = not signed and stored == 32
    return Range(2.0**bits - 1, bits if bits < stored else None, inverted=inverted, unsigned=unsigned)


def _significant_bits(content: bytes) -> int | None:
    """The bits that the chunk sBIT of a PNG says, of the channel that has most; None where it says none."""
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
