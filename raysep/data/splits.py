"""The split of a domain into seen_train, seen_test and unseen, and its table in the run directory."""

import difflib
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysep.config import SplitConfig
from raysep.data.sources import Record
from raysep.errors import ConfigError

Role = Literal["seen_train", "seen_test", "unseen"]

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("row", pa.int64()),
        ("class_name", pa.string()),
        ("label", pa.int32()),
        ("role", pa.string()),
    ]
)
ROLE_OF_PART: dict[str, Role] = {"train": "seen_train", "test": "seen_test", "unseen": "unseen"}
# A class must leave something on each side of what is done with it.
MIN_SEEN, MIN_UNSEEN = 3, 2


def draw_split(records: Sequence[Record], config: SplitConfig | None) -> pa.Table:
    """Give each image its role and its label.

    Seen classes have the labels 0, 1, ... in the order of their names, which index the classifier's
    outputs; unseen classes go on from there. Classes that are neither are left out.

    Args:
        records: all images of the source.
        config: how to draw; None where the source is a split already.

    Returns:
        A table of `SCHEMA`, sorted by image_id. The same records and config always give the same table.

    Raises:
        ConfigError: with every reason why no split can be drawn.
    """
    presplit = any(record.part is not None for record in records)
    if presplit and config is not None:
        raise ConfigError(["data.split: the directory is a split already (train, test, unseen): leave data.split out"])
    if not presplit and config is None:
        raise ConfigError(["data.split: expected `unseen` (class names) or `unseen_fraction`, got nothing"])
    roles = _given_roles(records) if config is None else _drawn_roles(records, config)
    kept = [(record, role) for record, role in zip(records, roles, strict=True) if role is not None]
    _check(kept)
    seen = sorted({record.class_name for record, role in kept if role != "unseen"})
    unseen = sorted({record.class_name for record, role in kept if role == "unseen"})
    label = {name: index for index, name in enumerate([*seen, *unseen])}
    kept.sort(key=lambda pair: pair[0].image_id)
    return pa.table(
        {
            "image_id": [record.image_id for record, _ in kept],
            "path": [record.path for record, _ in kept],
            "row": [record.row for record, _ in kept],
            "class_name": [record.class_name for record, _ in kept],
            "label": [label[record.class_name] for record, _ in kept],
            "role": [role for _, role in kept],
        },
        schema=SCHEMA,
    )


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


def with_role(split: pa.Table, role: Role) -> pa.Table:
    """The rows of one role, sorted by image_id."""
    return split.filter(pa.compute.equal(split["role"], role))


def seen_classes(split: pa.Table) -> list[str]:
    """Class names by label, as the classifier's outputs have them."""
    rows = split.filter(pa.compute.not_equal(split["role"], "unseen"))
    return sorted(set(rows["class_name"].to_pylist()))


def fingerprint(split: pa.Table) -> str:
    """SHA-256 of the ids, labels and roles: what a run's results are about."""
    digest = hashlib.sha256()
    for row in zip(*(split[name].to_pylist() for name in ("image_id", "class_name", "label", "role")), strict=True):
        digest.update("\x1f".join(map(str, row)).encode() + b"\x1e")
    return digest.hexdigest()


def to_parquet(split: pa.Table) -> bytes:
    """The file's content."""
    sink = io.BytesIO()
    pq.write_table(split, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(content: bytes) -> pa.Table:
    """The table of a file's content."""
    return pq.read_table(io.BytesIO(content), schema=SCHEMA)


def _given_roles(records: Sequence[Record]) -> list[Role | None]:
    seen = {record.class_name for record in records if record.part in {"train", "test"}}
    both = sorted(seen & {record.class_name for record in records if record.part == "unseen"})
    if both:
        raise ConfigError([f"data.source.path: both seen (train, test) and unseen: {', '.join(both)}"])
    untrained = sorted(seen - {record.class_name for record in records if record.part == "train"})
    if untrained and any(record.part == "train" for record in records):
        raise ConfigError([f"data.source.path: classes in test but not in train: {', '.join(untrained)}"])
    return [ROLE_OF_PART[record.part or ""] for record in records]


def _drawn_roles(records: Sequence[Record], config: SplitConfig) -> list[Role | None]:
    classes = sorted({record.class_name for record in records})
    rng = np.random.default_rng(config.seed)
    if config.unseen == "all":
        unseen = set(classes)
    elif config.unseen is not None:
        _refuse_unknown(classes, unseen=config.unseen, seen=config.seen or [])
        unseen = set(config.unseen)
    else:
        assert config.unseen_fraction is not None
        _refuse_unknown(classes, unseen=[], seen=config.seen or [])
        drawable = [name for name in classes if name not in (config.seen or [])]
        count = min(round(config.unseen_fraction * len(classes)), len(drawable))
        unseen = set(rng.permutation(drawable)[:count].tolist())
    seen = set(classes) - unseen if config.seen is None else set(config.seen)
    labels = np.searchsorted(classes, [record.class_name for record in records]).astype(np.int32)
    # Held out by position in image_id order, so that the order of the listing doesn't matter.
    order = np.argsort([record.image_id for record in records], kind="stable")
    test = np.zeros(len(records), dtype=bool)
    test[order] = hold_out(labels[order], config.test_fraction, config.seed)
    roles: list[Role | None] = []
    for record, held in zip(records, test, strict=True):
        if record.class_name in unseen:
            roles.append("unseen")
        elif record.class_name in seen:
            roles.append("seen_test" if held else "seen_train")
        else:
            roles.append(None)
    return roles


def _refuse_unknown(classes: list[str], **asked: Sequence[str]) -> None:
    problems = []
    for key, names in asked.items():
        for name in names:
            if name not in classes:
                close = difflib.get_close_matches(name, classes, n=3) or classes[:10]
                problems.append(f"data.split.{key}: no class {name!r} in the data; there are {', '.join(close)}")
    if problems:
        raise ConfigError(problems)


def _check(kept: Sequence[tuple[Record, Role]]) -> None:
    problems = []
    unseen = Counter(record.class_name for record, role in kept if role == "unseen")
    seen = Counter(record.class_name for record, role in kept if role != "unseen")
    if len(unseen) < 2:
        problems.append(f"data: 2 unseen classes or more can be told apart, got {len(unseen)}")
    for name, count in sorted(unseen.items()):
        if count < MIN_UNSEEN:
            problems.append(f"data: the unseen class {name!r} has {count} image, expected {MIN_UNSEEN} or more")
    for name, count in sorted(seen.items()):
        if count < MIN_SEEN:
            problems.append(
                f"data: the seen class {name!r} has {count} images, expected {MIN_SEEN} or more "
                "(train, validation, test)"
            )
    doubled = [name for name, count in Counter(record.image_id for record, _ in kept).items() if count > 1]
    if doubled:
        problems.append(f"data: {len(doubled)} image ids occur twice, for example {doubled[0]!r}")
    if problems:
        raise ConfigError(problems)
