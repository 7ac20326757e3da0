"""The log of a job, copied until the job ends.

What is new comes through a WebSocket; whether the job goes on is asked each second. Both may fail for a while: the job
goes on by itself.
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
# So long a followed job may be out of reach; when that is said first, and how often.
SILENCE_S, SAID_AFTER_S, SAID_EVERY_S = 300.0, 10.0, 30.0
# How often the whole log is fetched where the head's WebSocket can't be reached.
REFETCH_S = 10.0
# What is left of a log when its job has ended is waited for so long.
REST_S = 10.0


def follow(job_id: str, address: str, write: Write = sys.stdout.write, say: Write = sys.stderr.write) -> int:
    """Copy a job's log until it ends. Returns its exit code; 1 where it has none, since it was stopped or lost.

    Args:
        write: takes the log.
        say: takes a line where the job is out of reach for a while.

    Raises:
        RaysepError: the cluster doesn't answer for `SILENCE_S`, or doesn't know the job any more.
    """
    with client_of(address) as client:
        return asyncio.run(_Follower(client, job_id, address, write, say).run())


class _Follower:
    """One job's log, and what was written of it."""

    def __init__(self, client: Any, job_id: str, address: str, write: Write, say: Write) -> None:
        self._client, self._job_id, self._address = client, job_id, address
        self._write, self._say = write, say
        # Characters of the log that are written.
        self._written = 0

    async def run(self) -> int:
        import requests

        log: asyncio.Task[None] | None = None
        heard, said = time.monotonic(), SAID_AFTER_S
        try:
            while True:
                if log is not None and log.done():
                    # What was raised for the log's writer ends this; the network is tried again.
                    log.result()
                if log is None or log.done():
                    log = asyncio.create_task(self._copy())
                try:
                    info = await _in_thread(self._client.get_job_info, self._job_id)
                except (RuntimeError, TypeError, ValueError, requests.exceptions.RequestException) as error:
                    # Not Ray's words, as of a proxy's page, are no answer either.
                    silent = time.monotonic() - heard
                    self._check_lost(error, silent)
                    if silent >= said:
                        said = silent + SAID_EVERY_S
                        self._say(
                            f"no answer from {self._address} for {silent:.0f} s ({_short(error)}); {self._job_id} goes "
                            f"on by itself; trying for {SILENCE_S:.0f} s\n"
                        )
                else:
                    heard, said = time.monotonic(), SAID_AFTER_S
                    if info.status.is_terminal():
                        return await self._end(log, info)
                await asyncio.wait([log], timeout=POLL_S)
        finally:
            if log is not None:
                log.cancel()

    def _check_lost(self, error: Exception, silent_s: float) -> None:
        if "status code 404" in str(error) and "does not exist" in str(error):
            raise RaysepError(
                f"{self._address} doesn't know {self._job_id} any more: its head was started anew, and the job ended "
                "with the old one. What it wrote stays; submit it again to go on from there"
            ) from None
        if silent_s > SILENCE_S:
            raise RaysepError(
                f"{self._address} has not answered for {silent_s:.0f} s ({_short(error)}). {self._job_id} may go on "
                f"by itself: when the head answers again, `raysep jobs --address {self._address}` lists it"
            ) from None

    async def _copy(self) -> None:
        """Write what is new of the log until the WebSocket ends; without one, all of it once in a while."""
        import aiohttp

        position = 0
        try:
            async for text in self._client.tail_job_logs(self._job_id):
                # A new connection begins at the beginning.
                self._write(text[max(0, self._written - position) :])
                position += len(text)
                self._written = max(self._written, position)
        except (aiohttp.ClientError, OSError, RuntimeError):
            await asyncio.sleep(REFETCH_S)
            with contextlib.suppress(Exception):
                await self._fetch()
        else:
            # It ends where the job does, or where it has no log yet.
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
            self._say(f"the end of the log of {self._job_id} can't be had ({_short(error)})\n")
        return _exit_code(info)


def _exit_code(info: "JobDetails") -> int:
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if info.status.value == "SUCCEEDED" else 1


async def _in_thread(call: Callable[[str], Any], argument: str) -> Any:
    """A call's result, from a thread that nobody waits for at the end: a head out of reach may take its time."""
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
        except Exception as raised:  # noqa: BLE001  (raised where it is awaited)
            error = raised
        # The loop is closed where nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, daemon=True).start()
    return await done


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
