"""Following a job of a fake job server: what it fetches, reports, and when it ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from raysep.distributed import job_log
from raysep.errors import RaysepError
from tests.cluster.test_jobs import CONFIG
from tests.ports import free_port

JOB = "raysep_1"


class Head:
    """A fake job server with one job.

    Attributes:
        log: of the job so far.
        status: of the job.
        known: whether the server knows the job.
        answers: whether the server answers requests.
        sockets: whether the server accepts WebSockets.
        sent: bytes of logs sent.
        stopped: number of stop requests.
    """

    def __init__(self) -> None:
        self.log, self.status, self.answers, self.sockets = "", "RUNNING", True, True
        self.sent, self.stopped, self.known = 0, 0, True
        self.headers: list[dict[str, str]] = []
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._started = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "Head":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.status, self.answers = "STOPPED", False
        self._over.set()
        self._thread.join(10)

    async def _serve(self) -> None:
        @web.middleware
        async def away(request: web.Request, handler: Any) -> Any:
            self.headers.append(dict(request.headers))
            if not self.answers:
                raise web.HTTPServiceUnavailable(text="starting")
            return await handler(request)

        app = web.Application(middlewares=[away])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{protocol}/{name}", self._empty)
        app.router.add_post("/api/jobs/", self._submitted)
        app.router.add_get("/api/jobs/", self._jobs)
        app.router.add_get("/api/jobs/{id}", self._info)
        app.router.add_get("/api/jobs/{id}/logs", self._logs)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        app.router.add_post("/api/jobs/{id}/stop", self._stop)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self._started.set()
        while not self._over.is_set():
            await asyncio.sleep(0.05)
        await runner.cleanup()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"})

    async def _empty(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _submitted(self, request: web.Request) -> web.Response:
        self.job = (await request.json())["submission_id"]
        return web.json_response({"job_id": self.job, "submission_id": self.job})

    def _details(self, job: str) -> dict[str, Any]:
        code = {"SUCCEEDED": 0, "FAILED": 2}.get(self.status)
        return {
            "type": "SUBMISSION",
            "submission_id": job,
            "status": self.status,
            "entrypoint": "x",
            "driver_exit_code": code,
        }

    async def _jobs(self, request: web.Request) -> web.Response:
        return web.json_response([self._details(self.job)])

    async def _info(self, request: web.Request) -> web.Response:
        if not self.known:
            raise web.HTTPNotFound(text=f"Job {JOB} does not exist")
        return web.json_response(self._details(request.match_info["id"]))

    async def _logs(self, request: web.Request) -> web.Response:
        self.sent += len(self.log)
        return web.json_response({"logs": self.log})

    async def _stop(self, request: web.Request) -> web.Response:
        self.stopped += 1
        self.status = "STOPPED"
        return web.json_response({"stopped": True})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        if not self.sockets:
            raise web.HTTPBadGateway
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        position = 0
        while self.answers and (self.status == "RUNNING" or position < len(self.log)):
            text = self.log[position:]
            position += len(text)
            self.sent += len(text)
            if text:
                await socket.send_str(text)
            await asyncio.sleep(0.05)
        await socket.close()
        return socket


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nonexistent")
    with Head() as served:
        yield served


def follow(head: Head, meanwhile: Any) -> tuple[int, str, str]:
    """Follow a job while `meanwhile` changes its head."""
    log: list[str] = []
    said: list[str] = []
    threading.Thread(target=meanwhile, daemon=True).start()
    code = job_log.follow(JOB, head.address, log.append, said.append)
    return code, "".join(log), "".join(said)


def test_a_long_log_is_fetched_about_once(head: Head) -> None:
    lines = [f"{number} \r é 汉\n" for number in range(100_000)]

    def write() -> None:
        for start in range(0, len(lines), 25_000):
            head.log += "".join(lines[start : start + 25_000])
            time.sleep(1)
        head.status = "SUCCEEDED"

    code, log, said = follow(head, write)
    assert (code, said) == (0, "")
    assert log == "".join(lines)
    # Once through the WebSocket, and once at the end of the job.
    assert head.sent <= 2 * len(log)


def test_a_broken_connection_repeats_nothing_and_omits_nothing(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "REPORT_AFTER_S", 1.0)
    monkeypatch.setattr(job_log, "REFETCH_S", 0.2)

    def write() -> None:
        head.log = "one\n"
        time.sleep(1)
        head.answers = False
        head.log += "two\n"
        time.sleep(3)
        head.answers = True
        head.log += "three\n"
        time.sleep(1)
        head.status = "FAILED"

    code, log, said = follow(head, write)
    assert (code, log) == (2, "one\ntwo\nthree\n")
    assert "no answer from" in said
    assert f"{JOB} goes on by itself" in said


def test_without_websockets_the_log_is_polled(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "REFETCH_S", 1.0)
    head.sockets, head.log = False, "x" * 1_000_000

    def end() -> None:
        time.sleep(5)
        head.log += "end"
        head.status = "SUCCEEDED"

    code, log, _ = follow(head, end)
    assert (code, log) == (0, head.log)
    assert head.sent < 8 * len(log)


def test_a_restarted_head_does_not_know_the_job(head: Head) -> None:
    def forget() -> None:
        time.sleep(0.5)
        head.known = False

    with pytest.raises(RaysepError, match=f"no longer knows {JOB}"):
        follow(head, forget)


def test_a_head_that_never_answers_again_is_an_error(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "SILENCE_S", 2.0)

    def leave() -> None:
        time.sleep(0.5)
        head.answers = False

    with pytest.raises(RaysepError, match=r"has not answered for [23] s .* may still be running"):
        follow(head, leave)


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return str(file)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_interrupted_command_reports_the_jobs_state(
    head: Head, config: str, number: signal.Signals, stop: bool
) -> None:
    head.log = "going\n"
    command = [sys.executable, "-m", "raysep", "submit", config, "--wait", "--address", head.address]
    process = subprocess.Popen(
        [*command, *(["--stop-on-exit"] if stop else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert head.stopped == int(stop)
    last = err.strip().splitlines()[-1]
    if stop:
        assert last == f"by {number.name}: {head.job}: STOPPED"
    else:
        assert last.startswith(f"by {number.name}: {head.job} goes on; `raysep stop {head.job} --address")


def test_a_broken_stdout_pipe_ends_the_command_with_an_error(head: Head, config: str) -> None:
    def write() -> None:
        for _ in range(200):
            head.log += "going\n" * 1000
            time.sleep(0.2)

    threading.Thread(target=write, daemon=True).start()
    command = f"{sys.executable} -m raysep submit {config} --wait --address {head.address} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=40)
    assert "can't be written to stdout: Broken pipe" in done.stderr
    assert f"{head.job} goes on; `raysep stop {head.job}" in done.stderr
    assert "Is a cluster running there" not in done.stderr
    assert done.returncode == 1


def test_stop_on_exit_requires_wait(config: str, capfd: pytest.CaptureFixture[str]) -> None:
    from raysep.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["submit", config, "--stop-on-exit"])
    assert ended.value.code == 2
    assert "--stop-on-exit requires --wait" in capfd.readouterr().err


class Recorder(BaseHTTPRequestHandler):
    """A proxy that refuses and records all requests."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(f"{self.path} {self.headers.get('Authorization')}")
        self.send_error(502)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextlib.contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Recorder", (Recorder,), {"seen": seen}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def jobs(address: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = [sys.executable, "-m", "raysep", "jobs", "--address", address]
    return subprocess.run(command, env={**environment, **changes}, capture_output=True, text=True, timeout=60)


def test_proxies_see_neither_loopback_requests_nor_tokens(head: Head) -> None:
    head.job = JOB
    with proxy() as (address, seen):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            done = jobs(head.address, **{name: address}, NO_PROXY="example.org")
            assert done.returncode == 0, done.stderr
        assert seen == []
        # For other hosts the proxy is used, and named in errors.
        elsewhere = jobs("http://10.255.255.1:8265", http_proxy=address)
        assert elsewhere.returncode == 1
        assert f"through the proxy {address} (NO_PROXY bypasses it)" in elsewhere.stderr
        assert len(seen) > 0
        # A token is never sent through it.
        seen.clear()
        token = {"RAY_AUTH_MODE": "Token", "RAY_AUTH_TOKEN": "secret" * 6}
        refused = jobs("http://10.255.255.1:8265", http_proxy=address, **token)
        assert refused.returncode == 2
        assert "which would see the cluster's token: add 10.255.255.1 to NO_PROXY" in refused.stderr
        assert seen == []


def test_servers_other_than_ray_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy() as (address, _):
        done = jobs(address)
    assert done.returncode == 1
    assert "Is a cluster running there, with its dashboard?" in done.stderr
    assert "Traceback" not in done.stderr
