"""How each library reports running out of memory, and what only sounds like it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdcli.draw import oom

ROOT = Path(__file__).resolve().parents[2]

MEMORY: list[BaseException] = [
    MemoryError(),
    torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.59 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB, max allowed: 9.07 GB)."),
    RuntimeError("Invalid buffer size: 16.00 GiB"),
    RuntimeError("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:72] data. DefaultCPUAllocator: not enough memory: you tried to"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError(12, "Cannot allocate memory"),
    OSError("[WinError 1455] The paging file is too small for this operation to complete."),
]
NOT_MEMORY: list[BaseException] = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (154x768 and 1024x320)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    SystemError("<function _find_and_load at 0x7f> returned NULL without setting an exception"),
    RuntimeError("could not create a primitive"),  # memory is plentiful here, so it is something else
    RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ImportError("libcudart.so.12: cannot open shared object file: No such file or directory"),
    OSError(28, "No space left on device"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_every_librarys_words_are_recognised(error: BaseException) -> None:
    assert oom.is_out_of_memory(error)


@pytest.mark.parametrize("error", NOT_MEMORY, ids=str)
def test_what_only_sounds_like_it_is_not_out_of_memory(error: BaseException) -> None:
    assert not oom.is_out_of_memory(error)


def test_a_wrapped_failure_is_found_and_quoted() -> None:
    try:
        try:
            raise ImportError("libtiff.so: failed to map segment from shared object")
        except ImportError as error:
            raise RuntimeError("Failed to import the module.\nPlease read this advice!") from error
    except RuntimeError as error:
        wrapped = error
    assert oom.is_out_of_memory(wrapped)
    assert oom.first_line(wrapped) == "libtiff.so: failed to map segment from shared object"


UNDER_A_LIMIT = """
import resource
from sdcli.draw import oom
from sdcli.machine import memory
now = memory._status(memory.Path("/"))["VmSize"]
resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20), resource.RLIM_INFINITY))
assert memory.read().available <= 100 << 20
assert oom.is_out_of_memory(RuntimeError("could not create a primitive"))
assert oom.is_out_of_memory(SystemError("<function _find_and_load> returned NULL without setting an exception"))
assert not oom.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
error = oom.without_a_plan(MemoryError())
assert error.code == 4 and 0 < error.details["free"] <= 100 << 20, error.details
print(error.message, error.hint)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not keep to such limits")
def test_a_failure_without_a_reason_is_memory_where_hardly_any_is_left() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "MiB free now within this process's limit (ulimit -v)" in done.stdout
