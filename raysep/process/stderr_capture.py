"""Keep the stderr output of libraries off the terminal, unless `--verbose`."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from raysep.errors import RaysepError
from raysep.process import watcher
from raysep.process.environment import lenient

LOGGERS = ("ray", "timm", "torch", "huggingface_hub", "urllib3", "matplotlib")


@contextmanager
def quiet(verbose: bool, kept: str = "Nothing was written") -> Iterator[Console]:
    """Redirect stderr to a log file for the duration of a block, unless `verbose`.

    Ray's C++ core writes to the file descriptor directly, not through Python's logging. The log file is deleted after
    success; after an error or a crash it is kept, and its path is printed.

    Args:
        verbose: leave stderr unchanged.
        kept: sentence for a crash report: which results are kept and how to resume.

    Yields:
        A console on the real stderr.
    """
    if verbose:
        with watcher.watched(2, None, kept):
            yield Console(file=lenient(sys.stderr), highlight=False)
        return
    # Workers inherit this variable, so that warnings don't fill their logs.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.stderr.flush()
    real = os.dup(2)
    log = tempfile.NamedTemporaryFile(prefix="raysep-", suffix=".log", delete=False)  # noqa: SIM115  (kept after errors)
    os.dup2(log.fileno(), 2)
    lines = os.fdopen(
        real, "w", buffering=1, encoding=sys.stderr.encoding or "utf-8", errors="backslashreplace", closefd=False
    )
    console = Console(file=lenient(lines), highlight=False)
    keep = False
    try:
        with watcher.watched(real, log.name, kept), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield console
    except RaysepError as error:
        keep = error.exit_code == 1
        raise
    except KeyboardInterrupt:
        raise
    except BaseException:
        keep = True
        raise
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)
        os.close(real)
        log.close()
        if keep and os.path.getsize(log.name):  # noqa: PTH202  (a path from tempfile)
            print(f"The log of the libraries is in {log.name}", file=sys.stderr)
        else:
            os.unlink(log.name)  # noqa: PTH108
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
