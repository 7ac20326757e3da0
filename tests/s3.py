"""A server that speaks S3, for tests: moto's, in a process of its own, that may be away for a while."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.fs as pafs

BUCKET, SECRET = "raysep-test", "Zm9yIG5vYm9keSdzIGV5ZXM"
# Longer than the client of Arrow tries by itself.
OUTAGE_S = 8.0


def environment(port: int, host: str = "127.0.0.1") -> dict[str, str]:
    """What a client needs to find the server, as an operator would set it."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def serving(port: int, host: str = "127.0.0.1", outage_after: int = 0) -> Iterator[dict[str, str]]:
    """The server with one empty bucket; yields the environment of its clients.

    Args:
        outage_after: after so many requests all are refused for `OUTAGE_S`; 0: never.
    """
    command = [sys.executable, __file__, host, str(port), str(outage_after)]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = pafs.S3FileSystem(
        access_key="test",
        secret_key=SECRET,
        endpoint_override=f"http://{host}:{port}",
        region="us-east-1",
        allow_bucket_creation=True,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                client.create_dir(BUCKET)
                break
            time.sleep(0.1)  # type: ignore[unreachable]
        else:
            raise RuntimeError("moto's server does not answer")
        yield environment(port, host)
    finally:
        process.kill()
        process.wait()


class Outage:
    """A WSGI application that is away for a while once, as S3 says it: 503 SlowDown."""

    def __init__(self, app: Callable[..., Any], after: int) -> None:
        self._app, self._after = app, after
        self._answered, self._back, self._lock = 0, 0.0, threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        with self._lock:
            away = time.monotonic() < self._back
            if not away:
                self._answered += 1
                if self._answered == self._after:
                    self._back = time.monotonic() + OUTAGE_S
        if not away:
            return self._app(environ, start_response)
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]


def _main(host: str, port: int, outage_after: int) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app  # type: ignore[attr-defined]
    from werkzeug.serving import run_simple

    app: Callable[..., Any] = DomainDispatcherApplication(create_backend_app)
    run_simple(host, port, Outage(app, outage_after) if outage_after else app, threaded=True)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
