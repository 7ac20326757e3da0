"""A server that speaks S3, for tests: moto's, in a process of its own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pyarrow.fs as pafs

BUCKET = "raysep-test"


def environment(port: int, host: str = "127.0.0.1") -> dict[str, str]:
    """What a client needs to find the server, as an operator would set it."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def serving(port: int, host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """The server with one empty bucket; yields the environment of its clients."""
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = pafs.S3FileSystem(
        access_key="test",
        secret_key="test",
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
            time.sleep(0.1)
        else:
            raise RuntimeError("moto's server does not answer")
        yield environment(port, host)
    finally:
        process.kill()
        process.wait()
