import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raysep.config import RunConfig
from raysep.config.load import build_config, config_of_options, differences, load_config, put, read_yaml, to_yaml
from raysep.errors import ConfigError
from tests.conftest import REPOSITORY

DIGITS = {"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9]}}


def base(**sections: Any) -> dict[str, Any]:
    return {
        "data": {"source": {"kind": "digits"}, "split": {"unseen": [7, 8, 9]}},
        "models": [{"name": "resnet18", "pretrained": False}],
        "finetune": {"steps": 10},
        **sections,
    }


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_config(values, "x.yaml")
    return caught.value.problems


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(base()))
    return str(path)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs" / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_configs_of_the_project_are_valid_and_round_trip(path: Path) -> None:
    config = load_config(str(path))
    assert RunConfig.model_validate(yaml.safe_load(to_yaml(config))) == config


def test_defaults_are_written_out() -> None:
    config = build_config(base())
    assert config.finetune is not None
    assert config.finetune.evaluate_at == [0, 10]
    assert config.models[0].id == "resnet18"
    assert config.run_dir == "runs/run"
    assert config.data.split is not None
    assert config.data.split.unseen == ["7", "8", "9"]


def test_all_problems_are_reported_at_once() -> None:
    found = problems(
        base(
            data={"source": {"kind": "digits", "path": "x"}, "split": {"unseen": [7]}},
            models=[{"name": "a", "pooling": "best"}],
            score={"metrics": ["nmy"]},
            modles=1,
        )
    )
    text = "\n".join(found)
    assert len(found) == 5
    for part in ("data.source.path", "2 classes", "models.0.pooling", "score.metrics.0", "Did you mean 'models'"):
        assert part in text


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (
            base(data={"source": {"kind": "digits"}, "split": {"unseen": [1, 2], "seen": [2, 3]}}),
            "both seen and unseen: 2",
        ),
        (base(data={"source": {"kind": "digits"}, "split": {}}), "either `unseen`"),
        (base(data={"source": {"kind": "digits"}, "split": {"unseen": "all"}}), "finetune needs seen classes"),
        (base(data={"source": {"kind": "zip"}}), "'cifar100', 'digits', 'huggingface', 'image_folder'"),
        (base(data={"source": {"kind": "parquet"}}), "data.source.path: field required"),
        (base(data={**DIGITS, "split": {"unseen": [1, 2], "rotations": 2}}), "give `unseen_fraction`"),
        (base(data={**DIGITS, "split": {"unseen_fraction": 0.4, "rotations": 3}}), "need more classes than exist"),
        (base(data={**DIGITS, "domains": [{"name": "seen", "corruption": "blur"}]}), "is a split already"),
        (base(data={**DIGITS, "domains": [{"name": "a"}]}), "either `source` or `corruption`"),
        (base(data={**DIGITS, "domains": [{"name": "a", "corruption": "blur"}] * 2}), "two domains are called a"),
        (base(data={**DIGITS, "domains": [{"name": "a", "corruption": "blur", "severity": 6}]}), "severity"),
        (base(models=[{"name": "a", "id": "a--untrained"}]), "reserved for baselines"),
        (base(score={"resamples": 6}), "fewer than 20 resamples"),
        (base(score={"resamples": 201}), "multiple of 2"),
        (base(models=[]), "models"),
        (base(models=[{"name": "a"}, {"name": "a"}]), "two models are called a"),
        (base(models=[{"name": "a", "id": "../a"}]), "names a directory"),
        (base(models=[{"name": "a", "layers": []}]), "at least one layer"),
        (base(finetune={"steps": 5, "evaluate_at": [9]}), "between 0 and `steps` = 5"),
        (base(finetune={"learning_rate": {"loguniform": [1, 2], "choice": [1]}}), "name one search space"),
        (base(finetune={"learning_rate": [-1.0]}), "finetune.learning_rate.0"),
        (base(finetune={"seeds": [1, 1]}), "different seeds"),
        (base(embed={"splits": ["seen"]}), "expected `unseen`"),
        (base(report={"metric": "nmi"}, score={"metrics": ["ari"]}), "is not in score.metrics"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], part: str) -> None:
    assert part in "\n".join(problems(values))


def test_unknown_keys_name_the_valid_ones_of_their_section() -> None:
    found = problems(base(finetune={"learning_rate": {"loguniforn": [1, 2]}}))
    assert found[0].startswith("finetune.learning_rate.loguniforn: unknown key. Did you mean 'loguniform'?")
    assert "quniform" in found[0]


def test_overrides_use_the_names_of_the_yaml(file: str) -> None:
    config = load_config(file, ["models.0.name=resnet34", "finetune.seeds=[1, 2]", "data.split.test_fraction=0.5"])
    assert config.models[0].name == "resnet34"
    assert config.finetune is not None
    assert config.finetune.seeds == [1, 2]
    assert load_config(file, ["finetune=null"]).finetune is None
    assert load_config(file, ["embed.batch_size=8"]).embed.batch_size == 8
    assert load_config(file, [], "elsewhere").run_dir == "elsewhere"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("steps", "key=value"),
        ("models.1.name=a", "items 0 to 0"),
        ("models.x.name=a", "items 0 to 0"),
        ("finetune.steps.more=1", "has no keys"),
        ("finetune.steps=[1", "not YAML"),
        ("finetune.stepz=1", "Did you mean 'steps'"),
    ],
)
def test_wrong_overrides_are_refused_with_the_reason(file: str, override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        load_config(file, [override])
    assert part in str(caught.value)


@pytest.mark.parametrize(("text", "part"), [("- 1", "got list"), ("a: [", "not YAML"), ("\x00", "not YAML")])
def test_files_without_a_configuration_are_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part):
        load_config(str(path))
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(str(tmp_path / "none.yaml"))


def test_differences_name_keys_of_nested_lists() -> None:
    old, new = base(), base(models=[{"name": "resnet34", "pretrained": False}], name="x")
    assert differences(old, new) == ["models.0.name: resnet18 -> resnet34", "name: (unset) -> x"]
    assert differences(old, old) == []


@given(
    st.dictionaries(
        st.sampled_from(["name", "data", "models", "finetune", "embed", "score", "extra"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_any_values_give_a_config_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        build_config(values)
    except ConfigError as error:
        assert error.problems


BOMBS = {
    "aliases of aliases": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "a value within itself": "a: &a [*a]\n",
    "depth": "a: " + "[" * 5000,
    "digits": "a: " + "9" * 5000,
    "bytes": "\x00\xff",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_yaml_bombs_are_refused_at_once(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("finetune.steps", -1),
        ("finetune.steps", 1e400),
        ("finetune.batch_size", 0),
        ("finetune.learning_rate", float("nan")),
        ("finetune.seeds", [-1]),
        ("embed.shard_rows", -5),
        ("score.resamples", -2),
        ("score.resamples", 10**30),
        ("data.max_failed_share", 7),
        ("compute.embed_actors", -1),
        ("models.0.image_size", 10**9),
        ("monitoring.pushgateway", "http://me:secret@host:9091"),
        ("name", "../../etc"),
        ("models.0.id", "../x"),
    ],
)
def test_numbers_and_names_out_of_range_are_refused(key: str, value: Any) -> None:
    values = base(finetune={}, embed={}, score={}, compute={}, metrics={})
    put(values, key, value)
    with pytest.raises(ConfigError, match=re.escape(key.rpartition(".")[2])):
        build_config(values)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_value_of_any_key_is_accepted_or_refused_with_a_message(value: Any) -> None:
    for key in ("models", "models.0.pooling", "data.split", "finetune", "score.metrics", "embed.dtype", "compute"):
        values = base()
        put(values, key, value)
        try:
            assert isinstance(build_config(values), RunConfig)
        except ConfigError as error:
            assert error.problems


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[yes, no]", ["yes", "no"]),
        ("[007, 7]", ["007", "7"]),
        ("[0x1F, 1e3, 1.10, 1_000]", ["0x1F", "1e3", "1.10", "1_000"]),
        ("[2026-01-01, 12:30]", ["2026-01-01", "12:30"]),
        ("[null, ~, on, True]", ["null", "~", "on", "True"]),
        ("['no', \"8\", grey heron]", ["no", "8", "grey heron"]),
        ("\n      - yes\n      - .5", ["yes", ".5"]),
    ],
)
def test_names_of_classes_are_text_as_it_is_written(written: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"data:\n  source: {{kind: digits}}\n  split:\n    unseen: {written}\n"
        "models: [{name: resnet18, pretrained: false}]\n"
    )
    assert load_config(str(path)).data.split.unseen == names
    # The resolved configuration has the same names.
    path.write_text(to_yaml(load_config(str(path))))
    assert load_config(str(path)).data.split.unseen == names


@pytest.mark.parametrize("override", ["data.split.unseen=[yes, 007]", "data.split={unseen: [yes, 007]}"])
def test_names_of_classes_in_overrides_are_text(override: str, file: str) -> None:
    assert load_config(file, [override]).data.split.unseen == ["yes", "007"]


def test_one_name_of_a_list_may_be_overridden(file: str) -> None:
    assert load_config(file, ["data.split.unseen=[a, b]", "data.split.unseen.1=no"]).data.split.unseen == ["a", "no"]


@pytest.mark.parametrize("value", [True, 1.5, None])
def test_class_names_that_are_not_text_are_refused(value: Any) -> None:
    (found,) = problems(base(data={"source": {"kind": "digits"}, "split": {"unseen": ["a", value]}}))
    assert found == f"data.split.unseen.1: expected the name of a class as text, got {value!r}: put it in quotes"


def test_options_take_names_with_commas_in_quotes() -> None:
    config = config_of_options("resnet18", None, "photos", '"red, ripe",green')
    assert config.data.split.unseen == ["red, ripe", "green"]
    assert config_of_options("resnet18", None, "photos", "red , green").data.split.unseen == ["red", "green"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.split.unseen", 5, "data.split.unseen: expected a list, or 'all', got 5"),
        ("data.split", [1], "data.split: expected keys and values, got [1]"),
        ("data.source", {}, "expected the key `kind`, one of cifar100, digits, huggingface, image_folder, parquet"),
        ("data.source", {"kind": "x"}, "data.source: expected the kind 'cifar100', 'digits'"),
        ("models.0", "resnet", "models.0: expected keys and values, got 'resnet'"),
        ("models.0.layers", [1], "models.0.layers.0: expected text, got 1: put it in quotes"),
        ("models.0.name", 2026, "models.0.name: expected text, got 2026: put it in quotes"),
        ("models.0.pretrained", 3, "models.0.pretrained: expected true or false, got 3; expected text, got 3"),
        ("finetune", {"steps": True}, "finetune: `steps` can't be true or false"),
        ("finetune", {"seeds": [True]}, "finetune: `seeds` can't be true or false"),
        ("finetune", {"learning_rate": True}, "finetune: `learning_rate` can't be true or false"),
        ("report", None, "report: expected keys and values, got null"),
    ],
)
def test_messages_use_the_terms_of_the_file(key: str, value: Any, expected: str) -> None:
    values = base()
    put(values, key, value)
    found = "\n".join(problems(values))
    assert expected in found
    assert not re.search(r"Config|Section|function-|literal\[|list\[|pydantic|input should", found)


def test_class_names_below_merge_keys_are_text_and_duplicate_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "x: &x {unseen: [007, 010]}\n"
        "data: {source: {kind: digits}, split: {<<: *x, seed: 3}}\nmodels: [{name: resnet18, pretrained: false}]\n"
    )
    assert read_yaml(str(path))["data"]["split"] == {"unseen": ["007", "010"], "seed": 3}
    path.write_text("data: {source: {kind: digits}}\nname: a\nname: b\n")
    with pytest.raises(ConfigError, match="duplicate keys: name"):
        load_config(str(path))


@pytest.mark.parametrize(("text", "part"), [("", "expected class names"), (" , ", "expected class names")])
def test_options_without_names_are_refused(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        config_of_options("resnet18", None, "photos", text)


def test_class_names_may_contain_newlines() -> None:
    assert config_of_options("resnet18", None, "photos", "a\nb,c").data.split.unseen == ["a\nb", "c"]
