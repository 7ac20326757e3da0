"""A shared contract for all sources, and tests of each kind."""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR100

from raysep.data.images import UnreadableImageError, decode
from raysep.data.source import Remarks, Source
from raysep.data.sources import open_source
from raysep.data.sources.cifar100 import Cifar100
from raysep.data.sources.digits import Digits
from raysep.data.sources.huggingface import HuggingFace
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.sources.parquet import ParquetImages
from raysep.errors import ConfigError
from tests.conftest import write_images


def write_parquet(tree: Path, root: Path, nested: bool = False, group: int = 7) -> None:
    """Write the tree's images to two Parquet files of several row groups, as bytes or as Hugging Face structs."""
    root.mkdir(parents=True, exist_ok=True)
    files = sorted(tree.glob("*/*.png"))
    for number, part in enumerate((files[:25], files[25:])):
        images: list[Any] = [file.read_bytes() for file in part]
        if nested:
            images = [{"bytes": content, "path": None} for content in images]
        table = pa.table({"image": images, "label": [file.parent.name for file in part]})
        pq.write_table(table, root / f"part-{number}.parquet", row_group_size=group)


def write_huggingface(tree: Path, root: Path) -> None:
    import datasets

    files = sorted(tree.glob("*/*.png"))
    names = sorted({file.parent.name for file in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict(
        {"image": [str(file) for file in files], "label": [names.index(file.parent.name) for file in files]},
        features=features,
    )
    datasets.DatasetDict({"train": data}).save_to_disk(str(root))


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write twelve images in the format of the archive, and set torchvision's hashes to those of the files."""
    base = root / CIFAR100.base_folder
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"class{index:03d}" for index in range(100)]
    content: dict[str, Any] = {"meta": {"fine_label_names": names}}
    for part, count in (("train", 8), ("test", 4)):
        pixels = rng.integers(0, 255, (count, 3072), dtype=np.uint8)
        content[part] = {"data": pixels, "fine_labels": [index % 4 for index in range(count)]}
    hashes = {}
    for name, value in content.items():
        (base / name).write_bytes(pickle.dumps(value))
        hashes[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", hashes["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", hashes["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": hashes["meta"]})


KINDS = (
    "digits",
    "image_folder",
    "image_folder with a bit depth",
    "parquet",
    "parquet file",
    "nested parquet",
    "huggingface",
    "cifar100",
)


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    # Relative, as in most configurations.
    monkeypatch.chdir(tmp_path)
    root = Path("source")
    match request.param:
        case "digits":
            return open_source(Digits.Config())
        case "image_folder":
            return open_source(ImageFolder.Config(path=str(tree)))
        case "image_folder with a bit depth":
            return open_source(ImageFolder.Config(path=str(tree)), bit_depth=12)
        case "parquet" | "nested parquet":
            write_parquet(tree, root, nested=request.param == "nested parquet")
            return open_source(ParquetImages.Config(path=str(root)))
        case "parquet file":
            write_parquet(tree, root)
            return open_source(ParquetImages.Config(path=str(root / "part-1.parquet")))
        case "huggingface":
            write_huggingface(tree, root)
            return open_source(HuggingFace.Config(path=str(root)))
        case _:
            write_cifar100(root, monkeypatch)
            return open_source(Cifar100.Config(path=str(root)))


def test_every_source_lists_unique_sorted_ids_and_reads_what_it_lists(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = source.records()
    ids = [record.image_id for record in records]
    assert ids == sorted(set(ids))
    assert ids == [record.image_id for record in source.records()]
    assert len({record.class_name for record in records}) > 1
    assert source.remarks() == Remarks()
    content = pickle.dumps(source)
    assert len(content) < 2000
    # A worker has another working directory.
    monkeypatch.chdir("/")
    unpickled = pickle.loads(content)
    for record in (records[0], records[len(records) // 2], records[-1]):
        assert decode(unpickled.read(record.path, record.row)).size[0] > 0


@pytest.mark.parametrize("kind", ["parquet", "nested", "huggingface"])
def test_stored_images_equal_the_files(kind: str, tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "source"
    source: Source
    if kind == "huggingface":
        write_huggingface(tree, root)
        source = HuggingFace(HuggingFace.Config(path=str(root)))
    else:
        write_parquet(tree, root, nested=kind == "nested")
        source = ParquetImages(ParquetImages.Config(path=str(root)))
    records, files = source.records(), sorted(tree.glob("*/*.png"))
    assert [record.class_name for record in records] == [file.parent.name for file in files]
    for record, file in zip(records, files, strict=True):
        assert source.read(record.path, record.row) == file.read_bytes()


def test_digits_equal_those_of_scikit_learn() -> None:
    source, digits = Digits(), load_digits()
    records = source.records()
    assert [record.class_name for record in records] == [str(target) for target in digits.target]
    pixels = np.asarray(Image.open(io.BytesIO(source.read(None, 1000))))
    np.testing.assert_array_equal(pixels, np.round(digits.images[1000] * 255 / 16))


def test_cifar100_is_split_into_train_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    source = open_source(Cifar100.Config(path=str(tmp_path)))
    records = source.records()
    assert [record.part for record in records] == ["test"] * 4 + ["train"] * 8
    assert records[5].class_name == "class001"
    with pytest.raises(ConfigError, match="download: true"):
        open_source(Cifar100.Config(path=str(tmp_path / "none"))).records()


def test_a_split_tree_has_parts(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 4, "b": 4})
    write_images(tmp_path / "unseen", {"c": 2, "d": 2})
    records = ImageFolder(ImageFolder.Config(path=str(tmp_path))).records()
    assert {(record.part, record.class_name) for record in records} == {
        ("train", "a"),
        ("train", "b"),
        ("unseen", "c"),
        ("unseen", "d"),
    }
    assert records[0].image_id == "train/a/000.png"


def test_only_images_count_and_hidden_files_do_not(tree: Path) -> None:
    (tree / "a" / "notes.txt").write_text("x")
    (tree / "a" / ".hidden.png").write_bytes(b"x")
    (tree / ".cache").mkdir()
    assert len(ImageFolder(ImageFolder.Config(path=str(tree))).records()) == 60


def test_missing_and_empty_directories_are_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        ImageFolder(ImageFolder.Config(path=str(tmp_path / "nowhere"))).records()
    (tree / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"images/empty"):
        ImageFolder(ImageFolder.Config(path=str(tree))).records()
    (tmp_path / "flat").mkdir()
    with pytest.raises(ConfigError, match="no class directory"):
        ImageFolder(ImageFolder.Config(path=str(tmp_path / "flat"))).records()


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"picture": [b"x"], "label": ["a"]}, "no column image; there are picture, label"),
        ({"image": [b"x"], "label": [[1, 2]]}, "expected text or integers"),
        ({"image": [b"x"], "label": [1.5]}, "column label holds double, expected text or integers"),
        ({"image": ["x.png"], "label": ["a"]}, "column image holds string, expected encoded images"),
        ({"image": [[b"x"]], "label": ["a"]}, r"column image holds list<.*>, expected encoded images"),
        ({"image": [{"path": "x.png"}], "label": ["a"]}, r"column image holds struct<.*>, expected encoded images"),
        ({"image": [b"x", b"y"], "label": ["a", None]}, "1 rows without a value"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}, "have no rows"),
    ],
)
def test_unusable_parquet_files_are_refused_with_a_reason(columns: dict[str, Any], part: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=part):
        ParquetImages(ParquetImages.Config(path=str(tmp_path))).records()


def test_other_files_and_rows_without_an_image(tmp_path: Path) -> None:
    config = ParquetImages.Config(path=str(tmp_path))
    (tmp_path / "x.csv").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no \*\.parquet file below .*; files that are not Parquet files: 1 \.csv"):
        ParquetImages(config).records()
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ConfigError, match="damaged, or not a Parquet file"):
        ParquetImages(config).records()
    pq.write_table(pa.table({"image": [None, b"not an image"], "label": ["a", "b"]}), tmp_path / "x.parquet")
    source = ParquetImages(config)
    with pytest.raises(OSError, match="no image"):
        source.read("x.parquet", 0)
    with pytest.raises(UnreadableImageError):
        decode(source.read("x.parquet", 1))
    with pytest.raises(OSError, match="fewer rows"):
        source.read("x.parquet", 2)


def test_parquet_files_are_detected_by_content_and_others_reported(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "p"
    write_parquet(tree, root)
    write_parquet(tree, root / "label=x")
    (root / "part-0.parquet").rename(root / "part-00000")
    (root / "part-1.parquet").rename(root / "B.PARQUET")
    (root / "label=x" / "part-0.parquet").rename(root / "label=x" / "a.pq")
    (root / "label=x" / "part-1.parquet").rename(root / "label=x" / "b.parq")
    whole = (root / "part-00000").read_bytes()
    others = (
        "_SUCCESS",
        "_metadata",
        "_temporary/0/x.parquet",
        ".x.parquet.crc",
        "__MACOSX/a.parquet",
        "notes.csv",
        "z",
    )
    for name in others:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"" if name == "z" else whole)
    source = ParquetImages(ParquetImages.Config(path=str(root)))
    paths = sorted({str(record.path) for record in source.records()})
    assert paths == ["B.PARQUET", "label=x/a.pq", "label=x/b.parq", "part-00000"]
    assert len(source.records()) == 120
    assert source.remarks().left_out == (
        "files that are not Parquet files: 3 no suffix, 1 .csv, 1 .parquet (a table: see data.source.kind)",
        "hidden and system files: 2",
    )


def test_a_single_parquet_file_may_have_any_name(tree: Path, tmp_path: Path) -> None:
    write_parquet(tree, tmp_path / "source")
    other = tmp_path / "images.pq"
    (tmp_path / "source" / "part-1.parquet").rename(other)
    for path in (str(other), f"file://{other}"):
        source = ParquetImages(ParquetImages.Config(path=path))
        records = source.records()
        assert [record.image_id for record in records[:2]] == ["images.pq#00000000", "images.pq#00000001"]
        assert len(records) == 35
        assert decode(source.read(records[-1].path, records[-1].row)).size == (16, 16)


def test_huggingface_rows_without_a_label_are_refused(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"image": [b"x"] * 3, "label": [0, -1, 1]}, features=features)
    data.save_to_disk(str(tmp_path / "source"))
    with pytest.raises(ConfigError, match=r"1 rows of .* have no label"):
        HuggingFace(HuggingFace.Config(path=str(tmp_path / "source"))).records()


def test_missing_huggingface_columns_and_splits_are_named(tree: Path, tmp_path: Path) -> None:
    write_huggingface(tree, tmp_path / "source")
    path = str(tmp_path / "source")
    with pytest.raises(ConfigError, match="no column picture; there are image, label"):
        HuggingFace(HuggingFace.Config(path=path, image_column="picture")).records()
    with pytest.raises(ConfigError, match="has no split none; there are train"):
        HuggingFace(HuggingFace.Config(path=path, split="none")).records()


def test_names_and_links_that_would_lose_images_are_refused_by_name(tree: Path) -> None:
    (tree / "a" / "back").symlink_to(tree / "a")
    (tree / "b" / "gone.png").symlink_to(tree / "nothing.png")
    # Names on Linux are bytes, not text.
    with open(os.path.join(bytes(tree), b"c", b"caf\xe9.png"), "wb") as file:  # noqa: PTH118, PTH123
        file.write(b"x")
    with pytest.raises(ConfigError) as caught:
        ImageFolder(ImageFolder.Config(path=str(tree))).records()
    found = "\n".join(caught.value.problems)
    assert "a/back: a link to one of its parent directories" in found
    assert "b/gone.png: a broken link" in found
    assert "the name is not UTF-8" in found
    assert len(caught.value.problems) == 3


def test_links_to_images_and_names_with_newlines_are_images(tree: Path) -> None:
    (tree / "a" / "two\nlines.png").write_bytes((tree / "a" / "000.png").read_bytes())
    (tree / "b" / "link.png").symlink_to(tree / "a" / "000.png")
    source = ImageFolder(ImageFolder.Config(path=str(tree)))
    assert {"a/two\nlines.png", "b/link.png"} < {record.image_id for record in source.records()}
    assert decode(source.read("a/two\nlines.png", None)).mode == "RGB"


def test_a_damaged_row_group_means_unreadable_images(tree: Path, tmp_path: Path) -> None:
    write_parquet(tree, tmp_path / "p")
    config = ParquetImages.Config(path=str(tmp_path / "p"))
    (record, *_) = ParquetImages(config).records()
    file = tmp_path / "p" / str(record.path)
    content = bytearray(file.read_bytes())
    # The first page's header.
    content[4:24] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(OSError, match=r"is damaged|deserialize"):
        ParquetImages(config).read(record.path, record.row)


def test_a_bit_depth_applies_to_pickled_readers_and_keeps_8_bit_files(tree: Path) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    Image.fromarray(values).save(tree / "a" / "wide.tif")
    plain = ImageFolder(ImageFolder.Config(path=str(tree)))
    source = open_source(ImageFolder.Config(path=str(tree)), bit_depth=12)
    assert source.read("a/000.png", None) == plain.read("a/000.png", None)
    expected = np.rint(values * (255 / 4095))
    for reader in (source, pickle.loads(pickle.dumps(source))):
        for channels in (1, 3):
            pixels = np.asarray(decode(reader.read("a/wide.tif", None), channels)).reshape(16, 16, -1)
            np.testing.assert_array_equal(pixels[..., 0], expected)
    with pytest.raises(UnreadableImageError, match="expected none above 1023"):
        open_source(ImageFolder.Config(path=str(tree)), bit_depth=10).read("a/wide.tif", None)
