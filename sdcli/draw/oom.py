"""Tells running out of memory from every other failure: each part of the stack says it in its own way."""

from __future__ import annotations

import torch

# A CPU's is a plain RuntimeError from torch's allocator; cuDNN, cuBLAS, MPS and the driver name their own status.
_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "cublas_status_alloc_failed",
    "cuda_error_out_of_memory",
    "invalid buffer size",
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, (RuntimeError, OSError)):
        return False
    text = str(error).lower()
    return any(words in text for words in _WORDS)
