"""Realistic image trees: parts of a split, class directories, and ignored files."""

import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysep.config import DataConfig
from raysep.config.load import config_of_options
from raysep.data.parts import has_unseen_part, parts_of
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split
from raysep.errors import ConfigError, printable
from tests.conftest import write_images


def image(kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(content, kind)
    return content.getvalue()


PNG = image()


def plant(root: Path, paths: Iterable[str], content: bytes = PNG) -> Path:
    """Create files below a root, and directories for paths that end with a slash."""
    for path in paths:
        target = root / path
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return root


def files(pattern: str, count: int = 3) -> list[str]:
    """Paths of `count` images in each directory of a pattern: `train|val/a|b` has four."""
    directories = [""]
    for names in pattern.split("/"):
        directories = [f"{parent}{name}/" for parent in directories for name in names.split("|")]
    return [f"{directory}{index}.png" for directory in directories for index in range(count)]


def found(root: Path, depth: int | None = None) -> Counter[tuple[str | None, str]]:
    return Counter(
        (record.part, record.class_name)
        for record in ImageFolder(ImageFolder.Config(path=str(root), depth=depth)).records()
    )


SPLITS = {
    "train|test|unseen": {"train": "train", "test": "test", "unseen": "unseen"},
    "Train|Test|Unseen": {"Train": "train", "Test": "test", "Unseen": "unseen"},
    "TRAINING|VALIDATION|UNSEEN": {"TRAINING": "train", "VALIDATION": "test", "UNSEEN": "unseen"},
    "train|valid|unseen": {"train": "train", "valid": "test", "unseen": "unseen"},
    "train|val|test|unseen": {"train": "train", "val": "test", "test": "test", "unseen": "unseen"},
    "train|dev": {"train": "train", "dev": "test"},
    "train|eval": {"train": "train", "eval": "test"},
    "train|val": {"train": "train", "val": "test"},
    "training_set|test_set": {"training_set": "train", "test_set": "test"},
    "train|val|test": {"train": "train", "val": "test", "test": "test"},
    "Training|Testing": {"Training": "train", "Testing": "test"},
    "seen|unseen": {"seen": "train", "unseen": "unseen"},
    "seen_train|seen_test|unseen": {"seen_train": "train", "seen_test": "test", "unseen": "unseen"},
}


@pytest.mark.parametrize("names", SPLITS)
def test_usual_part_names_are_recognised_in_any_case(names: str, tmp_path: Path) -> None:
    for name, part in SPLITS[names].items():
        plant(tmp_path, files(f"{name}/{'c|d' if part == 'unseen' else 'a|b'}"))
    wanted: Counter[tuple[str | None, str]] = Counter()
    for part in SPLITS[names].values():
        wanted.update({(part, name): 3 for name in ("cd" if part == "unseen" else "ab")})
    assert found(tmp_path) == wanted
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path)))
    source.records()
    notes = " ".join(source.remarks().notes)
    if names == "train|test|unseen":
        assert not notes
    else:
        assert "parts of a split, not as classes" in notes


def test_a_single_part_defines_no_held_out_images(tmp_path: Path) -> None:
    plant(tmp_path, files("val|test/a|b"))
    assert found(tmp_path) == {(None, "a"): 6, (None, "b"): 6}
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path)))
    source.records()
    assert "data.split.test_fraction sets the share of held-out images" in source.remarks().notes[-1]


def test_classes_named_like_parts_are_classes_next_to_others(tmp_path: Path) -> None:
    plant(tmp_path, files("train|bus|car"))
    assert found(tmp_path) == {(None, "train"): 3, (None, "bus"): 3, (None, "car"): 3}


@pytest.mark.parametrize(
    ("names", "inside"), [("train|val", "a|b|c"), ("Train|Validation", "a|b|c"), ("train|test", "a|b|c")]
)
def test_a_train_val_tree_is_evaluated_by_its_classes(names: str, inside: str, tmp_path: Path) -> None:
    plant(tmp_path, files(f"{names}/{inside}"))
    options = config_of_options("resnet18", None, str(tmp_path), None)
    assert options.data.split is not None
    split = draw_split(ImageFolder(ImageFolder.Config(path=str(tmp_path))).records(), options.data.split)
    assert set(zip(split["class_name"].to_pylist(), split["role"].to_pylist(), strict=True)) == {
        (name, "unseen") for name in "abc"
    }
    chosen = config_of_options("resnet18", None, str(tmp_path), "a,b").data.split
    roles = Counter(
        draw_split(ImageFolder(ImageFolder.Config(path=str(tmp_path))).records(), chosen)["role"].to_pylist()
    )
    # Unseen classes use the images of both parts; the parts split only the seen class.
    assert roles == {"unseen": 12, "seen_train": 3, "seen_test": 3}


@pytest.mark.parametrize("names", ["train|test|unseen", "Train|Test|Unseen", "training|val|UNSEEN"])
def test_a_tree_with_an_unseen_part_needs_no_option(names: str, tmp_path: Path) -> None:
    *seen, unseen = names.split("|")
    plant(tmp_path, files(f"{'|'.join(seen)}/a|b") + files(f"{unseen}/c|d") + ["__MACOSX/x", ".git/x"])
    config = config_of_options("resnet18", None, str(tmp_path), None, has_unseen=has_unseen_part(str(tmp_path)))
    assert config.data.split is None
    split = draw_split(ImageFolder(ImageFolder.Config(path=str(tmp_path))).records(), None)
    assert Counter(split["role"].to_pylist()) == {"seen_train": 6, "seen_test": 6, "unseen": 6}


def test_has_unseen_part(tmp_path: Path) -> None:
    assert not has_unseen_part(str(tmp_path / "nowhere"))
    assert not has_unseen_part(str(plant(tmp_path, files("a|unseen"))))
    assert has_unseen_part(f"file://{plant(tmp_path / 's', files('Train|Unseen/a|b'))}")
    assert parts_of([]) == {}


def test_a_class_with_held_out_images_only_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, files("train/a|b|c|d") + files("val/a|b|c|d|e"))
    chosen = config_of_options("resnet18", None, str(tmp_path), "a,b").data.split
    with pytest.raises(ConfigError, match="classes in test but not in train: e"):
        draw_split(ImageFolder(ImageFolder.Config(path=str(tmp_path))).records(), chosen)


REFUSED = {
    "classes in groups": (files("g|h/a|b"), None, r"2 of 2 class directories .* \(g, h\).*`data.source.depth: 2`"),
    "the same names in two groups": (files("g|h/a|b"), None, "either level may be the classes"),
    "one nested among flat ones": (files("a|b") + files("c/x|y"), None, r"1 of 3 class directories .* \(c\)"),
    "groups below parts": (files("train|val/g|h/a|b"), None, "4 of 4 class directories"),
    "parts below classes": (files("a|b/train|val"), None, r"2 of 2 class directories .* \(a, b\)"),
    "one directory around all": (files("photos/a|b"), None, "single directory, photos, .* set the path to .*/photos"),
    "one part around all": (files("train/a|b"), None, "a single directory, train, .* set the path to .*/train"),
    "images only": (["1.png", "2.png"], None, "found 2 images and no class directory"),
    "archives only": (["a.zip", "b.tar", "x.txt"], None, r"1 \.tar \(an archive: unpack it\), .*\.zip"),
    "parts with images only": (files("train|val"), None, "train, val: parts of a split without class directories"),
    "one part with images only": (files("train/a|b") + files("val"), None, "val: parts of a split without class"),
    "nothing": ([], None, "no class directory"),
    "a depth beyond the images": (files("a|b"), 2, "no directory at depth 2"),
    "a depth beyond some images": (files("a/x|y") + files("b"), 2, r"3 images are above .* \(b/0.png, b/1.png, .*\)"),
    "an empty class": ([*files("a|b"), "c/"], None, r"no image in the class directory .*/c$"),
    "a class of hidden images": ([*files("a|b"), "c/.x.png", "c/.ipynb_checkpoints/1.png"], None, "directory .*/c$"),
    "a class of other files": ([*files("a|b"), "c/1.svg", "c/2.txt"], None, r"/c: it contains 1 \.svg \(.*, 1 \.txt"),
    "an empty class below a part": ([*files("train|val/a|b"), "val/c/"], None, "class directory .*/val/c$"),
}  # fmt: skip


@pytest.mark.parametrize(("paths", "depth", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_trees_with_ambiguous_classes_are_refused(
    paths: list[str], depth: int | None, why: str, tmp_path: Path
) -> None:
    root = plant(tmp_path / "root", paths) if paths else tmp_path
    for path in paths:
        if path.endswith((".svg", ".txt", ".zip", ".tar")):
            (root / path).write_bytes(b"<svg")
    with pytest.raises(ConfigError) as caught:
        ImageFolder(ImageFolder.Config(path=str(root), depth=depth)).records()
    assert len(caught.value.problems) == 1
    assert re.search(why, caught.value.problems[0], re.S)


def test_the_message_shows_the_found_and_the_expected_tree(tmp_path: Path) -> None:
    plant(tmp_path, files("g|h/a|b|c|d|e"))
    with pytest.raises(ConfigError) as caught:
        ImageFolder(ImageFolder.Config(path=str(tmp_path))).records()
    lines = [line.strip().replace(str(tmp_path), "ROOT") for line in caught.value.problems[0].splitlines()[1:]]
    assert lines == [
        "found:",
        "ROOT/",
        *("g/", "a/ (3 images)", "b/ (3 images)", "c/ (3 images)", "..."),
        *("h/", "a/ (3 images)", "b/ (3 images)", "c/ (3 images)", "..."),
        "expected: ROOT/<class>/<image>, or ROOT/{train,test,unseen}/<class>/<image>",
    ]


def test_depth_2_reads_nested_classes(tmp_path: Path) -> None:
    plant(tmp_path, files("g|h/a|b"))
    # A class name that occurs in two groups means two classes.
    assert found(tmp_path, 2) == {(None, name): 3 for name in ("g/a", "g/b", "h/a", "h/b")}
    assert found(tmp_path, 1) == {(None, "g"): 6, (None, "h"): 6}
    plant(tmp_path / "s", files("train|unseen/g|h/a"))
    assert found(tmp_path / "s", 2) == {(part, name): 3 for part in ("train", "unseen") for name in ("g/a", "h/a")}
    data = DataConfig.model_validate({"source": {"kind": "image_folder", "path": "x", "depth": 2}})
    assert data.source.model_dump()["depth"] == 2


def test_the_same_subdirectory_in_each_class_is_no_class(tmp_path: Path) -> None:
    # As in Tiny ImageNet: train/<class>/images/*.
    plant(tmp_path, files("a|b/images"))
    assert found(tmp_path) == {(None, "a"): 3, (None, "b"): 3}


def test_subdirectories_of_a_class_with_images_belong_to_it_with_a_remark(tmp_path: Path) -> None:
    plant(tmp_path, files("a|b") + files("a/more", 2))
    assert found(tmp_path) == {(None, "a"): 5, (None, "b"): 3}
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path)))
    source.records()
    assert source.remarks().notes == (
        "images in subdirectories of class directories (2) belong to those classes: a/more/0.png, a/more/1.png",
    )


JUNK = [
    *(".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png/SYNOPHOTO_THUMB_M.png", "__MACOSX/0.png", "._0.png"),
    *(".DS_Store", "Thumbs.db", "desktop.ini", "#recycle/0.png", "$RECYCLE.BIN/0.png", "lost+found/0.png"),
    *("System Volume Information/0.png", ".thumbnails/0.png", "__pycache__/0.png", "deep/.hidden/0.png"),
]


@pytest.mark.parametrize("where", ["", "a/", "a/inner/"])
def test_hidden_and_system_files_are_ignored_at_every_depth(where: str, tmp_path: Path) -> None:
    plant(tmp_path, [*files("a|b"), "a/inner/0.png"])
    before = [record.image_id for record in ImageFolder(ImageFolder.Config(path=str(tmp_path))).records()]
    plant(tmp_path, [where + path for path in JUNK])
    if not where:
        # Without an image, it would be an empty class directory.
        (tmp_path / "deep" / "0.png").write_bytes(PNG)
        before.append("deep/0.png")
    (tmp_path / ".broken").symlink_to(tmp_path / "nowhere")
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path)))
    assert [record.image_id for record in source.records()] == sorted(before)
    assert source.remarks().left_out[-1] == f"hidden and system files: {len(JUNK)}"


def test_images_are_detected_by_content_and_ignored_files_counted_by_suffix(tmp_path: Path) -> None:
    taken = {
        "a.jfif": "JPEG", "b.jpe": "JPEG", "c.avif": "AVIF", "d.jp2": "JPEG2000", "e": "PNG", "f.xyz": "WEBP",
        "g.JPG": "JPEG", "h.PNG": "PNG", "i.0001": "TIFF", "j.": "GIF", "k.img": "BMP", "l.pnm": "PPM", "m.png": "JPEG",
    }  # fmt: skip
    for name, kind in taken.items():
        plant(tmp_path, [f"a/{name}"], image(kind))
    plant(tmp_path, files("b"))
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    others = {
        "1.txt": b"PNG", "2.csv": b"", "3.xyz": b"nothing", "4": b"P1zza", "5.svg": b"<svg/>", "6.mp4": b"",
        "7.pdf": b"", "8.jxl": b"", "9": b"BMW 320", "10.dng": PNG, "11.npy": b"", "12": b"\xff\x0a" + bytes(20),
    }  # fmt: skip
    for name, content in others.items():
        plant(tmp_path, [f"a/{name}"], content)
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path)))
    assert [record.path for record in source.records() if record.class_name == "a"] == sorted(f"a/{n}" for n in taken)
    assert source.remarks().left_out == (
        "files that are not decodable images: 2 .jxl (JPEG XL: convert to PNG), 2 no suffix, 1 .csv, "
        "1 .dng (camera raw: develop to TIFF or PNG), 1 .mp4 (video: save frames as images), "
        "1 .npy (an array: save as PNG or TIFF), 1 .pdf (render to PNG), 1 .svg (render to PNG), 1 .txt, 1 .xyz",
    )
    for name, kind in taken.items():
        assert source.read(f"a/{name}", None) == image(kind)
    plant(tmp_path, ["a/x.HEIC", "a/y"], heic)
    if "HEIF" not in Image.OPEN:
        source.records()
        assert "2 .heic (HEIF: pip install pillow-heif)" in source.remarks().left_out[0]


def test_unreadable_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, [*files("a|b"), "a/strange"])
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path)))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(source.storage), "read_with", refuse)
    assert len(source.records()) == 6
    assert source.remarks().left_out == ("files that are not decodable images: 1 no suffix (unreadable)",)


def test_images_outside_the_class_directories_are_reported(tmp_path: Path) -> None:
    plant(tmp_path, [*files("a|b"), "preview.png"])
    source = ImageFolder(ImageFolder.Config(path=str(tmp_path)))
    assert len(source.records()) == 6
    assert source.remarks().left_out == ("images outside the class directories: 1: preview.png",)


def test_a_file_as_root_is_refused(tmp_path: Path) -> None:
    for name, why in (
        ("x.zip", "is a file \\(an archive: unpack it\\)"),
        ("x.png", "expected a directory, .* is a file"),
    ):
        plant(tmp_path, [name])
        with pytest.raises(ConfigError, match=why):
            ImageFolder(ImageFolder.Config(path=str(tmp_path / name))).records()


def test_terminal_escapes_in_names_are_printable(tmp_path: Path) -> None:
    plant(tmp_path, files("g\x1b[31m|h/a|b"))
    with pytest.raises(ConfigError) as caught:
        ImageFolder(ImageFolder.Config(path=str(tmp_path))).records()
    assert "\x1b" in str(caught.value)
    assert "\x1b" not in printable(str(caught.value))


@pytest.mark.parametrize("depth", [None, 1, 2])
def test_a_directory_without_images_next_to_parts_is_ignored(depth: int | None, tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_images(tmp_path / part, {"a": 4, "b": 4})
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    records = ImageFolder(ImageFolder.Config(path=str(tmp_path))).records()
    assert {(record.class_name, record.part) for record in records} == {(c, p) for c in "ab" for p in ("train", "test")}
    write_images(tmp_path / "extra", {"a": 2})
    with pytest.raises(
        ConfigError, match="train, val are named like the parts of a split, and extra next to them is not"
    ):
        ImageFolder(ImageFolder.Config(path=str(tmp_path), depth=depth)).records()


def test_one_image_next_to_subdirectories_does_not_merge_them_into_a_class(tmp_path: Path) -> None:
    for group, names in (("animals", ("cat", "dog")), ("plants", ("oak", "elm"))):
        write_images(tmp_path / group, dict.fromkeys(names, 3))
        write_images(tmp_path, {group: 1})
    with pytest.raises(ConfigError, match="so either level may be the classes"):
        ImageFolder(ImageFolder.Config(path=str(tmp_path))).records()
