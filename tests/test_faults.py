"""File systems that really are full, read-only or closed to us: said in words, and what was committed stays."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysep import pipeline
from raysep.data.sources.image_folder import ImageFolder
from raysep.errors import ConfigError, RaysepError, StorageError
from raysep.integrity import verify
from raysep.stages.executor import LocalExecutor
from raysep.storage import lease
from raysep.storage.store import Storage
from tests.conftest import write_images
from tests.serial import configuration, results

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting, and becoming another user, take root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of a few hundred KiB, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(place)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no mounting here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user whom permissions hold back."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@as_root
def test_a_run_on_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tmp_path)
    pipeline.run(config.model_copy(update={"run_dir": str(tmp_path / "roomy")}), executor=LocalExecutor())
    tight = config.model_copy(update={"run_dir": str(small_disk / "run")})
    run, sizes = Storage(tight.run_dir), [300]
    while True:
        try:
            pipeline.run(tight, executor=LocalExecutor())
            break
        except StorageError as error:
            said = str(error)
        assert f"{small_disk}/run/" in said
        assert "No space left on device. Finished results stay valid. To continue, make room" in said
        if run.exists("config.yaml"):
            assert verify(run).findings == []
        assert run.temporary() == []
        sizes.append(sizes[-1] + 100)
        remount(small_disk, f"size={sizes[-1]}k")
    # It was full in several places, not in one.
    assert len(sizes) > 3
    assert verify(run).findings == []
    assert results(run) == results(Storage(str(tmp_path / "roomy")))


@as_root
def test_a_directory_that_is_read_only_or_another_users_is_refused(small_disk: Path, tmp_path: Path) -> None:
    small_disk.chmod(0o755)
    with nobody(), pytest.raises(RaysepError, match="Permission denied"), lease.held(Storage(str(small_disk)), "it"):
        pass
    remount(small_disk, "ro")
    with pytest.raises(RaysepError, match="Read-only file system"), lease.held(Storage(str(small_disk)), "the run"):
        pass
    with pytest.raises(StorageError, match=r"Read-only file system.*let this user write there"):
        Storage(str(small_disk)).write_bytes("file", b"1")


@as_root
def test_images_that_this_user_may_not_read() -> None:
    # pytest's own directories are closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        write_images(root, dict.fromkeys("ab", 3))
        (root / "a" / "001.png").chmod(0)
        with nobody():
            source = ImageFolder(ImageFolder.Config(path=str(root)))
            assert len(source.records()) == 6
            # Counted as failed, with this reason.
            with pytest.raises(PermissionError):
                source.read("a/001.png", None)
        (root / "b").chmod(0)
        with nobody(), pytest.raises(ConfigError, match=r"/b.*Permission denied"):
            ImageFolder(ImageFolder.Config(path=str(root))).records()
