"""Keeps the libraries from talking: what sdcli prints is sdcli's own."""

from __future__ import annotations

import os
import warnings

_SETTINGS = {
    "DIFFUSERS_VERBOSITY": "error",
    "DIFFUSERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own threads: nothing here uses them, and without room they end the process
}


def hush() -> None:
    """Call before the first import of diffusers or transformers: some of these are read only then."""
    os.environ.update(_SETTINGS)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings(
            "ignore", category=category, module=r"(diffusers|transformers|huggingface_hub|peft|torch)"
        )
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity(50)  # CRITICAL: errors come to us as exceptions
        logging.disable_progress_bar()
