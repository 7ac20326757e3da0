"""What a run will use, and what its images warn of, from the split and a look at a few images of each role."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from raysep.config import DataConfig
from raysep.config.names import LEAST_HALVED
from raysep.data.classes import in_code
from raysep.data.decoding import (
    LEAST_SPREAD,
    Samples,
    UnreadableImageError,
    eight_bits,
    frames,
    read_samples,
    spread,
    to_mode,
)
from raysep.data.files import in_short
from raysep.data.given_bits import GivenBits
from raysep.data.source import Reader, Remarks, Source
from raysep.data.splits import SEEN_TEST, SEEN_TRAIN, UNSEEN, left_out, select
from raysep.errors import ConfigError
from raysep.storage.retries import is_transient

# Images of each role that are looked at: when a run begins, and where somebody waits for nothing else.
SAMPLE, LARGE_SAMPLE = 32, 256
# Classes, from the first and from the last, and ids that are shown.
CLASSES_SHOWN, IDS_SHOWN = 5, 3
# Values that stay below this share of white leave two bits unused: no camera's images do by themselves.
UNUSED = 0.25
EXACT = ("PNG", "TIFF", "BMP")
USUAL_BITS = (1, 2, 4, 5, 6, 8, 10, 12, 14, 16, 24)


@dataclass
class Looked:
    """What was seen of some images of a role.

    Attributes:
        role: of the split.
        classes: images of each class of the role, of the first rotation.
        ids: of the images that were looked at.
        sizes, kinds: how many images have which width and height, and which format and mode.
        unreadable: why an image can't be read.
        plain, faint: ids of images of one colour, and of those that use less than `LEAST_SPREAD` of the range.
        several: ids of files of several frames or pages.
        tops: the highest value of each image, and the value that stands for white.
        contents: ids by the hash of the file's content.
    """

    role: str
    classes: Counter[str]
    ids: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)
    faint: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    tops: list[tuple[float, float]] = field(default_factory=list)
    contents: dict[str, list[str]] = field(default_factory=dict)

    def add(self, image_id: str, reader: Reader, path: str | None, row: int | None) -> None:
        """Look at one more image."""
        bit_depth = reader.bit_depth if isinstance(reader, GivenBits) else None
        source = reader.source if isinstance(reader, GivenBits) else reader
        self.ids.append(image_id)
        try:
            content = source.read(path, row)
            samples = read_samples(content, bit_depth)
            self._measure(image_id, samples if samples.values is not None else _all_bits(content, samples))
            if frames(content) > 1:
                self.several.append(image_id)
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
        used = spread(image)
        if used == 0:
            self.plain.append(image_id)
        elif used < LEAST_SPREAD * 255:
            self.faint.append(image_id)
        if samples.values is None or samples.inverted:
            self.tops.append((float(np.asarray(image).max()), 255.0))
        else:
            self.tops.append((float(samples.values.max()), samples.white))

    @property
    def lossy(self) -> bool:
        """Whether there are formats that spread their values over all bits, or whose values are not exact."""
        return any(not kind.startswith(EXACT) for kind in self.kinds)


def _all_bits(content: bytes, samples: Samples) -> Samples:
    """The samples, with all 16 bits of colours of which only the high ones are read otherwise."""
    try:
        found = read_samples(content, 15)
    except UnreadableImageError:
        # Grey with transparency, whose low bits Pillow doesn't give.
        return samples
    return samples if found.values is None else replace(found, white=65535.0)


def look(data: DataConfig, readers: Mapping[str, Reader], split: pa.Table, sample: int = SAMPLE) -> list[Looked]:
    """Look at images of each role of the first rotation, evenly over its ids, so that all classes have their turn.

    Args:
        readers: where the images of each role are read.
        sample: how many images of a role at most.
    """
    found = []
    for role in [SEEN_TRAIN, SEEN_TEST, UNSEEN, *(domain.name for domain in data.domains)]:
        rows = select(split, role)
        if rows.num_rows:
            looked = Looked(role, Counter(rows["class_name"].to_pylist()))
            positions = np.unique(np.linspace(0, rows.num_rows - 1, sample).round().astype(int))
            for image in rows.take(positions).to_pylist():
                looked.add(image["image_id"], readers[role], image["path"], image["row"])
            found.append(looked)
    return found


def check_readable(data: DataConfig, looked: Sequence[Looked]) -> None:
    """Raise ConfigError where no image of a role that was looked at can be read, and some must be."""
    problems = [
        f"data: none of {len(role.ids)} images of {role.role} that were looked at can be read: "
        + in_short([f"{image_id} ({why})" for image_id, why in sorted(role.unreadable.items())])
        for role in looked
        if role.ids and len(role.unreadable) == len(role.ids) and data.max_failed_share < 1
    ]
    if problems:
        raise ConfigError(problems)


def remarks_of(data: DataConfig, readers: Mapping[str, Reader], split: pa.Table, looked: Sequence[Looked]) -> Remarks:
    """What there is to say of the images of a run: what was left out, how it was understood, and warnings."""
    skipped, notes = left_out(split), list[str]()
    named = [("", UNSEEN), *((f"data.domains, {domain.name}: ", domain.name) for domain in data.domains)]
    for where, role in named:
        reader = readers[role]
        if isinstance(reader, Source):
            remarks = reader.remarks()
            skipped += [where + sentence for sentence in remarks.left_out]
            notes += [where + sentence for sentence in remarks.notes]
    return Remarks(tuple(skipped), (*notes, *warnings(data, looked)))


def warnings(data: DataConfig, looked: Sequence[Looked]) -> Iterator[str]:
    """What the images that were looked at, and the sizes of the classes, warn of, a sentence each."""
    for role in looked:
        of = f"of {len(role.ids)} images of {role.role} that were looked at"
        if role.unreadable:
            examples = in_short([f"{image_id} ({why})" for image_id, why in sorted(role.unreadable.items())])
            yield f"{len(role.unreadable)} {of}: can't be read: {examples}"
        if role.plain:
            yield f"{len(role.plain)} {of}: of one colour: {in_short(role.plain)}"
        if role.faint:
            yield (
                f"{len(role.faint)} {of}: under {LEAST_SPREAD:.0%} of the range from black to white: "
                f"{in_short(role.faint)}"
            )
        if role.several:
            yield (
                f"{len(role.several)} {of}: of several frames or pages, the first of which is taken: "
                f"{in_short(role.several)}"
            )
        yield from _unused_bits(role, data.bit_depth)
        alike: dict[str, list[str]] = {}
        for name in sorted(role.classes):
            alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
        pairs = [" and ".join(in_code(name) for name in names) for names in alike.values() if len(names) > 1]
        if pairs:
            yield f"classes of {role.role} whose names hardly differ, each counted for itself: {in_short(pairs)}"
        tiny = [f"{name} ({count})" for name, count in sorted(role.classes.items()) if count < LEAST_HALVED]
        capped = role.role == UNSEEN and (data.max_per_class.unseen or LEAST_HALVED) < LEAST_HALVED
        if tiny and role.role != SEEN_TRAIN:
            yield (
                f"classes of {role.role} with under {LEAST_HALVED} images: {len(tiny)} of {len(role.classes)}: "
                f"{in_short(tiny)}; some scores are not defined with them"
                + ("" if role.role == SEEN_TEST or capped else f" (data.min_per_class: {LEAST_HALVED} leaves them out)")
            )
    roles = {role.role for role in looked}
    if SEEN_TRAIN in roles and SEEN_TEST not in roles:
        yield "no images of seen classes are held out: there is no accuracy, and no split `seen`"
    yield from _doubled(data, looked)


def _unused_bits(role: Looked, given: int | None) -> Iterator[str]:
    """Values far below white in every image: files with room for more bits than the values have."""
    for white in sorted({white for _, white in role.tops}):
        tops = [top for top, other in role.tops if other == white]
        if 0 < max(tops) <= UNUSED * white:
            yield (
                f"no value of {len(tops)} images of {role.role} that were looked at is above {max(tops):.6g} of "
                f"{white:.10g}, so the images are dark"
            ) + ("" if given is not None or role.lossy else _bits_to_give(max(tops), white))


def _bits_to_give(highest: float, white: float) -> str:
    bits = next((bits for bits in USUAL_BITS if highest < 2**bits), None) if white > 1 else None
    return f"; if the values have {bits} bit{'s' if bits > 1 else ''}, set data.bit_depth: {bits}" if bits else ""


def _doubled(data: DataConfig, looked: Sequence[Looked]) -> Iterator[str]:
    """The same file under two ids. Images of a domain may be those of the run on purpose."""
    domains = {domain.name for domain in data.domains}
    same: dict[str, list[str]] = {}
    for role in looked:
        if role.role not in domains:
            for content, ids in role.contents.items():
                same.setdefault(content, []).extend(ids)
    doubled = [ids for ids in same.values() if len(ids) > 1]
    if doubled:
        examples = in_short([" = ".join(ids[:2]) for ids in doubled])
        yield f"{sum(map(len, doubled))} images that were looked at have the same content as another: {examples}"


def lines(looked: Sequence[Looked], remarks: Remarks) -> Iterator[str]:
    """The inventory for people, a line each."""
    for role in looked:
        classes = len(role.classes)
        yield f"{role.role}: {role.classes.total()} images of {classes} class{'es' if classes != 1 else ''}"
        yield f"  classes: {_classes(role.classes)}"
        yield f"  ids: {in_short(_first_middle_last(role.ids))}"
        seen = len(role.ids) - len(role.unreadable)
        if seen:
            yield f"  {seen} images looked at: {_sizes(role.sizes)}; {_listed(role.kinds)}"
    yield from (f"left out: {sentence}" for sentence in remarks.left_out)
    yield from (f"note: {sentence}" for sentence in remarks.notes)


def _classes(classes: Counter[str]) -> str:
    """Classes with their counts: all of a few, else the first and the last."""
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
