"""Hand the metrics on: serve them over HTTP, write them for node_exporter, push them to a Pushgateway."""

import base64
import hmac
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app, pushadd_to_gateway, write_to_textfile

from raysep.config import MonitoringConfig
from raysep.errors import ConfigError
from raysep.telemetry.progress import Telemetry

Say = Callable[[str], None]
PUSH_TIMEOUT_S = 10


@contextmanager
def exposed(telemetry: Telemetry, config: MonitoringConfig, instance: str) -> Iterator[None]:
    """Serve the metrics for the length of a block; at its end, well or not, write and push them for the last time.

    A metrics address that can't be had, or a Pushgateway out of reach, is said and costs no run.

    Args:
        telemetry: whose metrics, and where to say what became of them.
        config: where and how.
        instance: the grouping key at the Pushgateway, so that two runs don't overwrite each other.

    Raises:
        ConfigError: a user name without a password in the environment.
    """
    registry = telemetry.metrics.registry
    app = make_wsgi_app(registry) if config.port is None else _with_password(make_wsgi_app(registry), config)

    def say(text: str) -> None:
        telemetry.line("monitoring", text)

    server = _serve(app, config, say)
    try:
        yield
    finally:
        _flush(registry, config, instance, say)
        if server is not None:
            server.shutdown()
            server.server_close()


def _serve(app: Any, config: MonitoringConfig, say: Say) -> WSGIServer | None:
    if config.port is None:
        return None
    try:
        server = make_server(config.address, config.port, app, _Server, handler_class=_Silent)
    except (OSError, OverflowError) as error:
        if config.port == 0:
            say(f"not served: {config.address}: {error}")
            return None
        say(f"{config.address}:{config.port} can't be had ({error}); taking another port")
        return _serve(app, config.model_copy(update={"port": 0}), say)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    say(f"http://{config.address}:{server.server_port}/metrics")
    return server


def _flush(registry: CollectorRegistry, config: MonitoringConfig, instance: str, say: Say) -> None:
    if config.textfile is not None:
        try:
            Path(config.textfile).parent.mkdir(parents=True, exist_ok=True)
            write_to_textfile(config.textfile, registry)
        except OSError as error:
            say(f"not written to {config.textfile}: {error}")
    if config.pushgateway is not None:
        try:
            key = {"instance": instance}
            pushadd_to_gateway(config.pushgateway, "raysep", registry, grouping_key=key, timeout=PUSH_TIMEOUT_S)
        except (OSError, HTTPException, ValueError) as error:
            say(f"not pushed to {config.pushgateway}: {error}")


def _with_password(app: Any, config: MonitoringConfig) -> Any:
    """The app behind HTTP basic authentication, where the configuration names a user."""
    if config.username is None:
        return app
    password = os.environ.get(config.password_env)
    if not password:
        raise ConfigError(
            [f"monitoring.username is set, so the environment variable {config.password_env} must hold a password"]
        )
    expected = b"Basic " + base64.b64encode(f"{config.username}:{password}".encode())

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode()
        if hmac.compare_digest(given, expected):
            answer: Iterable[bytes] = app(environ, start_response)
            return answer
        start_response("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="raysep"')])
        return [b"user name and password, please\n"]

    return guarded


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection: one that says nothing keeps no other waiting, nor the end of the run."""

    daemon_threads = True


class _Silent(WSGIRequestHandler):
    """A scrape is no event."""

    timeout = 5

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        pass
