"""Every constant of the forecast that is not counted from a config, each with its origin."""

from __future__ import annotations

from sdcli.models.trace import STREAMED_LAYERS as STREAMED_LAYERS
from sdcli.sizes import GIB

MIB = 1 << 20

# Budgets
SAFETY = 0.92  # share of free memory that a plan may use: the rest is for the forecast's error
CUDA_SAFETY = 0.955  # the same where the forecast is counted by the rules of torch's allocator
CUDA_CONTEXT = GIB // 2  # published: 0.4-0.6 GiB of context, cuBLAS and cuDNN outside torch's allocator
ROCM_CONTEXT = GIB  # assumed, not yet measured: HIP's context, rocBLAS and MIOpen outside torch's allocator
XPU_CONTEXT = GIB // 2  # assumed, not yet measured: Level Zero's context and oneDNN outside torch's allocator

# Host
IMPORTS = 460 * MIB  # measured before any weights: torch's CPU build, diffusers, transformers, the models' classes
CUDA_LIBRARIES = GIB  # assumed, not yet measured: kernels and the driver's host side once a CUDA context exists
OTHER_LIBRARIES = GIB  # assumed, not yet measured: the same of ROCm and XPU
TORCH = 240 * MIB  # measured before any weights: torch's CPU build alone, with Pillow
TORCH_WORKSPACE = 32 * MIB  # measured, 0 to 47 MiB: oneDNN's kernels where only an upscaler computes
IMAGE_BYTES_PER_PIXEL = 3 * (4 + 1 + 1)  # counted: the decoded image as fp32, as bytes, and its encoder's copy
FILE_BYTES_PER_PIXEL = 3 * 4  # counted: an image file as Pillow decodes it, turned upright, and as RGB
UPSCALED_BYTES_PER_PIXEL = 3 + 3 + 4  # counted: what a model enlarged as bytes, twice, and as Pillow has it
FINAL_BYTES_PER_PIXEL = 4 + 3 + 4 + 2  # counted: resized, as bytes, and as Pillow has it again; its encoder's

# OpenVINO on the CPU, measured with UNets of 4 to 540 MiB: docs/memory.md
OPENVINO = 170 * MIB  # measured, 54 to 175 MiB: its code, kernels and graphs, and what converting leaves in the heap
OPENVINO_TRACING = 140 * MIB  # measured, 112 to 137 MiB beside the weights: following a call, and the graph

# Compiled blocks, on the host. The C++ compiler's own process is not counted.
COMPILER = 100 * MIB  # measured, 90 to 110 MiB: what torch.compile loads and keeps
COMPILING = 40 * MIB  # measured, 30 MiB beside it while it compiles

# On the device: weights and live bytes are counted; an allocator that hands out blocks takes a little more
CUDA_BLOCKS = 1.015  # counted by its rules, 1.01 to 1.025: docs/benchmarks/memory-card.md
CUDA_BLOCKS_FP8 = 1.03  # the same for weights in fp8
CUDA_GAPS = 0.23  # counted: free bytes per live byte beside them, since blocks leave gaps; 0.01 to 1
CUDA_GRAPH = 1.4  # counted, 1.12 to 1.63: what the pool of a graph takes per live byte of the call it holds
OTHER_ROUNDING = 1.1  # assumed, not yet measured: torch's caching allocators for ROCm and XPU
CUDA_WORKSPACE = 32 * MIB  # documented: cuBLAS keeps 32 MiB on recent GPUs (8 on older ones), through the allocator
OTHER_WORKSPACE = 128 * MIB  # assumed, not yet measured: of hipBLASLt and MIOpen, or oneDNN
CPU_ROUNDING = 1.0  # measured, each tensor in separate pages: live bytes as counted, to 1 MiB in 384
CPU_HEAP = 1.8  # measured, 1.3 to 2.1: glibc's heap has holes among the UNet's many tensors below 32 MiB
CPU_WORKSPACE = 56 * MIB  # measured: code paged in, and oneDNN's kernels, by the first encode and the first UNet call
MPS_ROUNDING = 1.1  # assumed, not yet measured


def safety(backend: str) -> float:
    return CUDA_SAFETY if backend == "cuda" else SAFETY


def blocks(backend: str, dtype: str) -> float:
    """Bytes taken per byte of weights."""
    if backend != "cuda":
        return 1.0
    return CUDA_BLOCKS_FP8 if dtype == "fp8" else CUDA_BLOCKS


def rounding(backend: str, heap: bool = False) -> float:
    """Bytes taken per live byte; `heap`: on a CPU they are mostly in the C library's heap."""
    known = {"cuda": CUDA_BLOCKS + CUDA_GAPS, "rocm": OTHER_ROUNDING, "xpu": OTHER_ROUNDING, "mps": MPS_ROUNDING}
    return known.get(backend, CPU_HEAP if heap else CPU_ROUNDING)


def workspace(backend: str) -> int:
    known = {"cuda": CUDA_WORKSPACE, "rocm": OTHER_WORKSPACE, "xpu": OTHER_WORKSPACE, "cpu": CPU_WORKSPACE}
    return known.get(backend, 0)


def context(backend: str) -> int:
    """Bytes on the device outside torch's allocator."""
    return {"cuda": CUDA_CONTEXT, "rocm": ROCM_CONTEXT, "xpu": XPU_CONTEXT}.get(backend, 0)


def libraries(backend: str) -> int:
    """Bytes on the host once the device is in use."""
    return {"cuda": CUDA_LIBRARIES, "rocm": OTHER_LIBRARIES, "xpu": OTHER_LIBRARIES}.get(backend, 0)
