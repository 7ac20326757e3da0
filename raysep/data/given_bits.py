"""Source wrapper that applies `data.bit_depth` to the images of another source."""

from raysep.data.decoding import eight_bits, read_samples, to_mode
from raysep.data.source import Record, Remarks, Source, encode


class WithBitDepth(Source):
    """Scales another source's images from `data.bit_depth` to 8 bits. See `raysep.data.decoding`.

    Args:
        source: reader of the original images.
        bit_depth: significant bits of the values, 1 to 32.
    """

    def __init__(self, source: Source, bit_depth: int) -> None:
        self.source, self.bit_depth = source, bit_depth

    def records(self) -> list[Record]:
        """The records of the wrapped source."""
        return self.source.records()

    def remarks(self) -> Remarks:
        """The remarks of the wrapped source."""
        return self.source.remarks()

    def read(self, path: str | None, row: int | None) -> bytes:
        """The file itself if it needs no scaling, else an 8-bit PNG. Raises OSError, UnreadableImageError."""
        content = self.source.read(path, row)
        samples = read_samples(content, self.bit_depth)
        if samples.values is None:
            return content
        image = eight_bits(samples)
        return encode(to_mode(image, "L" if image.mode in {"L", "LA"} else "RGB"))
