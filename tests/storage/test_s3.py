"""Storage and leases over the S3 protocol."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysep.data.parts import has_unseen_part
from raysep.data.sources.image_folder import ImageFolder
from raysep.errors import UsageError
from raysep.storage.store import Storage, is_uri
from raysep.storage.uris import file_exists, read_file
from tests.ports import free_port
from tests.s3 import BUCKET, serving
from tests.storage.test_lease import race


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serving(free_port()) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


def test_written_files_are_read_back(bucket: str) -> None:
    storage = Storage(f"{bucket}/a/b")
    assert not storage.exists()
    assert storage.files() == []
    storage.reach()
    storage.write_json("x/y.json", {"é": 1})
    storage.write_bytes("x/z", b"first")
    storage.write_bytes("x/z", b"second")
    assert storage.exists()
    assert storage.exists("x")
    assert not storage.is_file("x")
    assert storage.files() == ["x/y.json", "x/z"]
    assert storage.read_json("x/y.json") == {"é": 1}
    again = pickle.loads(pickle.dumps(storage))
    assert again.read_bytes("x/z") == b"second"
    assert storage.at("x").files() == ["y.json", "z"]
    storage.delete("x/z")
    storage.delete("x/z")
    assert storage.files() == ["x/y.json"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("x/z")


def test_options_of_a_uri_are_kept_and_not_part_of_paths(bucket: str) -> None:
    storage = Storage(f"{bucket}/options?region=us-east-1")
    storage.write_bytes("d/file", b"1")
    assert storage.display("d/file") == f"{bucket}/options/d/file"
    assert pickle.loads(pickle.dumps(storage)).at("d").read_bytes("file") == b"1"
    uri = f"{bucket}/options/d/file?region=us-east-1"
    assert is_uri(uri)
    assert file_exists(uri)
    assert read_file(uri) == b"1"
    assert not file_exists(f"{bucket}/options/none")


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(UsageError, match=r"the bucket 'not-there' does not exist"):
        Storage("s3://not-there/run").reach()


def test_credentials_in_a_uri_are_refused_and_not_printed() -> None:
    with pytest.raises(UsageError, match="environment") as caught:
        Storage("s3://AKIA:hidden@bucket/x")
    assert "hidden" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_a_user_name_in_an_abfs_or_sftp_uri_is_accepted() -> None:
    assert "gs://anonymous@bucket" in Storage("gs://anonymous@bucket/x").uri


def test_other_file_systems_come_from_fsspec(tmp_path: Path) -> None:
    storage = Storage("memory://raysep/run")
    storage.write_bytes("a/b", b"1")
    assert storage.files() == ["a/b"]
    assert storage.at("a").read_bytes("b") == b"1"


def test_one_of_many_concurrent_processes_acquires_the_lease(bucket: str) -> None:
    assert race(f"{bucket}/race") == (1, 4)


def test_image_folders_are_the_same_as_on_a_disk(bucket: str, tree: Path) -> None:
    for relative in ("a/.ipynb_checkpoints/0.png", "b/@eaDir/1.png", "notes.txt", "c/strange"):
        file = tree / relative
        file.parent.mkdir(exist_ok=True)
        file.write_bytes((tree / "a" / "000.png").read_bytes())
    remote = Storage(f"{bucket}/images")
    for path in tree.rglob("*"):
        if path.is_file():
            remote.write_bytes(str(path.relative_to(tree)), path.read_bytes())
    here, there = (
        ImageFolder(ImageFolder.Config(path=str(tree))),
        ImageFolder(ImageFolder.Config(path=f"{bucket}/images")),
    )
    assert there.records() == here.records()
    assert len(there.records()) == 61
    assert there.remarks() == here.remarks()
    assert len(there.remarks().left_out) == 2
    assert not has_unseen_part(f"{bucket}/images")
    remote.write_bytes("s/Train/a/0.png", b"x")
    remote.write_bytes("s/unseen/b/0.png", b"x")
    assert has_unseen_part(f"{bucket}/images/s")
    assert not has_unseen_part(f"{bucket}/nowhere")
