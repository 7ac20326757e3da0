"""Metrics: counted from reports of workers, served, written and pushed."""

import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from raysep.config import MonitoringConfig
from raysep.storage import retries
from raysep.telemetry import Telemetry
from raysep.telemetry.exposition import exposed
from raysep.telemetry.worker_stats import Meter, Report


def telemetry() -> tuple[Telemetry, Console]:
    console = Console(record=True, width=200, file=None, quiet=False, stderr=True)
    return Telemetry(console), console


def url_of(console: Console) -> str:
    return next(word for word in console.export_text(clear=False).split() if word.startswith("http://"))


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_reports_of_workers_are_counted_with_their_results() -> None:
    ours, _ = telemetry()
    meter = Meter("10.0.0.1")
    for size in (3, 4):
        with meter.piece():
            meter.count("bytes_read", size)
            meter.count("kmeans_iterations", 10)
            meter.observe("batch", 0.02)
            meter.again("process")
        ours.worked("embed", meter.report, "vit")
    ours.worked("embed", Report("10.0.0.2", seconds=1.5), "vit")
    get = ours.metrics.registry.get_sample_value
    assert get("raysep_read_bytes_total", {"stage": "embed"}) == 7
    assert get("raysep_kmeans_iterations_total") == 20
    assert get("raysep_batch_seconds_count", {"model": "vit"}) == 2
    assert get("raysep_queue_wait_seconds_count", {"stage": "embed"}) == 3
    assert get("raysep_retries_total", {"stage": "embed", "why": "process"}) == 2
    assert ours.retries == {"embed": {"process": 2}}
    assert {node: entry["pieces"] for node, entry in ours.node_work["embed"].items()} == {"10.0.0.1": 2, "10.0.0.2": 1}
    assert ours.node_work["embed"]["10.0.0.2"]["seconds"] == 1.5


def test_storage_retries_are_counted_once_with_several_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [0]
    monkeypatch.setattr(retries, "count", lambda: counted[0])
    first = Meter("10.0.0.1")
    with first.piece():
        counted[0] += 3
    second = Meter("10.0.0.1")
    with second.piece():
        counted[0] += 1
    assert [meter.report.again for meter in (first, second)] == [{"storage": 3}, {"storage": 1}]
    assert [meter.peek().again for meter in (first, second)] == [{"storage": 4}, {"storage": 1}]


def test_metrics_are_served_during_the_run_and_written_at_its_end(tmp_path: Path) -> None:
    ours, console = telemetry()
    textfile = tmp_path / "new" / "raysep.prom"
    with exposed(ours, MonitoringConfig(textfile=str(textfile)), "x"):
        ours.metrics.images.labels("vit", "unseen").inc(5)
        url = url_of(console)
        assert url.startswith("http://127.0.0.1:")
        served = values(urllib.request.urlopen(url, timeout=5).read().decode())
        assert served["raysep_images_embedded_total", "vit", "unseen"] == 5
        assert not textfile.exists()
        ours.metrics.images.labels("vit", "unseen").inc(1)
    assert values(textfile.read_text())["raysep_images_embedded_total", "vit", "unseen"] == 6
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_an_idle_connection_blocks_no_other() -> None:
    ours, console = telemetry()
    began = time.monotonic()
    with exposed(ours, MonitoringConfig(), "x"):
        url = urllib.parse.urlsplit(url_of(console))
        with socket.create_connection((url.hostname, url.port)):
            assert urllib.request.urlopen(url.geturl(), timeout=5).status == 200
    assert time.monotonic() - began < 4


def test_a_free_port_replaces_one_in_use() -> None:
    ours, console = telemetry()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with exposed(ours, MonitoringConfig(port=port), "x"):
            assert f"cannot bind 127.0.0.1:{port} (" in console.export_text(clear=False)
            assert urllib.request.urlopen(url_of(console), timeout=5).status == 200


def test_metrics_of_a_failed_run_are_pushed() -> None:
    got: list[tuple[str, str]] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            got.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Gateway)
    Thread(target=server.serve_forever, daemon=True).start()
    ours, _ = telemetry()
    config = MonitoringConfig(port=None, pushgateway=f"127.0.0.1:{server.server_port}")
    with pytest.raises(ValueError, match="bad"), exposed(ours, config, "nightly"):  # noqa: PT012  (as a run fails)
        ours.metrics.failed.set(1)
        raise ValueError("bad")
    server.shutdown()  # type: ignore[unreachable]
    server.server_close()
    ((path, body),) = got
    assert path == "/metrics/job/raysep/instance/nightly"
    assert values(body)["raysep_failed",] == 1


def test_an_unreachable_pushgateway_does_not_fail_the_run() -> None:
    ours, console = telemetry()
    with exposed(ours, MonitoringConfig(port=None, pushgateway="127.0.0.1:1"), "x"):
        pass
    assert "not pushed to 127.0.0.1:1" in console.export_text()


def test_every_metric_follows_the_conventions_of_prometheus() -> None:
    ours, _ = telemetry()
    for family in ours.metrics.registry.collect():
        assert family.name.startswith("raysep_")
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
