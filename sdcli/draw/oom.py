"""Tells running out of memory from every other failure: each part of the stack says it in its own way.

Without torch: it may be the very import of torch that finds no memory.
"""

from __future__ import annotations

# A CPU's is a plain RuntimeError from torch's allocator; cuDNN, cuBLAS, MPS and the driver name their own status;
# the loader of shared libraries fails to map them.
_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "cublas_status_alloc_failed",
    "cuda_error_out_of_memory",
    "invalid buffer size",
    "could not create a memory object",
    "failed to map segment",
)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, (RuntimeError, OSError, ImportError)):  # torch.OutOfMemoryError is a RuntimeError
        return False
    if type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(words in text for words in _WORDS)
