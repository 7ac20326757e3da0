"""Images whose files have room for more bits than their values have."""

from raysep.data.decoding import eight_bits, read_samples, to_mode
from raysep.data.source import Record, Remarks, Source, encode


class GivenBits(Source):
    """Another source's images, whose values have as many bits as `data.bit_depth` says. See `raysep.data.decoding`.

    Args:
        source: where the images are.
        bit_depth: 1 to 32.
    """

    def __init__(self, source: Source, bit_depth: int) -> None:
        self.source, self.bit_depth = source, bit_depth

    def records(self) -> list[Record]:
        """The other source's images."""
        return self.source.records()

    def remarks(self) -> Remarks:
        """What there is to say of the other source's images."""
        return self.source.remarks()

    def read(self, path: str | None, row: int | None) -> bytes:
        """The file, or a PNG of 8 bits where its values have others. Raises OSError, UnreadableImageError."""
        content = self.source.read(path, row)
        samples = read_samples(content, self.bit_depth)
        if samples.values is None:
            return content
        image = eight_bits(samples)
        return encode(to_mode(image, "L" if image.mode in {"L", "LA"} else "RGB"))
