"""Export of the metrics: over HTTP, to a text file for node_exporter, and to a Pushgateway."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import pushadd_to_gateway, start_http_server, write_to_textfile

from raysep.config import MonitoringConfig
from raysep.telemetry.progress import Telemetry

PUSH_TIMEOUT_S = 10


@contextmanager
def exposed(telemetry: Telemetry, config: MonitoringConfig, instance: str) -> Iterator[None]:
    """Serve the metrics for the duration of a `with` block; at its end, also after an error, write and push them.

    A port that can't be bound or an unreachable Pushgateway is logged, and doesn't fail the run.

    Args:
        instance: grouping key at the Pushgateway, so that two runs don't overwrite each other.
    """
    server = _serve(telemetry, config, config.port)
    try:
        yield
    finally:
        _export(telemetry, config, instance)
        if server is not None:
            server.shutdown()
            server.server_close()


def _serve(telemetry: Telemetry, config: MonitoringConfig, port: int | None) -> WSGIServer | None:
    if port is None:
        return None
    try:
        server, _ = start_http_server(port, config.address, telemetry.metrics.registry)
    except (OSError, OverflowError) as error:
        if port == 0:
            telemetry.line("monitoring", f"not served: {config.address}: {error}")
            return None
        telemetry.line("monitoring", f"cannot bind {config.address}:{port} ({error}); taking a free port")
        return _serve(telemetry, config, 0)
    telemetry.line("monitoring", f"http://{config.address}:{server.server_port}/metrics")
    return server


def _export(telemetry: Telemetry, config: MonitoringConfig, instance: str) -> None:
    registry = telemetry.metrics.registry
    if config.textfile is not None:
        try:
            Path(config.textfile).parent.mkdir(parents=True, exist_ok=True)
            write_to_textfile(config.textfile, registry)
        except OSError as error:
            telemetry.line("monitoring", f"not written to {config.textfile}: {error}")
    if config.pushgateway is not None:
        try:
            key = {"instance": instance}
            pushadd_to_gateway(config.pushgateway, "raysep", registry, grouping_key=key, timeout=PUSH_TIMEOUT_S)
        except (OSError, HTTPException, ValueError) as error:
            telemetry.line("monitoring", f"not pushed to {config.pushgateway}: {error}")
