"""Every constant of the forecast that is not counted from a config, each with its origin."""

from __future__ import annotations

from sdcli.sizes import GIB

MIB = 1 << 20

# Budgets
SAFETY = 0.92  # share of free memory that a plan may use: the rest is for the forecast's error
CUDA_CONTEXT = GIB // 2  # published: 0.4-0.6 GiB of context, cuBLAS and cuDNN outside torch's allocator

# Host
IMPORTS = 460 * MIB  # measured before any weights: torch's CPU build, diffusers, transformers, the models' classes
CUDA_LIBRARIES = GIB  # assumed, not yet measured: kernels and the driver's host side once a CUDA context exists
IMAGE_BYTES_PER_PIXEL = 3 * (4 + 1 + 1)  # counted: the decoded image as fp32, as bytes, and its encoder's copy

# On the device: weights and live bytes are counted; an allocator that hands out blocks takes a little more
CUDA_BLOCKS = 1.015  # counted by its rules, 1.01 to 1.025: docs/benchmarks/memory-card.md
CUDA_GAPS = (
    0.15  # counted: share of the live bytes that must be free beside them, since blocks leave gaps; 0.01 to 0.33
)
CUDA_WORKSPACE = 32 * MIB  # documented: cuBLAS keeps 32 MiB on recent GPUs (8 on older ones), through the allocator
CPU_ROUNDING = 1.0  # measured, each tensor in separate pages: live bytes as counted, to 1 MiB in 384
CPU_HEAP = 1.8  # measured, 1.3 to 2.1: glibc's heap has holes among the UNet's many tensors below 32 MiB
CPU_WORKSPACE = 56 * MIB  # measured: code paged in, and oneDNN's kernels, by the first encode and the first UNet call
MPS_ROUNDING = 1.1  # assumed, not yet measured

STREAMED_LAYERS = 3  # counted: the one computing, the one fetched ahead, and one not yet freed


def blocks(kind: str) -> float:
    """Bytes taken per byte of weights."""
    return CUDA_BLOCKS if kind == "cuda" else 1.0


def rounding(kind: str, heap: bool = False) -> float:
    """Bytes taken per live byte; `heap`: on a CPU they are mostly in the C library's heap."""
    return {"cuda": CUDA_BLOCKS + CUDA_GAPS, "mps": MPS_ROUNDING}.get(kind, CPU_HEAP if heap else CPU_ROUNDING)


def workspace(kind: str) -> int:
    return {"cuda": CUDA_WORKSPACE, "cpu": CPU_WORKSPACE}.get(kind, 0)
