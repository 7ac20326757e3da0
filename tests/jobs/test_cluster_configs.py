"""The cluster launcher's configurations, through Ray's own schema, defaults and providers, with EC2 played by moto."""

import copy
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import yaml
from botocore.exceptions import ParamValidationError
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.local.node_provider import LocalNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import REPOSITORY

AWS = REPOSITORY / "cluster.yaml"
LOCAL = REPOSITORY / "jobs" / "cluster" / "on-premises.yaml"
CONFIGS = [AWS, *sorted((REPOSITORY / "jobs" / "cluster").glob("*.yaml"))]
each = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)

Config = dict[str, Any]


def read(path: Path) -> Config:
    return yaml.safe_load(path.read_text())


def checked(config: Config) -> Config:
    """As `ray up` does it before it asks the provider."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def launch_all_kinds(config: Config) -> Config:
    """The rest of `ray up`, and one node of each kind; the configuration that the head is given."""
    kinds = config["available_node_types"].values()
    for profile in {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in kinds}:
        boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
    config = AWSNodeProvider.bootstrap_config(AWSNodeProvider.fillout_available_node_types_resources(config))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in config["available_node_types"].items():
        assert provider.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
    return config


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """cluster.yaml, with an EC2 that isn't there, and a home for the key pair that Ray makes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield checked(read(AWS))


@each
def test_ray_accepts_the_config(path: Path) -> None:
    checked(read(path))


@each
def test_a_key_that_ray_does_not_know_is_refused(path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_seconds"):
        checked({**read(path), "idle_timeout_seconds": 600})


@pytest.mark.slow
def test_rays_provider_starts_a_node_of_each_kind(aws: Config) -> None:
    launched = launch_all_kinds(aws)["available_node_types"]
    assert launched["head"]["node_config"]["KeyName"]
    assert all(node_type["node_config"]["SubnetIds"] for node_type in launched.values())


def test_an_instance_setting_that_ec2_does_not_know_is_refused(aws: Config) -> None:
    aws["available_node_types"]["gpu_worker"]["node_config"]["InstanceMarketOption"] = {"MarketType": "spot"}
    with pytest.raises(ParamValidationError, match="InstanceMarketOption"):
        launch_all_kinds(aws)


def test_workers_have_what_their_instance_types_have(aws: Config) -> None:
    written = {name: kind["resources"] for name, kind in aws["available_node_types"].items()}
    for kind in aws["available_node_types"].values():
        kind["resources"] = {}
    for name, kind in launch_all_kinds(aws)["available_node_types"].items():
        if name != "head":
            assert written[name] == {key: kind["resources"][key] for key in written[name]}
            assert written[name].get("GPU", 0) == kind["resources"].get("GPU", 0)


def test_the_head_takes_no_work_and_workers_come_on_demand(aws: Config) -> None:
    kinds = copy.deepcopy(aws["available_node_types"])
    head = kinds.pop(aws["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert {kind["min_workers"] for kind in kinds.values()} == {0}
    assert aws["max_workers"] == sum(kind["max_workers"] for kind in kinds.values())
    # One kind has GPUs, and one has none: images are decoded on CPUs.
    assert sorted(kind["resources"].get("GPU", 0) for kind in kinds.values()) == [0, 1]


def test_on_premises_machines_all_join() -> None:
    config = LocalNodeProvider.bootstrap_config(checked(read(LOCAL)))
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])
    assert "--num-cpus=0 --num-gpus=0" in config["head_start_ray_commands"][-1]
    assert any(command.startswith("mountpoint -q /shared ||") for command in config["setup_commands"])


@each
def test_all_nodes_ask_for_the_same_token(path: Path) -> None:
    config = checked(read(path))
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert all(re.search(r"export RAY_AUTH_MODE=token\b.*; ray start ", command) for command in starts)
    tokens = [source for place, source in config["file_mounts"].items() if place.endswith("/.ray/auth_token")]
    assert tokens == ["~/.ray/auth_token"]
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert all("--metrics-export-port=8080" in command for command in starts)


@each
def test_setup_installs_this_project_from_what_is_mounted(path: Path) -> None:
    config = checked(read(path))
    assert any(re.search(r"^cd ~/raysep && .*pip install .*'\.\[gpu\]'", line) for line in config["setup_commands"])
    mounted = {source for source in config["file_mounts"].values() if not source.startswith("~")}
    assert all((REPOSITORY / source).exists() for source in mounted)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {"pyproject.toml", "raysep", project["readme"], *project["license-files"]} <= mounted


def test_all_deployments_have_one_version_of_ray() -> None:
    files = [*CONFIGS, *sorted((REPOSITORY / "jobs" / "kubernetes").glob("*.yaml"))]
    pinned = re.compile(r"(?:\bray(?:\[[\w,]+\])?==|rayproject/ray:|rayVersion: )(\d+\.\d+\.\d+)")
    found = {path.name: set(pinned.findall(path.read_text())) for path in files}
    assert set().union(*found.values()) == {"2.60.0"}
    assert [name for name, versions in found.items() if not versions] == ["cronjob.yaml"]
