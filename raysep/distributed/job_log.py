"""Follow a job: copy its log until the job ends.

New lines come through a WebSocket; the job's status is polled each second. Both may fail for a while without
consequences, since the job runs on the cluster.
"""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raysep.distributed.job_client import POLL_S, client_of
from raysep.errors import RaysepError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

Write = Callable[[str], object]
# How long the head may be unreachable; when that is first reported, and how often.
SILENCE_S, REPORT_AFTER_S, REPORT_EVERY_S = 300.0, 10.0, 30.0
# Interval of fetching the whole log if the head's WebSocket is unreachable.
REFETCH_S = 10.0
# How long to wait for the rest of the log after the job's end.
REST_S = 10.0


def follow(job_id: str, address: str, write: Write = sys.stdout.write, report: Write = sys.stderr.write) -> int:
    """Copy a job's log until the job ends. Returns its exit code, or 1 for a job that was stopped or lost.

    Args:
        write: called with each new part of the log.
        report: called with a line while the head is unreachable.

    Raises:
        RaysepError: the head does not answer for `SILENCE_S`, or no longer knows the job.
    """
    with client_of(address) as client:
        return asyncio.run(_Follower(client, job_id, address, write, report).run())


class _Follower:
    """Copies the log of one job."""

    def __init__(self, client: Any, job_id: str, address: str, write: Write, report: Write) -> None:
        self._client, self._job_id, self._address = client, job_id, address
        self._write, self._report = write, report
        # Characters of the log that are already copied.
        self._written = 0

    async def run(self) -> int:
        import requests

        log: asyncio.Task[None] | None = None
        last_answer, report_at = time.monotonic(), REPORT_AFTER_S
        try:
            while True:
                if log is not None and log.done():
                    # Raises an error of `write`; `_copy` has caught those of the network, and is started again.
                    log.result()
                if log is None or log.done():
                    log = asyncio.create_task(self._copy())
                try:
                    info = await _in_thread(self._client.get_job_info, self._job_id)
                except (RuntimeError, TypeError, ValueError, requests.exceptions.RequestException) as error:
                    # A response that isn't Ray's, such as a proxy's error page, counts as no answer.
                    silent = time.monotonic() - last_answer
                    self._check_lost(error, silent)
                    if silent >= report_at:
                        report_at = silent + REPORT_EVERY_S
                        self._report(
                            f"no answer from {self._address} for {silent:.0f} s ({_short(error)}); {self._job_id} goes "
                            f"on by itself; retrying for up to {SILENCE_S:.0f} s\n"
                        )
                else:
                    last_answer, report_at = time.monotonic(), REPORT_AFTER_S
                    if info.status.is_terminal():
                        return await self._end(log, info)
                await asyncio.wait([log], timeout=POLL_S)
        finally:
            if log is not None:
                log.cancel()

    def _check_lost(self, error: Exception, silent_s: float) -> None:
        if "status code 404" in str(error) and "does not exist" in str(error):
            raise RaysepError(
                f"{self._address} no longer knows {self._job_id}: its head was restarted, which ended the job. Its "
                "results are kept; submit it again to resume"
            ) from None
        if silent_s > SILENCE_S:
            raise RaysepError(
                f"{self._address} has not answered for {silent_s:.0f} s ({_short(error)}). {self._job_id} may still "
                f"be running: when the head answers again, `raysep jobs --address {self._address}` lists it"
            ) from None

    async def _copy(self) -> None:
        """Write new parts of the log until the WebSocket closes; without a WebSocket, fetch the log once."""
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(self._job_id):
                # A new connection sends the log from its beginning.
                self._write(text[max(0, self._written - position) :])
                position += len(text)
                self._written = max(self._written, position)
        except (aiohttp.ClientError, OSError, RuntimeError):
            await asyncio.sleep(REFETCH_S)
            with contextlib.suppress(Exception):
                await self._fetch()
        else:
            # The WebSocket closes when the job ends, or while it has no log yet.
            await asyncio.sleep(POLL_S)

    async def _fetch(self) -> None:
        log = await _in_thread(self._client.get_job_logs, self._job_id)
        self._write(log[self._written :])
        self._written = max(self._written, len(log))

    async def _end(self, log: "asyncio.Task[None]", info: "JobDetails") -> int:
        import requests

        await asyncio.wait([log], timeout=REST_S)
        log.cancel()
        try:
            await self._fetch()
        except (RuntimeError, requests.exceptions.RequestException) as error:
            self._report(f"the end of the log of {self._job_id} can't be fetched ({_short(error)})\n")
        return _exit_code(info)


def _exit_code(info: "JobDetails") -> int:
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if info.status.value == "SUCCEEDED" else 1


async def _in_thread(call: Callable[[str], Any], argument: str) -> Any:
    """Run a call in a daemon thread, and await its result, so that exit doesn't wait for an unreachable head."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = call(argument)
        except Exception as raised:  # noqa: BLE001  (raised again by the await)
            error = raised
        # The loop is closed if nobody awaits the result any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
