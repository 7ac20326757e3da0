from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raysep.errors import ConfigError
from raysep.sweeps.cells import cells_of, known
from raysep.sweeps.config import SweepConfig, is_sweep, load_sweep
from tests.conftest import REPOSITORY, write_images

DIGITS = {"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9]}}
MODELS = [{"name": "test_resnet", "pretrained": False}, {"name": "test_vit", "pretrained": False}]


def sweep(**sections: Any) -> SweepConfig:
    base = {"data": DIGITS, "finetune": {"steps": 2}, **sections.pop("base", {})}
    matrix = {"models": MODELS, **sections.pop("matrix", {})}
    return SweepConfig.model_validate({"base": base, "matrix": matrix, **sections})


def test_cells_are_the_product_of_the_axes_in_their_order():
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


def test_an_axis_that_is_left_out_is_what_base_says():
    (cell,) = cells_of(sweep(base={"models": MODELS[:1]}, matrix={"models": []}))
    assert cell.name == "test_resnet"
    assert cell.config.finetune is not None
    assert cell.config.finetune.seeds == [0]


def test_include_and_exclude():
    found = sweep(
        matrix={"seeds": [0, 1]},
        exclude=[{"model": "test_vit", "seed": 1}],
        include=[{"model": "test_vit", "seed": 7}],
    )
    assert [cell.name for cell in cells_of(found)] == [
        "test_resnet_seed0",
        "test_resnet_seed1",
        "test_vit_seed0",
        "test_vit_seed7",
    ]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"exclude": [{"seed": 4}]}, "exclude.0: no cell is like that"),
        ({"include": [{"model": "x"}]}, "include.0.model: there is no 'x'"),
        ({"include": [{"model": "test_vit"}]}, "two cells are called test_vit"),
        ({"exclude": [{}]}, "no cell is left"),
        ({"matrix": {"overrides": {"o": {"finetune.stepps": 1}}}}, "test_resnet_o: finetune.stepps: unknown key"),
        ({"matrix": {"models": [MODELS[0], MODELS[0]]}}, "two are called test_resnet"),
        ({"base": {"finetune": None}, "matrix": {"seeds": [0, 1]}}, "a seed changes nothing"),
        ({"base": {"finetune": None}, "include": [{"seed": 3}]}, "a seed changes nothing"),
        ({"base": {"score": {"resamples": 0}}, "baseline": {}}, "without intervals"),
        ({"matrix": {"models": []}}, "expected a list of models"),
    ],
)
def test_what_is_wrong_is_said_before_any_cell_runs(sections: dict[str, Any], words: str):
    with pytest.raises(ConfigError) as caught:
        cells_of(sweep(**sections))
    assert words in str(caught.value)


def test_unknown_keys_and_zones_are_refused_with_what_there_is(tmp_path: Path):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": {}, "matrix": {"seed": [1]}, "timezone": "Mars/Olympus"}))
    with pytest.raises(ConfigError) as caught:
        load_sweep(str(file))
    assert "matrix.seed: unknown key. Did you mean 'seeds'?" in str(caught.value)
    assert "'Mars/Olympus' is no time zone" in str(caught.value)


def test_a_base_may_be_a_file_beside_the_sweep(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"data": DIGITS, "models": MODELS}))
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"name": "n", "base": "base.yaml", "matrix": {}}))
    found = load_sweep(str(file))
    assert len(cells_of(found)) == 2
    assert (found.root, found.results) == ("runs/sweeps/n", "runs/sweeps/n/results")
    assert is_sweep(str(file))
    assert not is_sweep(str(tmp_path / "base.yaml"))


def test_the_sweeps_of_this_repository_are_valid():
    files = sorted((REPOSITORY / "jobs" / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        assert cells_of(load_sweep(str(file)))


def test_rounds_are_labelled_in_the_time_zone_of_the_sweep():
    midnight = datetime(2026, 6, 1, 23, 30, tzinfo=UTC)
    assert sweep(round="%Y-%m-%d", timezone="Europe/Berlin").label(midnight) == "2026-06-02"
    assert sweep(round="%Y-%m-%d").label(midnight) == "2026-06-01"
    assert sweep().label(midnight) == "once"
    with pytest.raises(ConfigError, match="can't name a directory"):
        sweep(round="%H:%M").label(midnight)


def test_a_key_is_of_what_is_found_and_not_of_how_or_where(tmp_path: Path):
    write_images(tmp_path / "images", {"a": 4, "b": 4, "c": 4})
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"first")
    data = {"source": {"kind": "image_folder", "path": str(tmp_path / "images")}, "split": {"unseen": ["b", "c"]}}

    def key(**base: Any) -> str:
        models = [{"name": "test_resnet", "pretrained": str(weights)}]
        (cell,) = cells_of(sweep(base={"data": data, "models": models, **base}, matrix={"models": []}))
        known.__globals__["_data"].cache_clear()
        known.__globals__["_weights"].cache_clear()
        return known(cell).key

    first = key()
    assert key(compute={"score_actors": 1}, monitoring={"port": None}) == first
    assert key(finetune={"steps": 3}) != first
    weights.write_bytes(b"second")
    second = key()
    assert second != first
    (tmp_path / "images" / "b" / "000.png").unlink()
    assert key() != second


@given(st.lists(st.integers(0, 99), max_size=3, unique=True), st.integers(0, 2), st.integers(1, 2))
def test_every_cell_has_a_name_of_its_own(seeds: list[int], overrides: int, models: int):
    matrix = {"models": MODELS[:models], "seeds": seeds, "overrides": {f"o{n}": {} for n in range(overrides)}}
    names = [cell.name for cell in cells_of(sweep(matrix=matrix))]
    assert len(names) == len(set(names)) == models * max(1, len(seeds)) * max(1, overrides)
