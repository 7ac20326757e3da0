"""Detection of decodable image formats by suffix or first bytes, and advice for other formats."""

import contextlib
import importlib
from functools import cache

from PIL import Image

# Formats that are decoded: none that starts a program (EPS), has no pixels, or lacks a signature.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "PSD", "QOI", "DDS", "HEIF")
HEAD_BYTES = 32

# Suffixes of decodable formats, trusted without reading the content.
FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIF"),
    **{f".{name.lower()}": name for name in ("WEBP", "GIF", "BMP", "PSD", "QOI", "DDS")},
}

# Pseudo-suffix of Git LFS pointers: a checkout's placeholders for files that were not fetched.
GIT_LFS = "Git LFS pointer"
# Advice by suffix, for image-like files that cannot be decoded here.
ADVICE = {
    GIT_LFS: "git lfs pull",
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIF: pip install pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "AVIF: pip install 'pillow>=11.3'"),
    ".jxl": "JPEG XL: convert to PNG",
    **dict.fromkeys(
        (".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f"),
        "camera raw: develop to TIFF or PNG",
    ),
    **dict.fromkeys((".svg", ".svgz", ".eps", ".ps", ".ai", ".wmf", ".emf", ".pdf", ".djvu"), "render to PNG"),
    **dict.fromkeys(
        (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".m4v", ".flv", ".3gp"),
        "video: save frames as images",
    ),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"), "an archive: unpack it"),
    **dict.fromkeys((".dcm", ".dicom", ".nii", ".mha", ".nrrd"), "medical image: convert to PNG or TIFF"),
    **dict.fromkeys((".npy", ".npz", ".mat", ".pt", ".fits", ".fit", ".fts"), "an array: save as PNG or TIFF"),
    **dict.fromkeys((".parquet", ".arrow", ".h5", ".hdf5", ".tfrecord", ".lmdb"), "a table: see data.source.kind"),
    **dict.fromkeys((".tga", ".pcx", ".ico", ".icns", ".sgi", ".exr", ".hdr", ".xcf", ".psb"), "convert to PNG"),
}
# Never images: not read.
OTHER_SUFFIXES = frozenset(
    {
        *(".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml"),
        *(".ini", ".cfg", ".html", ".htm", ".css", ".js", ".py", ".ipynb", ".sh", ".m", ".log"),
        *(".db", ".sqlite", ".pkl", ".pickle", ".pth", ".ckpt", ".safetensors", ".onnx", ".md5", ".sha1", ".sha256"),
        *(".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".rtf", ".mp3", ".wav", ".flac", ".xmp"),
        *(".aae", ".thm", ".part", ".tmp", ".bak", ".lock", ".crc", ".exe", ".dll", ".url", ".lnk"),
    }
)
_SUFFIX_OF_HEAD = {
    b"\xff\x0a": ".jxl",
    b"\x00\x00\x00\x0cJXL ": ".jxl",
    b"%PDF": ".pdf",
    b"%!PS": ".eps",
    b"<svg": ".svg",
    b"PK\x03\x04": ".zip",
    b"\x1f\x8b": ".gz",
    b"7z\xbc\xaf": ".7z",
    b"Rar!": ".rar",
    b"\x93NUMPY": ".npy",
    b"\x89HDF": ".h5",
    b"PAR1": ".parquet",
    b"version https://git-lfs": GIT_LFS,
    b"\x1aE\xdf\xa3": ".mkv",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@cache
def formats() -> list[str]:
    """The `FORMATS` that the installed Pillow can decode; HEIF if `pillow_heif` is installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case; empty if there is none.

    >>> suffix_of("a/B.JPG"), suffix_of("a.b/c"), suffix_of("scan.0001")
    ('.jpg', '', '.0001')
    """
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def format_of(head: bytes) -> str | None:
    """The decodable format of a file, by its first bytes; None if there is none.

    Args:
        head: the first `HEAD_BYTES` of a file, or all of it.
    """
    for name in formats():
        accepts = Image.OPEN[name][1]
        if accepts is None or accepts(head) is not True:
            continue
        # Signatures of two letters also match text files: check further bytes.
        if name == "PPM" and head[2:3] not in (b" ", b"\t", b"\n", b"\r", b"#"):
            continue
        if name == "BMP" and head[6:10] != bytes(4):
            continue
        return name
    return None


def foreign_suffix(head: bytes) -> str:
    """The usual suffix of an undecodable image format, by the first bytes; empty if unknown."""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return ".heic" if brand in _HEIF_BRANDS else ".avif" if brand in {b"avif", b"avis"} else ".mp4"
    text = head.lstrip()
    return next((suffix for start, suffix in _SUFFIX_OF_HEAD.items() if (text or head).startswith(start)), "")


def advice(suffix: str) -> str:
    """Advice for files of an undecodable suffix; empty if there is none."""
    return "" if FORMAT_OF_SUFFIX.get(suffix) in formats() else ADVICE.get(suffix, "")
