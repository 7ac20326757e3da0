from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysep.config import CapConfig, DomainConfig, SplitConfig
from raysep.data import splits
from raysep.data.source import Record
from raysep.data.sources.digits import Digits
from raysep.errors import ConfigError


def records(classes: dict[str, int], part: str | None = None) -> list[Record]:
    return [Record(f"{part}/{c}/{i:03d}", c, path="x", part=part) for c, n in classes.items() for i in range(n)]


FIVE = records(dict.fromkeys("abcde", 10))


def test_listed_classes_are_unseen_and_labels_count_seen_classes_first() -> None:
    table = splits.draw_split(FIVE, SplitConfig(unseen=["b", "d"]))
    label = dict(zip(table["class_name"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert label == {"a": 0, "c": 1, "e": 2, "b": 3, "d": 4}
    assert splits.seen_classes(table) == ["a", "c", "e"]
    roles = Counter(zip(table["class_name"].to_pylist(), table["role"].to_pylist(), strict=True))
    assert roles["b", "unseen"] == 10
    assert (roles["a", "seen_train"], roles["a", "seen_test"]) == (8, 2)


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_listing() -> None:
    config = SplitConfig(unseen_fraction=0.4)
    table = splits.draw_split(FIVE, config)
    assert table == splits.draw_split(FIVE[::-1], config)
    assert splits.fingerprint(table) == splits.fingerprint(splits.from_parquet(splits.to_parquet(table)))
    others = {splits.fingerprint(splits.draw_split(FIVE, SplitConfig(unseen_fraction=0.4, seed=s))) for s in range(5)}
    assert len(others) > 1
    unseen = set(splits.select(table, "unseen")["class_name"].to_pylist())
    assert len(unseen) == 2


def test_unlisted_classes_are_left_out_and_all_may_be_unseen() -> None:
    table = splits.draw_split(FIVE, SplitConfig(unseen=["a", "b"], seen=["c", "d"]))
    assert "e" not in table["class_name"].to_pylist()
    assert set(splits.draw_split(FIVE, SplitConfig(unseen="all"))["role"].to_pylist()) == {"unseen"}


def test_a_split_tree_keeps_its_parts() -> None:
    given_split = records({"a": 5, "b": 5}, "train") + records({"a": 2}, "test") + records({"c": 3, "d": 3}, "unseen")
    table = splits.draw_split(given_split, None)
    assert Counter(table["role"].to_pylist()) == {"seen_train": 10, "seen_test": 2, "unseen": 6}


@pytest.mark.parametrize(
    ("data", "config", "part"),
    [
        (FIVE, SplitConfig(unseen=["a", "z"]), "no class 'z'"),
        (FIVE, SplitConfig(unseen=["a", "b"], seen=["y"]), "no class 'y'"),
        (FIVE, None, "expected `unseen`"),
        (FIVE, SplitConfig(unseen_fraction=0.1), "got 0"),
        (records({"a": 9, "b": 9, "c": 1, "d": 5}), SplitConfig(unseen=["c", "d"]), "'c' has 1 image"),
        (records({"a": 2, "b": 9, "c": 9}), SplitConfig(unseen=["b", "c"]), "'a' has 2 images"),
        (FIVE + FIVE[:1], SplitConfig(unseen=["a", "b"]), "1 duplicate image ids"),
        (
            records({"a": 5}, "train") + records({"b": 5}, "unseen"),
            SplitConfig(unseen=["a", "b"]),
            "is already split",
        ),
        (
            FIVE,
            SplitConfig(unseen_fraction=0.4, rotations=2, seen=["a", "b", "c"]),
            "2 disjoint draws of 2 classes need more than 2",
        ),
        (records({"a": 5}, "train") + records({"a": 5, "b": 5}, "unseen"), None, "classes both in the seen parts"),
        (records({"a": 5}, "train") + records({"b": 5}, "test") + records({"c": 5}, "unseen"), None, "not in train: b"),
    ],
)
def test_impossible_splits_are_refused_with_a_reason(data: list[Record], config: SplitConfig | None, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        splits.draw_split(data, config)
    assert part in str(caught.value)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 99))
def test_hold_out_takes_something_of_each_class_and_never_all(labels: list[int], fraction: float, seed: int) -> None:
    y = np.array(labels, dtype=np.int32)
    held = splits.hold_out(y, fraction, seed)
    for label in set(labels):
        members = held[y == label]
        assert not members.all()
        assert members.any() or len(members) == 1


def test_digits_split_is_pinned() -> None:
    # The quickstart's split: a changed draw would silently change every result.
    table = splits.draw_split(Digits().records(), SplitConfig(unseen=["7", "8", "9"], test_fraction=0.2, seed=42))
    assert Counter(table["role"].to_pylist()) == {"seen_train": 1012, "seen_test": 252, "unseen": 533}
    assert splits.select(table, "seen_test")["row"].to_pylist()[:5] == [1, 16, 21, 30, 35]


def test_rotations_are_disjoint_draws_of_unseen_classes() -> None:
    table = splits.draw_split(FIVE, SplitConfig(unseen_fraction=0.4, rotations=2))
    drawn = [set(splits.select(table, "unseen", rotation)["class_name"].to_pylist()) for rotation in (0, 1)]
    assert [len(classes) for classes in drawn] == [2, 2]
    assert not drawn[0] & drawn[1]
    for rotation in (0, 1):
        assert set(splits.seen_classes(table, rotation)) == set("abcde") - drawn[rotation]
    # The first rotation is the split of a run without rotations.
    alone = splits.draw_split(FIVE, SplitConfig(unseen_fraction=0.4))
    assert splits.select(alone, "unseen") == splits.select(table, "unseen", 0)


@given(st.integers(1, 3), st.floats(0.2, 0.33), st.integers(0, 50))
def test_no_rotation_trains_on_its_unseen_classes(rotations: int, fraction: float, seed: int) -> None:
    ten = records(dict.fromkeys("abcdefghij", 4))
    table = splits.draw_split(ten, SplitConfig(unseen_fraction=fraction, rotations=rotations, seed=seed))
    seen_before: set[str] = set()
    for rotation in range(rotations):
        unseen = set(splits.select(table, "unseen", rotation)["class_name"].to_pylist())
        assert not unseen & set(splits.seen_classes(table, rotation))
        assert not unseen & seen_before
        seen_before |= unseen


def test_a_source_with_test_images_keeps_them() -> None:
    given_parts = records(dict.fromkeys("abc", 6), "train") + records(dict.fromkeys("abc", 2), "test")
    table = splits.draw_split(given_parts, SplitConfig(unseen=["b", "c"], seen=["a"], test_fraction=0.9))
    assert Counter(table["role"].to_pylist()) == {"seen_train": 6, "seen_test": 2, "unseen": 16}


def test_caps_subsample_each_class_deterministically() -> None:
    config, caps = SplitConfig(unseen=["d", "e"]), CapConfig(seen_train=3, seen_test=1, unseen=4)
    table = splits.draw_split(FIVE, config, caps)
    assert Counter(zip(table["role"].to_pylist(), table["class_name"].to_pylist(), strict=True)) == {
        **{("seen_train", name): 3 for name in "abc"},
        **{("seen_test", name): 1 for name in "abc"},
        **{("unseen", name): 4 for name in "de"},
    }
    assert table == splits.draw_split(FIVE[::-1], config, caps)


def test_domains_are_roles_of_their_own() -> None:
    blurred = DomainConfig(name="blurred", corruption="blur")
    seen_noise = DomainConfig(name="noisy", corruption="noise", of="seen")
    other = DomainConfig(name="other", source={"kind": "digits"})
    images = records({"a": 2, "z": 3}, "x")
    table = splits.draw_split(
        FIVE, SplitConfig(unseen=["d", "e"]), None, [blurred, seen_noise, other], {"other": images}
    )
    assert (
        splits.select(table, "blurred")["image_id"].to_pylist()
        == splits.select(table, "unseen")["image_id"].to_pylist()
    )
    assert splits.select(table, "noisy").num_rows == splits.select(table, "seen_test").num_rows
    found = splits.select(table, "other")
    # Known classes keep their labels; new classes follow after all others.
    assert set(zip(found["class_name"].to_pylist(), found["label"].to_pylist(), strict=True)) == {("a", 0), ("z", 5)}
    with pytest.raises(ConfigError, match=r"noisy: no images of role seen_test to corrupt"):
        splits.draw_split(FIVE, SplitConfig(unseen="all"), None, [seen_noise])
    with pytest.raises(ConfigError, match=r"other: expected at least 2 classes"):
        splits.draw_split(FIVE, SplitConfig(unseen=["d", "e"]), None, [other], {"other": records({"a": 4})})


def test_small_classes_are_left_out_and_named() -> None:
    records = [
        Record(f"{name}{n}", name) for name, count in (("a", 5), ("b", 4), ("c", 9), ("d", 3)) for n in range(count)
    ]
    table = splits.draw_split(records, SplitConfig(unseen=["a", "b", "d"]), least=4)
    assert set(table["class_name"].to_pylist()) == {"a", "b", "c"}
    assert splits.left_out(table) == ["1 class with fewer images than data.min_per_class = 4: d (3)"]
    assert splits.left_out(splits.draw_split(records, SplitConfig(unseen=["a", "b", "d"]))) == []
    with pytest.raises(ConfigError, match="expected at least 2 unseen classes, got 1"):
        splits.draw_split(records, SplitConfig(unseen=["a", "d"]), least=4)
    with pytest.raises(ConfigError, match=r"'d' has 1 image, expected at least 2; set data\.min_per_class: 2 to leave"):
        splits.draw_split([*records[:18], Record("d0", "d")], SplitConfig(unseen=["a", "d"]))


def test_small_classes_of_a_domain_are_left_out() -> None:
    domain = DomainConfig.model_validate({"name": "other", "source": {"kind": "digits"}})
    others = {"other": [Record(f"{name}{n}", name) for name in "xyz" for n in range(3 if name == "z" else 5)]}
    table = splits.draw_split(FIVE, SplitConfig(unseen=["a", "b"]), None, [domain], others, least=4)
    assert set(splits.select(table, "other")["class_name"].to_pylist()) == {"x", "y"}
    assert "data.domains, other: 1 class with fewer images" in splits.left_out(table)[0]


@pytest.mark.parametrize(
    ("wanted", "existing", "shown"),
    [
        # A Cyrillic letter, a no-break space, a full-width digit, a trailing space, a zero-width space.
        ("cаt", "cat", r"no class 'cаt' ('c\u0430t') in the data; there are 'cat'"),
        ("grey heron", "grey\xa0heron", r"no class 'grey heron' in the data; there are 'grey\xa0heron'"),
        ("７", "7", r"no class '７' ('\uff17') in the data"),
        ("heron ", "heron", "no class 'heron ' in the data; there are 'heron'"),
        ("heron", "he\u200bron", r"no class 'heron' in the data; there are 'he\u200bron'"),
    ],
)  # fmt: skip
def test_messages_distinguish_lookalike_names(wanted: str, existing: str, shown: str) -> None:
    records = [Record(f"{name}{n}", name) for name in (existing, "b", "c") for n in range(5)]
    with pytest.raises(ConfigError) as caught:
        splits.draw_split(records, SplitConfig(unseen=[wanted, "b"]))
    assert shown in str(caught.value)


def test_a_name_in_another_form_of_unicode_is_the_same_name() -> None:
    # NFD as on macOS file systems, and NFC as editors write it.
    records = [Record(f"{name}{n}", name) for name in ("cafe\u0301", "b", "c") for n in range(5)]
    table = splits.draw_split(records, SplitConfig(unseen=["caf\u00e9", "b"]))
    assert set(splits.select(table, "unseen")["class_name"].to_pylist()) == {"cafe\u0301", "b"}
    both = [*records, *(Record(f"x{n}", "caf\u00e9") for n in range(5))]
    assert splits.draw_split(both, SplitConfig(unseen=["caf\u00e9", "b"])).num_rows == 20
