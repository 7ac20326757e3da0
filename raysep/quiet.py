"""Keep the libraries' own lines off the terminal: users see ours."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("ray", "timm", "torch", "huggingface_hub", "urllib3", "matplotlib")


@contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Silence warnings and the libraries' loggers for a block, unless `verbose`."""
    if verbose:
        yield
        return
    # Workers inherit it; Ray prints what they write only with --verbose.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
