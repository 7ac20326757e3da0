"""Inventory and warnings that `raysep validate` and runs print about their images."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysep.config import DataConfig
from raysep.data import inventory
from raysep.stages import validation
from tests.conftest import write_images
from tests.data.test_decoding import png16

CLASSES = "abcdefghijkl"


def data_of(root: Path, **values: Any) -> DataConfig:
    source = {"kind": "image_folder", "path": str(root)}
    return DataConfig.model_validate({"source": source, "split": {"unseen": ["a", "b"]}, **values})


def lines_of(data: DataConfig) -> list[str]:
    readers, split = validation.check_images(data)
    samples = inventory.inspect(data, readers, split)
    return list(inventory.lines(samples, inventory.remarks_of(data, readers, split, samples)))


def save(root: Path, name: str, pixels: np.ndarray, kind: str = "PNG") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, kind)


def noisy(seed: int, white: int, dtype: type, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, white, (size, size), endpoint=True).astype(dtype)


def test_the_inventory_lists_roles_classes_ids_and_ignored_files(tmp_path: Path) -> None:
    write_images(tmp_path, dict.fromkeys(CLASSES, 5))
    for name in ("notes.txt", "more.txt", ".hidden.png"):
        (tmp_path / "a" / name).write_bytes(b"x")
    Image.new("L", (30, 20)).save(tmp_path / "a" / "100.jpg", quality=100)
    lines = lines_of(data_of(tmp_path))
    assert lines == [
        "seen_train: 40 images of 10 classes",
        "  classes: c (4), d (4), e (4), f (4), g (4), h (4), i (4), j (4), k (4), l (4)",
        lines[2],
        "  32 images sampled: 16 x 16; PNG RGB",
        "seen_test: 10 images of 10 classes",
        "  classes: c (1), d (1), e (1), f (1), g (1), h (1), i (1), j (1), k (1), l (1)",
        lines[6],
        "  10 images sampled: 16 x 16; PNG RGB",
        "unseen: 11 images of 2 classes",
        "  classes: a (6), b (5)",
        "  ids: a/000.png, a/100.jpg, b/004.png",
        "  11 images sampled: 16 x 16 (10), 30 x 20 (1); PNG RGB (10), JPEG L (1)",
        "left out: files that are not decodable images: 2 .txt",
        "left out: hidden and system files: 1",
        "note: 10 of 10 classes of seen_test have under 4 images: c (1), d (1), e (1), ...; "
        "some scores are undefined for such classes",
        "note: 1 of 11 sampled images of unseen: a single colour: a/100.jpg",
    ]
    everything = lines_of(data_of(tmp_path, split={"unseen": "all"}))
    assert everything[1] == (
        "  classes: a (6), b (5), c (5), d (5), e (5), ... 2 more ..., h (5), i (5), j (5), k (5), l (5)"
    )


@pytest.mark.parametrize(
    ("white", "dtype", "bit_depth", "warning"),
    [
        (
            4095,
            np.uint16,
            None,
            "above 4095, where white is 65535, so the images are dark; if the values have 12 bits, set ",
        ),
        (
            1023,
            np.uint16,
            None,
            "above 1023, where white is 65535, so the images are dark; if the values have 10 bits, set ",
        ),
        (
            255,
            np.uint16,
            None,
            "above 255, where white is 65535, so the images are dark; if the values have 8 bits, set ",
        ),
        (15, np.uint8, None, "above 15, where white is 255, so the images are dark; if the values have 4 bits, set "),
        (1, np.uint8, None, "above 1, where white is 255, so the images are dark; if the values have 1 bit, set "),
        (0.1, np.float32, None, "where white is 1, so the images are dark"),
        (65535, np.uint16, None, None),
        (4095, np.uint16, 12, None),
        (15, np.uint8, 4, None),
        (255, np.uint8, None, None),
    ],
)
def test_unused_bits_cause_a_warning(
    white: float, dtype: type, bit_depth: int | None, warning: str | None, tmp_path: Path
) -> None:
    for number, name in enumerate(f"{c}/{i}.tif" for c in "ab" for i in range(4)):
        pixels = (noisy(number, 1000, np.int64) * (white / 1000)).astype(dtype)  # type: ignore[var-annotated]
        pixels[0, :2] = 0, white
        save(tmp_path, name, pixels, "TIFF")
    lines = lines_of(data_of(tmp_path, bit_depth=bit_depth))
    notes = [line for line in lines if line.startswith("note")]
    if warning is None:
        assert notes == []
    else:
        assert any(warning in note for note in notes)
        assert warning.endswith("dark") or any(f"data.bit_depth: {int(white).bit_length()}" in note for note in notes)


def test_12_bit_colours_in_16_bit_files_cause_a_warning(tmp_path: Path) -> None:
    for number, name in enumerate(f"{c}/{i}.png" for c in "ab" for i in range(4)):
        values = np.dstack([noisy(3 * number + band, 4095, np.uint16) for band in range(3)])
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png16(values))
    (note,) = [line for line in lines_of(data_of(tmp_path)) if line.startswith("note")]
    assert note.endswith(
        "where white is 65535, so the images are dark; if the values have 12 bits, set data.bit_depth: 12"
    )
    assert not [line for line in lines_of(data_of(tmp_path, bit_depth=12)) if line.startswith("note")]


def test_16_bit_grey_with_transparency_causes_no_warning(tmp_path: Path) -> None:
    for number, name in enumerate(f"{c}/{i}.png" for c in "ab" for i in range(4)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        both = np.dstack([noisy(number, 65535, np.uint16), np.full((8, 8), 65535, np.uint16)])
        (tmp_path / name).write_bytes(png16(both))
    assert not [line for line in lines_of(data_of(tmp_path)) if line.startswith("note")]


def test_lossy_formats_get_no_bit_depth_hint(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 4, "b": 4})
    for number, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        save(tmp_path, f"{path.parent.name}/{path.stem}.jpg", noisy(number, 30, np.uint8), "JPEG")
        path.unlink()
    for given in (None, 12):
        (note,) = [line for line in lines_of(data_of(tmp_path, bit_depth=given)) if "dark" in line]
        assert note.endswith("so the images are dark")


def test_faint_uniform_unreadable_and_duplicate_images_cause_warnings(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 3, "b": 5})
    save(tmp_path, "a/faint.png", 200 + noisy(0, 10, np.uint8))
    save(tmp_path, "a/plain.png", np.full((8, 8), 90, np.uint8))
    (tmp_path / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "b" / "same.png").write_bytes((tmp_path / "a" / "000.png").read_bytes())
    of = "of 12 sampled images of unseen"
    notes = [line for line in lines_of(data_of(tmp_path)) if line.startswith("note: ")]
    assert [line for line in notes if "can't be read" not in line] == [
        f"note: 1 {of}: a single colour: a/plain.png",
        f"note: 1 {of}: contrast below 5% of the range from black to white: a/faint.png",
        "note: 2 sampled images have the same content as another: a/000.png = b/same.png",
    ]
    assert f"note: 1 {of}: can't be read: b/broken.png (not a decodable image" in notes[0]


def test_pages_beyond_the_first_cause_a_warning(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 4, "b": 4})
    pages = [Image.fromarray(noisy(seed, 255, np.uint8)) for seed in range(3)]
    pages[0].save(tmp_path / "a" / "stack.tif", save_all=True, append_images=pages[1:])
    (note,) = [line for line in lines_of(data_of(tmp_path)) if line.startswith("note: ")]
    assert note.endswith("several frames or pages, of which only the first is used: a/stack.tif")


def test_domains_and_their_sources_are_listed(tmp_path: Path) -> None:
    write_images(tmp_path / "run", {"a": 5, "b": 5})
    write_images(tmp_path / "other", {"a": 4, "b": 4}, seed=1)
    (tmp_path / "other" / "a" / "x.csv").write_text("x")
    domains = [
        {"name": "other", "source": {"kind": "image_folder", "path": str(tmp_path / "other")}},
        {"name": "blurred", "corruption": "blur"},
    ]
    lines = lines_of(data_of(tmp_path / "run", domains=domains))
    assert "other: 8 images of 2 classes" in lines
    assert "blurred: 10 images of 2 classes" in lines
    assert lines[-1] == "left out: data.domains, other: files that are not decodable images: 1 .csv"


def test_digits_and_parquet_with_a_bit_depth_are_listed(tmp_path: Path) -> None:
    digits = DataConfig.model_validate({"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9]}})
    assert "unseen: 533 images of 3 classes" in lines_of(digits)
    content = io.BytesIO()
    Image.fromarray(noisy(0, 4095, np.uint16)).save(content, "TIFF")
    rows = {"image": [content.getvalue()] * 8, "label": list("aaaabbbb")}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    data = DataConfig.model_validate(
        {"source": {"kind": "parquet", "path": str(tmp_path)}, "split": {"unseen": "all"}, "bit_depth": 12}
    )
    assert "  8 images sampled: 8 x 8; TIFF I;16" in lines_of(data)
