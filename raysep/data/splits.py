"""The split of a domain into seen_train, seen_test and unseen, and its table in the run directory."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysep.config import CapConfig, DomainConfig, SplitConfig
from raysep.data.classes import of_large_classes, with_known_names
from raysep.data.files import in_short
from raysep.data.source import Record
from raysep.errors import ConfigError

SEEN_TRAIN, SEEN_TEST, UNSEEN = "seen_train", "seen_test", "unseen"

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("row", pa.int64()),
        ("class_name", pa.string()),
        ("label", pa.int32()),
        # seen_train, seen_test, unseen, or the name of a domain.
        ("role", pa.string()),
        # Which draw of unseen classes the row belongs to: 0 where there is one draw.
        ("rotation", pa.int32()),
    ]
)
ROLE_OF_PART = {"train": SEEN_TRAIN, "test": SEEN_TEST, "unseen": UNSEEN}
# A class must leave something on each side of what is done with it.
MIN_SEEN, MIN_UNSEEN = 3, 2
# Under this key of a table's metadata is what was left out.
LEFT_OUT = b"raysep.left_out"
# A record, and the role that it has in one rotation.
Placed = tuple[Record, str]


def draw_split(
    records: Sequence[Record],
    config: SplitConfig | None,
    caps: CapConfig | None = None,
    domains: Sequence[DomainConfig] = (),
    others: Mapping[str, Sequence[Record]] | None = None,
    least: int = 1,
) -> pa.Table:
    """Give each image its role and its label, in each rotation.

    Seen classes have the labels 0, 1, ... in the order of their names, which index the classifier's
    outputs; unseen classes go on from there, and classes that only a domain has after them. Classes that
    are neither are left out.

    Args:
        records: all images of the source.
        config: how to draw; None where the source is a split already.
        caps: how many images of a class are kept; all if unset.
        domains: further images that are evaluated.
        others: the images of each domain that has a source of its own.
        least: images that a class must have: smaller ones are left out, also where `config` names them.

    Returns:
        A table of `SCHEMA`, sorted by rotation, role and image_id. The same arguments always give the same.
        `left_out` has what was left out of it.

    Raises:
        ConfigError: with every reason why no split can be drawn.
    """
    parts = {record.part for record in records}
    records, small = of_large_classes(records, least)
    too_small = {"": small}
    if config is not None:
        config = with_known_names(config, sorted({record.class_name for record in records}), set(small))
    large: dict[str, Sequence[Record]] = {}
    for name, images in (others or {}).items():
        large[name], too_small[f"data.domains, {name}: "] = of_large_classes(images, least)
    sentences = [
        f"{where}{len(of_class)} class{'es' if len(of_class) > 1 else ''} with fewer images than data.min_per_class = "
        f"{least}: " + in_short([f"{name} ({count})" for name, count in sorted(of_class.items())])
        for where, of_class in too_small.items()
        if of_class
    ]
    if "unseen" in parts and config is not None:
        raise ConfigError(
            ["data.split: the directory is a split already (train, test, unseen): leave data.split, or --unseen, out"]
        )
    if "unseen" not in parts and config is None:
        raise ConfigError(["data.split: expected `unseen` (class names) or `unseen_fraction`, got nothing"])
    tables, problems = [], []
    for rotation, unseen in enumerate([None] if config is None else _unseen_classes(records, config)):
        placed = _given_roles(records) if config is None or unseen is None else _drawn_roles(records, config, unseen)
        placed = _capped(placed, caps or CapConfig(), config.seed if config is not None else 42)
        problems += [*_problems(placed), *_untrained(placed)]
        for domain in domains:
            if domain.source is not None:
                images = large.get(domain.name, [])
                if len({record.class_name for record in images}) < 2:
                    problems.append(f"data.domains, {domain.name}: 2 classes or more can be told apart")
                placed += [(record, domain.name) for record in images]
            else:
                of = UNSEEN if domain.of == "unseen" else SEEN_TEST
                corrupted = [(record, domain.name) for record, role in placed if role == of]
                if not corrupted:
                    problems.append(f"data.domains, {domain.name}: there are no images of {of} to corrupt")
                placed += corrupted
        tables.append(_table(placed, rotation))
    if problems:
        raise ConfigError([*dict.fromkeys(problems), *(f"left out before: {sentence}" for sentence in sentences)])
    return pa.concat_tables(tables).replace_schema_metadata({LEFT_OUT: json.dumps(sentences)})


def left_out(split: pa.Table) -> list[str]:
    """What `draw_split` left out, a sentence each. Not kept in the file of a split."""
    sentences: list[str] = json.loads((split.schema.metadata or {}).get(LEFT_OUT, b"[]"))
    return sentences


def hold_out(labels: NDArray[np.int32], fraction: float, seed: int) -> NDArray[np.bool_]:
    """A stratified draw: about `fraction` of each class, at least one image, never all of them.

    Args:
        labels: (N,), any order.

    Returns:
        (N,) mask of what is held out. A class of one image keeps it.
    """
    held = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[rng.permutation(members)[:count]] = True
    return held


def select(split: pa.Table, role: str, rotation: int = 0) -> pa.Table:
    """The rows of one role in one rotation, sorted by image_id."""
    wanted = pa.compute.and_(pa.compute.equal(split["role"], role), pa.compute.equal(split["rotation"], rotation))
    return split.filter(wanted)


def seen_classes(split: pa.Table, rotation: int = 0) -> list[str]:
    """Class names by label, as the classifier's outputs have them."""
    rows = pa.concat_tables([select(split, role, rotation) for role in (SEEN_TRAIN, SEEN_TEST)])
    return sorted(rows["class_name"].unique().to_pylist())


def fingerprint(split: pa.Table) -> str:
    """SHA-256 of the ids, labels and roles: what a run's results are about."""
    digest = hashlib.sha256()
    names = ("image_id", "class_name", "label", "role", "rotation")
    # Piece by piece: all of them as Python's objects would be many times the table.
    for piece in split.select(names).to_batches(max_chunksize=4096):
        for row in zip(*(column.to_pylist() for column in piece.columns), strict=True):
            digest.update("\x1f".join(map(str, row)).encode() + b"\x1e")
    return digest.hexdigest()


def to_parquet(split: pa.Table) -> bytes:
    """The file's content."""
    sink = io.BytesIO()
    pq.write_table(split, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(content: bytes) -> pa.Table:
    """The table that `to_parquet` wrote."""
    # Without threads, as `table.read` says why.
    return pq.read_table(io.BytesIO(content), schema=SCHEMA, use_threads=False, pre_buffer=False)


def _table(placed: Sequence[Placed], rotation: int) -> pa.Table:
    seen = sorted({record.class_name for record, role in placed if role in (SEEN_TRAIN, SEEN_TEST)})
    unseen = sorted({record.class_name for record, role in placed if role == UNSEEN})
    rest = sorted({record.class_name for record, _ in placed} - {*seen, *unseen})
    label = {name: index for index, name in enumerate([*seen, *unseen, *rest])}
    ordered = sorted(placed, key=lambda pair: (pair[1], pair[0].image_id))
    return pa.table(
        {
            "image_id": [record.image_id for record, _ in ordered],
            "path": [record.path for record, _ in ordered],
            "row": [record.row for record, _ in ordered],
            "class_name": [record.class_name for record, _ in ordered],
            "label": [label[record.class_name] for record, _ in ordered],
            "role": [role for _, role in ordered],
            "rotation": [rotation] * len(ordered),
        },
        schema=SCHEMA,
    )


def _given_roles(records: Sequence[Record]) -> list[Placed]:
    seen = {record.class_name for record in records if record.part in {"train", "test"}}
    both = sorted(seen & {record.class_name for record in records if record.part == "unseen"})
    if both:
        raise ConfigError([f"data.source.path: both seen (train, test) and unseen: {', '.join(both)}"])
    return [(record, ROLE_OF_PART[record.part or ""]) for record in records]


def _untrained(placed: Sequence[Placed]) -> list[str]:
    """Seen classes that only the held out part of a source has."""
    trained = {record.class_name for record, role in placed if role == SEEN_TRAIN}
    untrained = sorted({record.class_name for record, role in placed if role == SEEN_TEST} - trained)
    return (
        [f"data.source.path: classes in test but not in train: {', '.join(untrained)}"] if trained and untrained else []
    )


def _unseen_classes(records: Sequence[Record], config: SplitConfig) -> list[set[str]]:
    """The unseen classes of each rotation."""
    classes = sorted({record.class_name for record in records})
    if config.unseen == "all":
        return [set(classes)]
    if config.unseen is not None:
        return [set(config.unseen)]
    assert config.unseen_fraction is not None
    # Classes that must be seen can't be drawn; without rotations, nor need a class be in any draw.
    drawable = [name for name in classes if name not in (config.seen or [])]
    count = min(round(config.unseen_fraction * len(classes)), len(drawable))
    if config.rotations * count > len(drawable):
        raise ConfigError(
            [f"data.split: {config.rotations} disjoint draws of {count} classes need more than the {len(drawable)}"]
        )
    order = np.random.default_rng(config.seed).permutation(drawable).tolist()
    return [set(order[count * rotation : count * (rotation + 1)]) for rotation in range(config.rotations)]


def _drawn_roles(records: Sequence[Record], config: SplitConfig, unseen: set[str]) -> list[Placed]:
    classes = sorted({record.class_name for record in records})
    seen = set(classes) - unseen if config.seen is None else set(config.seen)
    labels = np.searchsorted(classes, [record.class_name for record in records]).astype(np.int32)
    # Held out by position in image_id order, so that the order of the listing doesn't matter.
    order = np.argsort([record.image_id for record in records], kind="stable")
    test = np.zeros(len(records), dtype=bool)
    test[order] = hold_out(labels[order], config.test_fraction, config.seed)
    placed: list[Placed] = []
    for record, held in zip(records, test, strict=True):
        if record.class_name in unseen:
            placed.append((record, UNSEEN))
        elif record.class_name in seen and record.part is not None:
            # The source says itself which images are for testing.
            placed.append((record, ROLE_OF_PART[record.part]))
        elif record.class_name in seen:
            placed.append((record, SEEN_TEST if held else SEEN_TRAIN))
    return placed


def _capped(placed: Sequence[Placed], caps: CapConfig, seed: int) -> list[Placed]:
    """No more images of a class in a role than its cap, drawn at random, in their order."""
    limits: dict[str, int | None] = dict(caps)
    groups: dict[tuple[str, str], list[Placed]] = {}
    for pair in sorted(placed, key=lambda pair: pair[0].image_id):
        groups.setdefault((pair[1], pair[0].class_name), []).append(pair)
    rng = np.random.default_rng(seed)
    kept: list[Placed] = []
    for (role, _), members in sorted(groups.items()):
        limit = limits[role]
        chosen = range(len(members)) if limit is None else sorted(rng.permutation(len(members))[:limit].tolist())
        kept += [members[position] for position in chosen]
    return kept


def _problems(placed: Sequence[Placed]) -> list[str]:
    problems = []
    unseen = Counter(record.class_name for record, role in placed if role == UNSEEN)
    seen = Counter(record.class_name for record, role in placed if role != UNSEEN)
    if len(unseen) < 2:
        problems.append(f"data: 2 unseen classes or more can be told apart, got {len(unseen)}")
    for name, count in sorted(unseen.items()):
        if count < MIN_UNSEEN:
            problems.append(
                f"data: the unseen class {name!r} has {count} image, expected {MIN_UNSEEN} or more; "
                f"data.min_per_class: {MIN_UNSEEN} leaves such classes out"
            )
    for name, count in sorted(seen.items()):
        if count < MIN_SEEN:
            problems.append(
                f"data: the seen class {name!r} has {count} images, expected {MIN_SEEN} or more "
                f"(train, validation, test); data.min_per_class: {MIN_SEEN} leaves such classes out"
            )
    doubled = [name for name, count in Counter(record.image_id for record, _ in placed).items() if count > 1]
    if doubled:
        problems.append(f"data: {len(doubled)} image ids occur twice, for example {doubled[0]!r}")
    return problems
