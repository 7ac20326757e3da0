"""Inventory of a run's images: classes and sizes per role, and warnings from a sample of the images."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from raysep.config import DataConfig
from raysep.config.names import LEAST_HALVED
from raysep.data.classes import quoted
from raysep.data.decoding import (
    MIN_CONTRAST,
    Samples,
    UnreadableImageError,
    contrast,
    eight_bits,
    frames,
    read_samples,
    to_mode,
)
from raysep.data.files import first_few
from raysep.data.given_bits import WithBitDepth
from raysep.data.source import Reader, Remarks, Source
from raysep.data.splits import SEEN_TEST, SEEN_TRAIN, UNSEEN, left_out, select
from raysep.errors import ConfigError
from raysep.storage.retries import is_transient

# Sampled images per role: at the start of a run, and for `raysep validate`.
SAMPLE, LARGE_SAMPLE = 32, 256
# Number of classes shown from each end of the list.
CLASSES_SHOWN = 5
# A maximum below this share of white leaves two bits unused, which camera images normally do not.
UNUSED = 0.25
EXACT = ("PNG", "TIFF", "BMP")
USUAL_BITS = (1, 2, 4, 5, 6, 8, 10, 12, 14, 16, 24)


@dataclass
class RoleSample:
    """Findings in a sample of a role's images.

    Attributes:
        role: role in the split.
        classes: number of images per class, in the first rotation.
        ids: ids of the sampled images.
        sizes, kinds: number of images by (width, height), and by format and mode.
        unreadable: error message by id.
        uniform, faint: ids of images of a single colour, and of those with less contrast than `MIN_CONTRAST`.
        multiframe: ids of files with several frames or pages.
        maxima: for each image, its highest value and the value of white.
        contents: ids by SHA-256 of the file.
    """

    role: str
    classes: Counter[str]
    ids: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    uniform: list[str] = field(default_factory=list)
    faint: list[str] = field(default_factory=list)
    multiframe: list[str] = field(default_factory=list)
    maxima: list[tuple[float, float]] = field(default_factory=list)
    contents: dict[str, list[str]] = field(default_factory=dict)

    def add(self, image_id: str, reader: Reader, path: str | None, row: int | None) -> None:
        """Inspect one image."""
        bit_depth = reader.bit_depth if isinstance(reader, WithBitDepth) else None
        source = reader.source if isinstance(reader, WithBitDepth) else reader
        self.ids.append(image_id)
        try:
            content = source.read(path, row)
            samples = read_samples(content, bit_depth)
            self._measure(image_id, samples if samples.values is not None else _all_bits(content, samples))
            if frames(content) > 1:
                self.multiframe.append(image_id)
        except (UnreadableImageError, OSError) as error:
            if is_transient(error):
                raise
            self.unreadable[image_id] = str(error)
        else:
            self.contents.setdefault(hashlib.sha256(content).hexdigest(), []).append(image_id)

    def _measure(self, image_id: str, samples: Samples) -> None:
        image = to_mode(eight_bits(samples), "RGB")
        self.sizes[samples.image.size] += 1
        self.kinds[samples.kind] += 1
        used = contrast(image)
        if used == 0:
            self.uniform.append(image_id)
        elif used < MIN_CONTRAST * 255:
            self.faint.append(image_id)
        if samples.values is None or samples.inverted:
            self.maxima.append((float(np.asarray(image).max()), 255.0))
        else:
            self.maxima.append((float(samples.values.max()), samples.white))

    @property
    def lossy(self) -> bool:
        """Whether some sampled formats compress lossily, or may rescale the images' values."""
        return any(not kind.startswith(EXACT) for kind in self.kinds)


def _all_bits(content: bytes, samples: Samples) -> Samples:
    """The samples, with all 16 bits for a colour image of which the decoder by itself reads only the high byte."""
    try:
        wide = read_samples(content, 15)
    except UnreadableImageError:
        # Grey with transparency: Pillow cannot return its low bits.
        return samples
    return samples if wide.values is None else replace(wide, white=65535.0)


def inspect(data: DataConfig, readers: Mapping[str, Reader], split: pa.Table, sample: int = SAMPLE) -> list[RoleSample]:
    """Inspect a sample of each role's images in the first rotation, evenly spaced over the sorted ids.

    Args:
        readers: by role.
        sample: images per role, at most.
    """
    samples = []
    for role in [SEEN_TRAIN, SEEN_TEST, UNSEEN, *(domain.name for domain in data.domains)]:
        rows = select(split, role)
        if rows.num_rows:
            inspected = RoleSample(role, Counter(rows["class_name"].to_pylist()))
            positions = np.unique(np.linspace(0, rows.num_rows - 1, sample).round().astype(int))
            for image in rows.take(positions).to_pylist():
                inspected.add(image["image_id"], readers[role], image["path"], image["row"])
            samples.append(inspected)
    return samples


def check_readable(data: DataConfig, samples: Sequence[RoleSample]) -> None:
    """Raise ConfigError if a role's sampled images are all unreadable, unless data.max_failed_share allows it."""
    problems = [
        f"data: none of {len(role.ids)} sampled images of {role.role} can be read: "
        + first_few([f"{image_id} ({why})" for image_id, why in sorted(role.unreadable.items())])
        for role in samples
        if role.ids and len(role.unreadable) == len(role.ids) and data.max_failed_share < 1
    ]
    if problems:
        raise ConfigError(problems)


def remarks_of(
    data: DataConfig, readers: Mapping[str, Reader], split: pa.Table, samples: Sequence[RoleSample]
) -> Remarks:
    """All remarks on the images of a run: ignored files, notes of the sources, and warnings."""
    skipped, notes = left_out(split), list[str]()
    named = [("", UNSEEN), *((f"data.domains, {domain.name}: ", domain.name) for domain in data.domains)]
    for where, role in named:
        reader = readers[role]
        if isinstance(reader, Source):
            remarks = reader.remarks()
            skipped += [where + sentence for sentence in remarks.left_out]
            notes += [where + sentence for sentence in remarks.notes]
    return Remarks(tuple(skipped), (*notes, *warnings(data, samples)))


def warnings(data: DataConfig, samples: Sequence[RoleSample]) -> Iterator[str]:
    """Warnings about the sampled images, class names and class sizes, a sentence each."""
    for role in samples:
        of = f"of {len(role.ids)} sampled images of {role.role}"
        if role.unreadable:
            examples = first_few([f"{image_id} ({why})" for image_id, why in sorted(role.unreadable.items())])
            yield f"{len(role.unreadable)} {of}: can't be read: {examples}"
        if role.uniform:
            yield f"{len(role.uniform)} {of}: a single colour: {first_few(role.uniform)}"
        if role.faint:
            yield (
                f"{len(role.faint)} {of}: contrast below {MIN_CONTRAST:.0%} of the range from black to white: "
                f"{first_few(role.faint)}"
            )
        if role.multiframe:
            yield (
                f"{len(role.multiframe)} {of}: several frames or pages, of which only the first is used: "
                f"{first_few(role.multiframe)}"
            )
        yield from _unused_bits(role, data.bit_depth)
        alike: dict[str, list[str]] = {}
        for name in sorted(role.classes):
            alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
        pairs = [" and ".join(quoted(name) for name in names) for names in alike.values() if len(names) > 1]
        if pairs:
            yield f"classes of {role.role} with nearly identical names, treated as different: {first_few(pairs)}"
        tiny = [f"{name} ({count})" for name, count in sorted(role.classes.items()) if count < LEAST_HALVED]
        capped = role.role == UNSEEN and (data.max_per_class.unseen or LEAST_HALVED) < LEAST_HALVED
        if tiny and role.role != SEEN_TRAIN:
            yield (
                f"{len(tiny)} of {len(role.classes)} classes of {role.role} have under {LEAST_HALVED} images: "
                f"{first_few(tiny)}; some scores are undefined for such classes"
                + ("" if role.role == SEEN_TEST or capped else f" (data.min_per_class: {LEAST_HALVED} leaves them out)")
            )
    roles = {role.role for role in samples}
    if SEEN_TRAIN in roles and SEEN_TEST not in roles:
        yield "no images of seen classes are held out, so there is no accuracy on seen classes and no split `seen`"
    yield from _duplicates(data, samples)


def _unused_bits(role: RoleSample, bit_depth: int | None) -> Iterator[str]:
    """A warning if all maxima are far below white: the files probably store more bits than the values use."""
    for white in sorted({white for _, white in role.maxima}):
        maxima = [maximum for maximum, other in role.maxima if other == white]
        if 0 < max(maxima) <= UNUSED * white:
            yield (
                f"no value of {len(maxima)} sampled images of {role.role} is above {max(maxima):.6g}, "
                f"where white is {white:.10g}, so the images are dark"
            ) + ("" if bit_depth is not None or role.lossy else _bit_depth_hint(max(maxima), white))


def _bit_depth_hint(highest: float, white: float) -> str:
    bits = next((bits for bits in USUAL_BITS if highest < 2**bits), None) if white > 1 else None
    return f"; if the values have {bits} bit{'s' if bits > 1 else ''}, set data.bit_depth: {bits}" if bits else ""


def _duplicates(data: DataConfig, samples: Sequence[RoleSample]) -> Iterator[str]:
    """A warning about identical files, except in domains, which may reuse the run's images on purpose."""
    domains = {domain.name for domain in data.domains}
    same: dict[str, list[str]] = {}
    for role in samples:
        if role.role not in domains:
            for content, ids in role.contents.items():
                same.setdefault(content, []).extend(ids)
    duplicates = [ids for ids in same.values() if len(ids) > 1]
    if duplicates:
        examples = first_few([" = ".join(ids[:2]) for ids in duplicates])
        yield f"{sum(map(len, duplicates))} sampled images have the same content as another: {examples}"


def lines(samples: Sequence[RoleSample], remarks: Remarks) -> Iterator[str]:
    """The inventory as lines of text."""
    for role in samples:
        classes = len(role.classes)
        yield f"{role.role}: {role.classes.total()} images of {classes} class{'es' if classes != 1 else ''}"
        yield f"  classes: {_classes(role.classes)}"
        yield f"  ids: {first_few(_first_middle_last(role.ids))}"
        readable = len(role.ids) - len(role.unreadable)
        if readable:
            yield f"  {readable} images sampled: {_sizes(role.sizes)}; {_listed(role.kinds)}"
    yield from (f"left out: {sentence}" for sentence in remarks.left_out)
    yield from (f"note: {sentence}" for sentence in remarks.notes)


def _classes(classes: Counter[str]) -> str:
    """Class names with counts: all of them if few, else the first and the last."""
    shown = [f"{name} ({count})" for name, count in sorted(classes.items())]
    if len(shown) <= 2 * CLASSES_SHOWN:
        return ", ".join(shown)
    return ", ".join(
        [*shown[:CLASSES_SHOWN], f"... {len(shown) - 2 * CLASSES_SHOWN} more ...", *shown[-CLASSES_SHOWN:]]
    )


def _first_middle_last(ids: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(ids[position] for position in (0, len(ids) // 2, len(ids) - 1)))


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if len(sizes) <= 3:
        return _listed(Counter({f"{width} x {height}": count for (width, height), count in sizes.items()}))
    widths, heights = zip(*sizes, strict=True)
    return f"{len(sizes)} sizes from {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(name if len(counts) == 1 else f"{name} ({count})" for name, count in counts.most_common())
