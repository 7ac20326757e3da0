import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from raysep.config import DigitsSource, ImageFolderSource
from raysep.data.sources import Digits, ImageFolder, Source, open_source
from raysep.errors import ConfigError
from tests.conftest import write_images


@pytest.fixture(params=["digits", "image_folder"])
def source(request: pytest.FixtureRequest, tree: Path) -> Source:
    if request.param == "digits":
        return open_source(DigitsSource(kind="digits"))
    return open_source(ImageFolderSource(kind="image_folder", path=str(tree)))


def test_every_source_lists_unique_sorted_ids_and_reads_what_it_lists(source: Source):
    records = source.records()
    ids = [record.image_id for record in records]
    assert ids == sorted(set(ids))
    assert ids == [record.image_id for record in source.records()]
    travelled = pickle.loads(pickle.dumps(source))
    for record in (records[0], records[-1]):
        content = travelled.read(record.path, record.row)
        assert Image.open(io.BytesIO(content)).size[0] > 0


def test_digits_are_those_of_scikit_learn():
    source, digits = Digits(), load_digits()
    records = source.records()
    assert [record.class_name for record in records] == [str(target) for target in digits.target]
    pixels = np.asarray(Image.open(io.BytesIO(source.read(None, 1000))))
    np.testing.assert_array_equal(pixels, np.round(digits.images[1000] * 255 / 16))


def test_a_split_tree_has_parts(tmp_path: Path):
    write_images(tmp_path / "train", {"a": 4, "b": 4})
    write_images(tmp_path / "unseen", {"c": 2, "d": 2})
    records = ImageFolder(str(tmp_path)).records()
    assert {(record.part, record.class_name) for record in records} == {
        ("train", "a"),
        ("train", "b"),
        ("unseen", "c"),
        ("unseen", "d"),
    }
    assert records[0].image_id == "train/a/000.png"


def test_only_images_count_and_hidden_files_do_not(tree: Path):
    (tree / "a" / "notes.txt").write_text("x")
    (tree / "a" / ".hidden.png").write_bytes(b"x")
    (tree / ".cache").mkdir()
    assert len(ImageFolder(str(tree)).records()) == 60


def test_missing_and_empty_directories_are_named(tree: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere"):
        ImageFolder(str(tmp_path / "nowhere")).records()
    (tree / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"images/empty"):
        ImageFolder(str(tree)).records()
    (tmp_path / "flat").mkdir()
    with pytest.raises(ConfigError, match="no class directory"):
        ImageFolder(str(tmp_path / "flat")).records()
