"""Splits of images into the roles seen_train, seen_test, unseen and domains, as a table in the run directory."""

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
from raysep.data.classes import match_class_names, without_small_classes
from raysep.data.files import first_few
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
        # Index of the draw of unseen classes; 0 without rotations.
        ("rotation", pa.int32()),
    ]
)
ROLE_OF_PART = {"train": SEEN_TRAIN, "test": SEEN_TEST, "unseen": UNSEEN}
# Images per class: a seen one is split into train, validation and test; an unseen one needs a pair.
MIN_SEEN, MIN_UNSEEN = 3, 2
# Metadata key of the table, for sentences about excluded classes.
LEFT_OUT = b"raysep.left_out"
# A record and its role in one rotation.
Assigned = tuple[Record, str]


def draw_split(
    records: Sequence[Record],
    config: SplitConfig | None,
    caps: CapConfig | None = None,
    domains: Sequence[DomainConfig] = (),
    others: Mapping[str, Sequence[Record]] | None = None,
    least: int = 1,
) -> pa.Table:
    """Assign a role and a label to each image, in each rotation.

    Labels count from 0 by class name: first the seen classes, whose labels index the classifier's outputs, then
    unseen classes, then classes found only in domains. Classes that are neither seen nor unseen are left out.

    Args:
        records: all images of the source.
        config: how to draw; None if the source is already split.
        caps: maximum number of images per class and role; unset: no limit.
        domains: further image sets to evaluate.
        others: records by domain, for domains with their own source.
        least: minimum number of images per class; smaller classes are left out even if `config` names them.

    Returns:
        A table of `SCHEMA`, sorted by rotation, role and image_id, and deterministic. `left_out` lists the classes
        left out as too small.

    Raises:
        ConfigError: with all reasons why no split can be drawn.
    """
    parts = {record.part for record in records}
    records, small = without_small_classes(records, least)
    too_small = {"": small}
    if config is not None:
        config = match_class_names(config, sorted({record.class_name for record in records}), set(small))
    large: dict[str, Sequence[Record]] = {}
    for name, images in (others or {}).items():
        large[name], too_small[f"data.domains, {name}: "] = without_small_classes(images, least)
    sentences = [
        f"{where}{len(of_class)} class{'es' if len(of_class) > 1 else ''} with fewer images than data.min_per_class = "
        f"{least}: " + first_few([f"{name} ({count})" for name, count in sorted(of_class.items())])
        for where, of_class in too_small.items()
        if of_class
    ]
    if "unseen" in parts and config is not None:
        raise ConfigError(
            ["data.split: the directory is already split (train, test, unseen): remove data.split, or --unseen"]
        )
    if "unseen" not in parts and config is None:
        raise ConfigError(["data.split: expected `unseen` (class names) or `unseen_fraction`, got nothing"])
    tables, problems = [], []
    for rotation, unseen in enumerate([None] if config is None else _unseen_classes(records, config)):
        assigned = _given_roles(records) if config is None or unseen is None else _drawn_roles(records, config, unseen)
        assigned = _capped(assigned, caps or CapConfig(), config.seed if config is not None else 42)
        problems += [*_problems(assigned), *_untrained(assigned)]
        for domain in domains:
            if domain.source is not None:
                images = large.get(domain.name, [])
                if len({record.class_name for record in images}) < 2:
                    problems.append(f"data.domains, {domain.name}: expected at least 2 classes")
                assigned += [(record, domain.name) for record in images]
            else:
                role = UNSEEN if domain.of == "unseen" else SEEN_TEST
                corrupted = [(record, domain.name) for record, assigned_role in assigned if assigned_role == role]
                if not corrupted:
                    problems.append(f"data.domains, {domain.name}: no images of role {role} to corrupt")
                assigned += corrupted
        tables.append(_table(assigned, rotation))
    if problems:
        raise ConfigError([*dict.fromkeys(problems), *(f"left out first: {sentence}" for sentence in sentences)])
    return pa.concat_tables(tables).replace_schema_metadata({LEFT_OUT: json.dumps(sentences)})


def left_out(split: pa.Table) -> list[str]:
    """Sentences about the classes that `draw_split` left out. A table of `from_parquet` has no sentences."""
    sentences: list[str] = json.loads((split.schema.metadata or {}).get(LEFT_OUT, b"[]"))
    return sentences


def hold_out(labels: NDArray[np.int32], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Draw a stratified hold-out set: about `fraction` of each class, at least one image, never all of them.

    Args:
        labels: (N,), any order.

    Returns:
        (N,) mask of held-out images. The image of a single-image class is not held out.
    """
    held = np.zeros(len(labels), dtype=bool)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[rng.permutation(members)[:count]] = True
    return held


def select(split: pa.Table, role: str, rotation: int = 0) -> pa.Table:
    """The rows that have a given role in a given rotation, sorted by image_id."""
    wanted = pa.compute.and_(pa.compute.equal(split["role"], role), pa.compute.equal(split["rotation"], rotation))
    return split.filter(wanted)


def seen_classes(split: pa.Table, rotation: int = 0) -> list[str]:
    """Names of the seen classes, in the order of their labels and of the classifier's outputs."""
    rows = pa.concat_tables([select(split, role, rotation) for role in (SEEN_TRAIN, SEEN_TEST)])
    return sorted(rows["class_name"].unique().to_pylist())


def fingerprint(split: pa.Table) -> str:
    """SHA-256 of ids, classes, labels, roles and rotations, which identifies the evaluated data."""
    digest = hashlib.sha256()
    names = ("image_id", "class_name", "label", "role", "rotation")
    # In batches: as Python objects, the whole table would need many times its memory.
    for batch in split.select(names).to_batches(max_chunksize=4096):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            digest.update("\x1f".join(map(str, row)).encode() + b"\x1e")
    return digest.hexdigest()


def to_parquet(split: pa.Table) -> bytes:
    """Serialize a split to Parquet."""
    sink = io.BytesIO()
    pq.write_table(split, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(content: bytes) -> pa.Table:
    """Read the table that `to_parquet` wrote."""
    # Without threads: see `table.read`.
    return pq.read_table(io.BytesIO(content), schema=SCHEMA, use_threads=False, pre_buffer=False)


def _table(assigned: Sequence[Assigned], rotation: int) -> pa.Table:
    seen = sorted({record.class_name for record, role in assigned if role in (SEEN_TRAIN, SEEN_TEST)})
    unseen = sorted({record.class_name for record, role in assigned if role == UNSEEN})
    rest = sorted({record.class_name for record, _ in assigned} - {*seen, *unseen})
    label = {name: index for index, name in enumerate([*seen, *unseen, *rest])}
    ordered = sorted(assigned, key=lambda pair: (pair[1], pair[0].image_id))
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


def _given_roles(records: Sequence[Record]) -> list[Assigned]:
    seen = {record.class_name for record in records if record.part in {"train", "test"}}
    both = sorted(seen & {record.class_name for record in records if record.part == "unseen"})
    if both:
        where = "data.source.path: classes both in the seen parts (train, test) and in the unseen part"
        raise ConfigError([f"{where}: {', '.join(both)}"])
    return [(record, ROLE_OF_PART[record.part or ""]) for record in records]


def _untrained(assigned: Sequence[Assigned]) -> list[str]:
    """The problem message if some seen classes have only test images; else empty."""
    trained = {record.class_name for record, role in assigned if role == SEEN_TRAIN}
    untrained = sorted({record.class_name for record, role in assigned if role == SEEN_TEST} - trained)
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
    # Classes configured as seen are never drawn as unseen.
    drawable = [name for name in classes if name not in (config.seen or [])]
    count = min(round(config.unseen_fraction * len(classes)), len(drawable))
    if config.rotations * count > len(drawable):
        raise ConfigError(
            [f"data.split: {config.rotations} disjoint draws of {count} classes need more than {len(drawable)} classes"]
        )
    order = np.random.default_rng(config.seed).permutation(drawable).tolist()
    return [set(order[count * rotation : count * (rotation + 1)]) for rotation in range(config.rotations)]


def _drawn_roles(records: Sequence[Record], config: SplitConfig, unseen: set[str]) -> list[Assigned]:
    classes = sorted({record.class_name for record in records})
    seen = set(classes) - unseen if config.seen is None else set(config.seen)
    labels = np.searchsorted(classes, [record.class_name for record in records]).astype(np.int32)
    # Drawn in image_id order, so that the order of the records does not matter.
    order = np.argsort([record.image_id for record in records], kind="stable")
    test = np.zeros(len(records), dtype=bool)
    test[order] = hold_out(labels[order], config.test_fraction, config.seed)
    assigned: list[Assigned] = []
    for record, held in zip(records, test, strict=True):
        if record.class_name in unseen:
            assigned.append((record, UNSEEN))
        elif record.class_name in seen and record.part is not None:
            # The source defines its own test images.
            assigned.append((record, ROLE_OF_PART[record.part]))
        elif record.class_name in seen:
            assigned.append((record, SEEN_TEST if held else SEEN_TRAIN))
    return assigned


def _capped(assigned: Sequence[Assigned], caps: CapConfig, seed: int) -> list[Assigned]:
    """The images, randomly subsampled in each class and role that has more than its cap."""
    limits: dict[str, int | None] = dict(caps)
    groups: dict[tuple[str, str], list[Assigned]] = {}
    for pair in sorted(assigned, key=lambda pair: pair[0].image_id):
        groups.setdefault((pair[1], pair[0].class_name), []).append(pair)
    rng = np.random.default_rng(seed)
    capped: list[Assigned] = []
    for (role, _), members in sorted(groups.items()):
        limit = limits[role]
        chosen = range(len(members)) if limit is None else sorted(rng.permutation(len(members))[:limit].tolist())
        capped += [members[position] for position in chosen]
    return capped


def _problems(assigned: Sequence[Assigned]) -> list[str]:
    problems = []
    unseen = Counter(record.class_name for record, role in assigned if role == UNSEEN)
    seen = Counter(record.class_name for record, role in assigned if role != UNSEEN)
    if len(unseen) < 2:
        problems.append(f"data: expected at least 2 unseen classes, got {len(unseen)}")
    for name, count in sorted(unseen.items()):
        if count < MIN_UNSEEN:
            problems.append(
                f"data: the unseen class {name!r} has {count} image, expected at least {MIN_UNSEEN}; "
                f"set data.min_per_class: {MIN_UNSEEN} to leave such classes out"
            )
    for name, count in sorted(seen.items()):
        if count < MIN_SEEN:
            problems.append(
                f"data: the seen class {name!r} has {count} images, expected at least {MIN_SEEN} "
                f"(train, validation, test); set data.min_per_class: {MIN_SEEN} to leave such classes out"
            )
    duplicates = [name for name, count in Counter(record.image_id for record, _ in assigned).items() if count > 1]
    if duplicates:
        problems.append(f"data: {len(duplicates)} duplicate image ids, for example {duplicates[0]!r}")
    return problems
