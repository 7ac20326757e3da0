"""The monitoring files, by Prometheus' own tools, and a real Prometheus that scrapes a real run."""

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from raysep import pipeline
from raysep.config import MonitoringConfig, RunConfig
from raysep.embedding.shards import MANIFEST
from raysep.scoring import table
from raysep.storage.store import Storage
from raysep.telemetry import Telemetry
from raysep.telemetry.exposition import exposed
from tests.conftest import REPOSITORY, TINY_CNN
from tests.ports import free_port

MONITORING = REPOSITORY / "jobs" / "monitoring"
NO_SERVER = (
    None if shutil.which("prometheus") and shutil.which("promtool") else "no prometheus, promtool (apt: prometheus)"
)
needs_server = pytest.mark.skipif(NO_SERVER is not None, reason=str(NO_SERVER))


def exported() -> set[str]:
    """Every name that a query may use."""
    metrics = Telemetry().metrics
    names = set()
    for family in metrics.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, [""])}
    return names


def expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]


def test_alerts_and_panels_ask_for_metrics_that_there_are() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"raysep_\w+", expression)}
    assert asked - exported() == set()
    # Every metric is looked at somewhere, but for what names the run.
    looked_at = {re.sub(r"_(bucket|sum|count|info|total)$", "", name) for name in asked}
    everything = {re.sub(r"_(bucket|sum|count|info|total)$", "", name) for name in exported()}
    assert everything - looked_at == {"raysep_run", "raysep_build", "raysep_layers_scored"}


@needs_server
def test_promtool_finds_nothing_wrong(tmp_path: Path) -> None:
    for kind, file in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        done = subprocess.run(["promtool", "check", kind, str(MONITORING / file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    # And it would.
    broken = tmp_path / "alerts.yml"
    broken.write_text((MONITORING / "alerts.yml").read_text().replace("raysep_failed == 1", "raysep_failed == == 1"))
    assert subprocess.run(["promtool", "check", "rules", str(broken)], capture_output=True).returncode != 0


@needs_server
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """`promtool test rules`: series over time in, alerts out."""
    series = [
        ('raysep_running{instance="a",kind="run"}', "1x60"),
        ('raysep_last_progress_timestamp_seconds{instance="a"}', "0x60"),
        ('raysep_running{instance="b",kind="run"}', "1x60"),
        ('raysep_last_progress_timestamp_seconds{instance="b"}', "0+60x60"),
        ('raysep_images_failed_total{instance="a",model="m",split="unseen"}', "2x60"),
        ('raysep_images_embedded_total{instance="a",model="m",split="unseen"}', "98x60"),
        ('raysep_images_failed_total{instance="b",model="m",split="unseen"}', "1x60"),
        ('raysep_images_embedded_total{instance="b",model="m",split="unseen"}', "999x60"),
        ('raysep_sweep_regressions{sweep="nightly"}', "0x60"),
    ]
    fires = {"RaysepRunStalled": [{"instance": "a", "kind": "run", "severity": "page"}], "RaysepSweepRegression": []}
    fires["RaysepImagesUnreadable"] = [{"instance": "a", "model": "m", "split": "unseen", "severity": "ticket"}]
    tests = {
        "rule_files": [str(MONITORING / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series],
                "promql_expr_test": [
                    {
                        "expr": f'count by (alertname) (ALERTS{{alertname="{name}",alertstate="firing"}})',
                        "eval_time": "45m",
                        "exp_samples": [
                            {"labels": f'{{alertname="{name}"}}', "value": len(expected)} for _ in expected[:1]
                        ],
                    }
                    for name, expected in fires.items()
                ],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(tests))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def prometheus(tmp_path: Path, target: str) -> Iterator[Callable[[str], Any]]:
    """A server that scrapes one target each half second, with our rules; yields what asks its API."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(MONITORING / "alerts.yml")]
    config["scrape_configs"] = [{"job_name": "raysep", "static_configs": [{"targets": [target]}]}]
    file, port = tmp_path / "prometheus.yml", free_port()
    file.write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=5) as answer:
            return json.load(answer)["data"]

    try:
        wait_for(lambda: bool(ask("status/buildinfo")))
        yield ask
    finally:
        process.terminate()
        process.wait()


def wait_for(met: Callable[[], bool], seconds: float = 30) -> None:
    for _ in range(int(seconds * 4)):
        with contextlib.suppress(OSError):
            if met():
                return
        time.sleep(0.25)
    raise AssertionError("it did not happen in time")


@needs_server
@pytest.mark.slow
def test_a_run_is_scraped_its_counters_are_its_results_and_an_alert_fires(
    ray_session: None, tree: Path, tmp_path: Path
) -> None:
    # More than a hundredth of the images, and no more than the run allows.
    (tree / "d" / "005.png").write_bytes(b"broken")
    port = free_port()
    config = RunConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "data": {
                "source": {"kind": "image_folder", "path": str(tree)},
                "split": {"unseen": ["d", "e"]},
                "max_failed_share": 0.1,
            },
            "models": [TINY_CNN],
            "baselines": {"untrained": False, "pixels": None},
            "compute": {"embed_actors": 1, "score_actors": 1},
            "score": {"metrics": ["nmi", "nn1"], "resamples": 20},
            # Served by the test, which goes on after the run: that is over before Prometheus has asked twice.
            "monitoring": {"port": None},
        }
    )
    telemetry = Telemetry(Console(quiet=True))

    def value(expression: str) -> float | None:
        found = ask(f"query?query={urllib.parse.quote(expression)}")["result"]
        return float(found[0]["value"][1]) if found else None

    with prometheus(tmp_path, f"127.0.0.1:{port}") as ask, exposed(telemetry, MonitoringConfig(port=port), "test"):
        pipeline.run(config, telemetry=telemetry)
        run = Storage(config.run_dir)
        shard_sets = [run.read_json(file) for file in run.files(name=MANIFEST)]
        scores = len(table.read(run))
        expected = {
            "sum(raysep_images_embedded_total)": sum(s["rows"] for s in shard_sets),
            "sum(raysep_images_failed_total)": sum(len(s["failed"]) for s in shard_sets),
            "sum(raysep_written_bytes_total)": sum(file["bytes"] for s in shard_sets for file in s["files"]),
            "sum(raysep_scores_computed_total)": scores,
            'raysep_stage_progress_ratio{stage="score"}': 1,
            "raysep_failed": 0,
        }
        wait_for(lambda: value("sum(raysep_scores_computed_total)") == scores)
        assert {expression: value(expression) for expression in expected} == expected
        summary = run.read_json("summary.json")
        assert value("raysep_g") == pytest.approx(summary["models"][0]["best"]["g"])
        assert value("count(raysep_layer_g)") == summary["models"][0]["layers"]
        wait_for(lambda: {a["labels"]["alertname"] for a in ask("alerts")["alerts"]} == {"RaysepImagesUnreadable"})
