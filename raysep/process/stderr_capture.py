"""Keep the libraries' own lines off the terminal: users see ours, and `--verbose` shows theirs."""

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
    """Send what libraries write to stderr to a file for the length of a block, unless `verbose`.

    Ray's C++ core writes to the file descriptor itself, beyond the reach of Python's logging. The file is
    removed when the block ends well; when it doesn't, it stays, and its name is printed, whatever ends the process.

    Args:
        verbose: leave stderr as it is.
        kept: what is there if the process is lost, and how to go on.

    Yields:
        A console on the real stderr.
    """
    if verbose:
        with watcher.watched(2, None, kept):
            yield Console(file=lenient(sys.stderr), highlight=False)
        return
    # Workers inherit it; Ray prints what they write only with --verbose.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.stderr.flush()
    real = os.dup(2)
    log = tempfile.NamedTemporaryFile(prefix="raysep-", suffix=".log", delete=False)  # noqa: SIM115  (it may stay)
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
        if keep and os.path.getsize(log.name):  # noqa: PTH202  (a name from tempfile)
            print(f"What the libraries said is in {log.name}", file=sys.stderr)
        else:
            os.unlink(log.name)  # noqa: PTH108
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
