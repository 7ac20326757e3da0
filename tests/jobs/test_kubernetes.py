"""The Kubernetes manifests: KubeRay's fields by a schema of our own, all the rest by Kubernetes' schemas, offline.

With the real CRDs: RAYSEP_KUBERAY_CRDS=DIR, a copy of ray-operator/config/crd/bases of github.com/ray-project/kuberay.
"""

import copy
import itertools
import os
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jsonschema
import kubernetes_validate
import pytest
import yaml

from raysep import __version__
from raysep.config.load import load_config
from raysep.sweeps.config import load_sweep
from raysep.sweeps.cron import Cron
from tests.conftest import REPOSITORY

Manifest = dict[str, Any]
CRDS = "RAYSEP_KUBERAY_CRDS"
KUBERNETES = "1.34"  # an older one: what it knows, newer ones know too
SCHEMA = yaml.safe_load(Path(__file__).with_name("kuberay_fields.yaml").read_text())
MANIFESTS = {
    (path.stem, manifest["kind"]): manifest
    for path in sorted((REPOSITORY / "jobs" / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
}
RAY_JOB, RAY_CRON_JOB = MANIFESTS["rayjob", "RayJob"], MANIFESTS["raycronjob", "RayCronJob"]
CRON_JOB = MANIFESTS["cronjob", "CronJob"]


def job_of(manifest: Manifest) -> Manifest:
    """The spec of the job: a RayJob's or a Job's."""
    job = manifest["spec"].get("jobTemplate", manifest["spec"])
    return job.get("spec", job)


def groups_of(manifest: Manifest) -> list[Manifest]:
    """The head's group and the workers'."""
    spec = job_of(manifest)["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def validate(manifest: Manifest) -> None:
    """As the API server would."""
    if not manifest["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
    for group in groups_of(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses unknown fields, which the API server would drop with a warning."""
    if not isinstance(schema, dict):
        return [strict(item) for item in schema] if isinstance(schema, list) else schema
    opened = schema.get("x-kubernetes-preserve-unknown-fields") or not isinstance(schema.get("properties"), dict)
    return ({} if opened else {"additionalProperties": False}) | {key: strict(value) for key, value in schema.items()}


@pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=lambda manifest: manifest["kind"])
def test_manifests_have_only_fields_that_exist(manifest: Manifest) -> None:
    validate(manifest)


@pytest.mark.skipif(CRDS not in os.environ, reason=f"{CRDS} names no copy of KubeRay's ray-operator/config/crd/bases")
def test_manifests_fit_kuberays_own_crds() -> None:
    for manifest in (RAY_JOB, RAY_CRON_JOB):
        crd = yaml.safe_load((Path(os.environ[CRDS]) / f"ray.io_{manifest['kind'].lower()}s.yaml").read_text())
        (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
        jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"])).validate(manifest)


BREAKS = {
    "a field of another version": lambda m: m["spec"].update(timeZone="Etc/UTC"),
    "a wrong enum": lambda m: job_of(m)["rayClusterSpec"]["authOptions"].update(mode="tokens"),
    "a misspelt field": lambda m: groups_of(m)[1].update(maxReplica=groups_of(m)[1].pop("maxReplicas")),
    "a number for a string": lambda m: groups_of(m)[0].update(rayStartParams={"num-cpus": 0}),
    "no head": lambda m: job_of(m)["rayClusterSpec"].pop("headGroupSpec"),
    "a time to live without an end": lambda m: job_of(m).pop("shutdownAfterJobFinishes"),
    "a misspelt field of a pod": lambda m: groups_of(m)[1]["template"]["spec"].update(toleration=[]),
}


@pytest.mark.parametrize("break_it", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("manifest", [RAY_JOB, RAY_CRON_JOB], ids=["RayJob", "RayCronJob"])
def test_a_manifest_with_a_mistake_is_refused(manifest: Manifest, break_it: Any) -> None:
    broken = copy.deepcopy(manifest)
    break_it(broken)
    with pytest.raises(jsonschema.ValidationError):
        validate(broken)


def test_a_cron_job_with_a_mistake_is_refused() -> None:
    with pytest.raises(jsonschema.ValidationError, match="concurrencyPolicies"):
        validate({**CRON_JOB, "spec": {**CRON_JOB["spec"], "concurrencyPolicies": "Forbid"}})


def test_a_crd_made_strict_refuses_unknown_fields() -> None:
    item = {"type": "object", "properties": {"name": {"type": "string"}}}
    schema = strict({"type": "object", "properties": {"items": {"type": "array", "items": item}, "metadata": {}}})
    jsonschema.validate({"items": [{"name": "a"}], "metadata": {"any": 1}}, schema)
    with pytest.raises(jsonschema.ValidationError, match="nam"):
        jsonschema.validate({"items": [{"nam": "a"}]}, schema)


def test_the_head_takes_no_work_and_workers_come_on_demand() -> None:
    cluster, (head, *workers) = job_of(RAY_JOB)["rayClusterSpec"], groups_of(RAY_JOB)
    assert (cluster["enableInTreeAutoscaling"], cluster["authOptions"]) == (True, {"mode": "token"})
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert [(group["replicas"], group["minReplicas"], group["maxReplicas"]) for group in workers] == [(0, 0, 4)] * 2
    account = MANIFESTS["rayjob", "ServiceAccount"]["metadata"]["name"]
    for pod in (group["template"]["spec"] for group in (head, *workers)):
        assert pod["serviceAccountName"] == account
        assert pod["containers"][0]["resources"]["requests"] == pod["containers"][0]["resources"]["limits"]


def test_all_pods_run_one_image_of_this_version() -> None:
    assert job_of(RAY_CRON_JOB)["rayClusterSpec"] == job_of(RAY_JOB)["rayClusterSpec"]
    pods = [*(group["template"] for group in groups_of(RAY_JOB)), job_of(CRON_JOB)["template"]]
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {f"ghcr.io/OWNER/raysep:{__version__}"}


def test_the_run_plans_with_the_workers_that_may_come() -> None:
    python, program, config, option, run_dir, *overrides = shlex.split(job_of(RAY_JOB)["entrypoint"])
    assert (python, (REPOSITORY / program).is_file(), option) == ("python", True, "--run-dir")
    loaded = load_config(str(REPOSITORY / config), overrides, run_dir)
    for shape, group in zip(loaded.compute.may_add, groups_of(RAY_JOB)[1:], strict=True):
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert (shape.cpus, shape.gpus) == (float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)))
        assert shape.nodes == group["maxReplicas"]


def test_a_nightly_sweep_ends_before_the_next_begins() -> None:
    for manifest in (RAY_CRON_JOB, CRON_JOB):
        assert manifest["spec"]["schedule"] == "30 1 * * *"
        assert job_of(manifest)["activeDeadlineSeconds"] < 24 * 3600


def test_the_cron_job_submits_one_sweep_with_the_token_of_the_cluster() -> None:
    (container,) = job_of(CRON_JOB)["template"]["spec"]["containers"]
    token = {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "raysep", "key": "auth_token"}}}
    assert container["env"] == [{"name": "RAY_AUTH_MODE", "value": "token"}, token]
    assert container["command"][-2:] == ["--address", "http://raysep-head-svc:8265"]
    # The deadline of the pod ends the job as well.
    assert container["args"][:2] == ["--wait", "--stop-on-exit"]
    assert (CRON_JOB["spec"]["concurrencyPolicy"], job_of(CRON_JOB)["backoffLimit"]) == ("Forbid", 0)


@pytest.mark.parametrize("manifest", [CRON_JOB, RAY_CRON_JOB], ids=["CronJob", "RayCronJob"])
def test_the_calendar_has_each_night_once(manifest: dict[str, Any]) -> None:
    # Without a field of its own it is the operator's clock, which is UTC in its image.
    zone = ZoneInfo(manifest["spec"].get("timeZone", "Etc/UTC"))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    nights = list(itertools.islice(Cron(manifest["spec"]["schedule"], zone).after(start), 365))
    assert {later - earlier for earlier, later in itertools.pairwise(nights)} == {timedelta(days=1)}
    # The rounds of the sweep are dates in its own zone: never two nights of one date.
    sweep = load_sweep(str(REPOSITORY / "jobs" / "sweeps" / "nightly.yaml"))
    assert len({sweep.label(night) for night in nights}) == 365
