"""Accepted column types, read by the real sources, and messages for rejected ones."""

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysep.data.source import encode
from raysep.data.sources.huggingface import HuggingFace
from raysep.data.sources.parquet import ParquetImages
from raysep.errors import ConfigError

PNG = encode(Image.new("RGB", (4, 4)))


def names_of(table: pa.Table, path: Path) -> list[str]:
    pq.write_table(table, path)
    source = ParquetImages(ParquetImages.Config(path=str(path)))
    records = source.records()
    assert source.read(records[0].path, records[0].row) == PNG
    return [record.class_name for record in records]


def dataset(path: Path, columns: dict[str, Any], features: Any = None) -> HuggingFace:
    import datasets

    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(path))
    return HuggingFace(HuggingFace.Config(path=str(path)))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array(["b", "a"]), ["b", "a"]),
        (pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
        (pa.array([3, -1]).dictionary_encode(), ["3", "-1"]),
        (pa.array(["b", "a"], pa.large_string()), ["b", "a"]),
        (pa.array(["b", "a"], pa.string_view()), ["b", "a"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([7, 250], pa.uint8()), ["7", "250"]),
        (pa.array([" ", "007"]), [" ", "007"]),
    ],
    ids=str,
)
def test_accepted_label_types(labels: pa.Array, expected: list[str], tmp_path: Path) -> None:
    assert names_of(pa.table({"image": [PNG, PNG], "label": labels}), tmp_path / "x.parquet") == expected


@pytest.mark.parametrize(
    "images",
    [
        pa.array([PNG], pa.large_binary()),
        pa.array([PNG], pa.binary_view()),
        pa.array([PNG], pa.binary(len(PNG))),
        pa.array([PNG]).dictionary_encode(),
        pa.array([{"bytes": PNG, "path": None}]),
    ],
    ids=lambda array: str(array.type),
)
def test_accepted_image_types(images: pa.Array, tmp_path: Path) -> None:
    assert names_of(pa.table({"image": images, "label": ["a"]}), tmp_path / "x.parquet") == ["a"]


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"image": [PNG], "label": [1.0]}, "holds double, expected text or integers, convert it (pandas writes"),
        ({"image": [PNG], "label": [date(2026, 1, 1)]}, "expected text or integers, convert it"),
        ({"image": [PNG], "label": [b"a"]}, "column label holds binary, expected text or integers, convert it"),
        ({"image": [PNG], "label": [["a", "b"]]}, "one label per row, not a list"),
        ({"image": [PNG], "label": pa.nulls(1)}, "no row has a label"),
        ({"image": ["x.png"], "label": ["a"]}, "save the file contents instead"),
        ({"image": [[[0, 1], [2, 3]]], "label": ["a"]}, "save pixel arrays as PNG"),
        ({"img": [PNG], "fine_label": ["a"]}, "(set data.source.image_column and data.source.label_column)"),
        ({"image": pa.array([{"bytes": None, "path": "a.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()})),
          "label": ["a"]}, "no row of column image has `bytes`"),
    ],
)  # fmt: skip
def test_rejected_columns_come_with_advice(columns: dict[str, Any], part: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ConfigError) as caught:
        ParquetImages(ParquetImages.Config(path=str(tmp_path))).records()
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"image": ["x.png", "y.png"], "label": ["a", "b"]}, "save the file contents instead (datasets: cast_column"),
        ({"image": [PNG, PNG], "label": [0.0, 1.0]}, "column label holds double, expected text or integers"),
        ({"image": [[0, 1], [2, 3]], "label": [0, 1]}, "save pixel arrays as PNG"),
        ({"image": [PNG, PNG], "label": [[0], [1]]}, "one label per row"),
        ({"picture": [PNG, PNG], "label": [0, 1]}, "no column image; there are picture, label"),
    ],
)
def test_hugging_face_columns_are_checked_like_parquet_columns(
    columns: dict[str, Any], part: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        dataset(tmp_path / "d", columns).records()
    assert part in str(caught.value)


def test_class_names_come_from_the_metadata_of_datasets(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["cat", "007", "yes"])}
    )
    source = dataset(tmp_path / "d", {"image": [PNG] * 3, "label": [2, 0, 1]}, features)
    assert [record.class_name for record in source.records()] == ["yes", "cat", "007"]
    data = datasets.load_from_disk(str(tmp_path / "d"))
    data.to_parquet(str(tmp_path / "x.parquet"))
    assert names_of(pq.read_table(tmp_path / "x.parquet"), tmp_path / "y.parquet") == ["yes", "cat", "007"]


def test_labels_without_a_class_name_are_counted(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"image": [PNG] * 3, "label": [-1, 0, 1]}, features).to_parquet(
        str(tmp_path / "x.parquet")
    )
    with pytest.raises(ConfigError, match="column label has 1 rows without a value or class name"):
        ParquetImages(ParquetImages.Config(path=str(tmp_path / "x.parquet"))).records()


def test_labels_from_hive_partitions(tmp_path: Path) -> None:
    for name in ("grey%20heron", "egret"):
        (tmp_path / "year=2026" / f"label={name}").mkdir(parents=True)
        pq.write_table(pa.table({"image": [PNG, PNG]}), tmp_path / "year=2026" / f"label={name}" / "part-0.parquet")
    source = ParquetImages(ParquetImages.Config(path=str(tmp_path)))
    records = source.records()
    assert [record.class_name for record in records] == ["egret", "egret", "grey heron", "grey heron"]
    assert source.read(records[3].path, records[3].row) == PNG
    (tmp_path / "label=__HIVE_DEFAULT_PARTITION__").mkdir()
    pq.write_table(pa.table({"image": [PNG]}), tmp_path / "label=__HIVE_DEFAULT_PARTITION__" / "part-0.parquet")
    with pytest.raises(ConfigError, match="1 rows without a value"):
        source.records()


def test_files_with_and_without_class_names_are_not_mixed(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"image": [PNG] * 2, "label": [0, 1]}, features).to_parquet(str(tmp_path / "1.parquet"))
    pq.write_table(pa.table({"image": [PNG] * 2, "label": [0, 1]}), tmp_path / "2.parquet")
    with pytest.raises(
        ConfigError, match=r"1\.parquet has class names for the integers of column label, .*2\.parquet has none"
    ):
        ParquetImages(ParquetImages.Config(path=str(tmp_path))).records()


def test_an_empty_label_is_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [PNG] * 2, "label": ["a", ""]}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="column label has 1 rows without a value"):
        ParquetImages(ParquetImages.Config(path=str(tmp_path))).records()


def test_a_single_saved_data_set_has_one_split(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_dict({"image": [PNG] * 2, "label": ["a", "b"]}, split="test")
    data.save_to_disk(str(tmp_path / "d"))
    for split, works in (("train", True), ("test", True), ("test[:1]", False), ("validation", False)):
        source = HuggingFace(HuggingFace.Config(path=str(tmp_path / "d"), split=split))
        if works:
            assert len(source.records()) == 2
        else:
            with pytest.raises(ConfigError, match=r"saved from the split test alone, .* no split .*: remove `split`"):
                source.records()
