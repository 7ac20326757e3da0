from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raysep.errors import ConfigError
from raysep.sweeps.cells import cells_of, inputs_of
from raysep.sweeps.config import SweepConfig, is_sweep, load_sweep
from tests.conftest import REPOSITORY, write_images

DIGITS = {"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9]}}
MODELS = [{"name": "test_resnet", "pretrained": False}, {"name": "test_vit", "pretrained": False}]


def sweep(**sections: Any) -> SweepConfig:
    base = {"data": DIGITS, "finetune": {"steps": 2}, **sections.pop("base", {})}
    matrix = {"models": MODELS, **sections.pop("matrix", {})}
    return SweepConfig.model_validate({"base": base, "matrix": matrix, **sections})


def test_cells_are_the_product_of_the_axes_in_their_order() -> None:
    axes = {"domains": {"a": DIGITS, "b": DIGITS}, "seeds": [0, 3], "protocols": ["default", "paper"]}
    overrides = {"short": {}, "long": {"finetune.steps": 9}}
    cells = cells_of(sweep(matrix={**axes, "overrides": overrides}))
    assert len(cells) == 2**5
    assert [cell.name for cell in cells[:3]] == [
        "test_resnet_a_seed0_default_short",
        "test_resnet_a_seed0_default_long",
        "test_resnet_a_seed0_paper_short",
    ]
    last = cells[-1].config
    assert [model.name for model in last.models] == ["test_vit"]
    assert last.finetune is not None
    assert (last.finetune.seeds, last.finetune.steps, last.score.protocols) == ([3], 9, ["paper"])


def test_an_unset_axis_has_the_value_of_base() -> None:
    (cell,) = cells_of(sweep(base={"models": MODELS[:1]}, matrix={"models": []}))
    assert cell.name == "test_resnet"
    assert cell.config.finetune is not None
    assert cell.config.finetune.seeds == [0]


def test_include_and_exclude() -> None:
    config = sweep(
        matrix={"seeds": [0, 1]},
        exclude=[{"model": "test_vit", "seed": 1}],
        include=[{"model": "test_vit", "seed": 7}],
    )
    assert [cell.name for cell in cells_of(config)] == [
        "test_resnet_seed0",
        "test_resnet_seed1",
        "test_vit_seed0",
        "test_vit_seed7",
    ]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"exclude": [{"seed": 4}]}, "exclude.0: matches no cell"),
        ({"include": [{"model": "x"}]}, "include.0.model: the matrix has no 'x'"),
        ({"include": [{"model": "test_vit"}]}, "two cells have the name test_vit"),
        ({"exclude": [{}]}, "no cell is left"),
        ({"matrix": {"overrides": {"o": {"finetune.stepps": 1}}}}, "test_resnet_o: finetune.stepps: unknown key"),
        ({"matrix": {"models": [MODELS[0], MODELS[0]]}}, "two models have the id test_resnet"),
        ({"base": {"finetune": None}, "matrix": {"seeds": [0, 1]}}, "seeds have no effect"),
        ({"base": {"finetune": None}, "include": [{"seed": 3}]}, "seeds have no effect"),
        ({"base": {"score": {"resamples": 0}}, "baseline": {}}, "expected score.resamples > 0"),
        ({"matrix": {"models": []}}, "expected a list of models"),
    ],
)
def test_invalid_cells_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cells_of(sweep(**sections))
    assert words in str(caught.value)


def test_unknown_keys_and_zones_are_refused_with_suggestions(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": {}, "matrix": {"seed": [1]}, "timezone": "Mars/Olympus"}))
    with pytest.raises(ConfigError) as caught:
        load_sweep(str(file))
    assert "matrix.seed: unknown key. Did you mean 'seeds'?" in str(caught.value)
    assert "'Mars/Olympus' is no time zone" in str(caught.value)


def test_a_base_may_be_a_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": DIGITS, "models": MODELS}))
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "n", "base": "base.yaml", "matrix": {}}))
    config = load_sweep(str(file))
    assert len(cells_of(config)) == 2
    assert (config.root, config.results) == ("runs/sweeps/n", "runs/sweeps/n/results")
    assert is_sweep(str(file))
    assert not is_sweep(str(tmp_path / "base.yaml"))


def test_the_sweeps_of_this_repository_are_valid() -> None:
    files = sorted((REPOSITORY / "jobs" / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        assert cells_of(load_sweep(str(file)))


def test_rounds_are_labelled_in_the_time_zone_of_the_sweep() -> None:
    midnight = datetime(2026, 6, 1, 23, 30, tzinfo=UTC)
    assert sweep(round="%Y-%m-%d", timezone="Europe/Berlin").label(midnight) == "2026-06-02"
    assert sweep(round="%Y-%m-%d").label(midnight) == "2026-06-01"
    assert sweep().label(midnight) == "once"
    with pytest.raises(ConfigError, match="can't name a directory"):
        sweep(round="%H:%M").label(midnight)


def test_a_cache_key_depends_on_inputs_and_not_on_compute_settings(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 4, "b": 4, "c": 4})
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"first")
    data = {"source": {"kind": "image_folder", "path": str(tmp_path / "images")}, "split": {"unseen": ["b", "c"]}}

    def key(**base: Any) -> str:
        models = [{"name": "test_resnet", "pretrained": str(weights)}]
        (cell,) = cells_of(sweep(base={"data": data, "models": models, **base}, matrix={"models": []}))
        inputs_of.__globals__["_data"].cache_clear()
        inputs_of.__globals__["_weights"].cache_clear()
        return inputs_of(cell).key

    first = key()
    assert key(compute={"score_actors": 1}, monitoring={"port": None}) == first
    assert key(finetune={"steps": 3}) != first
    weights.write_bytes(b"second")
    second = key()
    assert second != first
    (tmp_path / "images" / "b" / "000.png").unlink()
    assert key() != second


@given(st.lists(st.integers(0, 99), max_size=3, unique=True), st.integers(0, 2), st.integers(1, 2))
def test_cell_names_are_unique(seeds: list[int], overrides: int, models: int) -> None:
    matrix = {"models": MODELS[:models], "seeds": seeds, "overrides": {f"o{n}": {} for n in range(overrides)}}
    names = [cell.name for cell in cells_of(sweep(matrix=matrix))]
    assert len(names) == len(set(names)) == models * max(1, len(seeds)) * max(1, overrides)
