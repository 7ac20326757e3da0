import pytest
from pydantic import ValidationError

from raysep.config import ModelConfig


@pytest.mark.parametrize(
    ("name", "kept", "made"),
    [
        ("resnet18.a1_in1k", "resnet18.a1_in1k", "resnet18.a1_in1k"),
        (" resnet18 ", "resnet18", "resnet18"),
        ("hf-hub:timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k", "hf-hub-timm-resnet18.a1_in1k"),
        ("local-dir:/models/my net/", "local-dir:/models/my net/", "local-dir-models-my-net"),
        ("/models/net", "/models/net", "models-net"),
    ],
)
def test_ids_are_derived_from_names(name: str, kept: str, made: str) -> None:
    found = ModelConfig(name=name)
    assert (found.name, found.id) == (kept, made)


def test_blank_names_are_refused() -> None:
    with pytest.raises(ValidationError, match="expected the name of a timm model"):
        ModelConfig(name="  ")


@pytest.mark.parametrize(
    ("name", "directory"),
    [("local-dir:a/b", "a/b"), ("LOCAL_DIR: /a", "/a"), ("hf-hub:a/b", None), ("resnet18", None)],
)
def test_local_directory_of_a_name(name: str, directory: str | None) -> None:
    assert ModelConfig(name=name).local_directory == directory
