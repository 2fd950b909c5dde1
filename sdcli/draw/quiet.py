"""Silences the libraries: everything sdcli prints is its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_SETTINGS = {
    "DIFFUSERS_VERBOSITY": "error",
    "DIFFUSERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's threads: unused here, and where no thread can start they end the process
}


@contextmanager
def libraries_silenced() -> Iterator[None]:
    """Enter before the first import of diffusers or transformers: some settings are read only then."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, UserWarning, RuntimeWarning):
            warnings.filterwarnings(
                "ignore", category=category, module=r"(diffusers|transformers|huggingface_hub|peft|torch)"
            )
        with _only_exceptions():
            try:
                yield
            finally:
                for name, value in before.items():
                    os.environ.pop(name, None)
                    if value is not None:
                        os.environ[name] = value


@contextmanager
def _only_exceptions() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    both = (diffusers_logging, transformers_logging)
    levels = [logging.get_verbosity() for logging in both]
    for logging in both:
        logging.set_verbosity(50)  # CRITICAL: errors arrive as exceptions
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, level in zip(both, levels, strict=True):
            logging.set_verbosity(level)
            with warnings.catch_warnings(
                action="ignore"
            ):  # the Hub's own stay off where they were when it was imported
                logging.enable_progress_bar()
