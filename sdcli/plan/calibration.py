"""Every constant of the forecast that is not counted from a config, in one place, each with its origin."""

from __future__ import annotations

from sdcli.sizes import GIB

MIB = 1 << 20

# Budgets
SAFETY = 0.92  # share of what is free that a plan may use: the rest is for the forecast's own error
CUDA_CONTEXT = GIB // 2  # published: 0.4-0.6 GiB of context, cuBLAS and cuDNN outside torch's allocator

# Host
IMPORTS = 460 * MIB  # measured before any weights: torch's CPU build, diffusers, transformers, the models' classes
CUDA_LIBRARIES = GIB  # assumed: kernels and the driver's host side once a CUDA context exists; not yet measured
PICTURE_BYTES_PER_PIXEL = 3 * (4 + 1 + 1)  # counted: the decoded picture as fp32, as bytes, and its encoder's copy

# Device work: live bytes are counted; an allocator that hands out rounded blocks reserves a little more
CUDA_ROUNDING = 1.05  # assumed: a caching allocator that hands out blocks of 2 MiB; not yet measured
CUDA_WORKSPACE = 32 * MIB  # documented: cuBLAS keeps 32 MiB on recent cards (8 on older ones), through the allocator
CPU_ROUNDING = 1.0  # measured with every tensor in pages of its own: live bytes as counted, to 1 MiB in 384
CPU_HEAP = 1.8  # measured, 1.3 to 2.1: glibc's heap keeps holes among the UNet's many tensors below 32 MiB
CPU_WORKSPACE = 56 * MIB  # measured: code paged in and oneDNN's kernels, by the first encode and the first UNet call
MPS_ROUNDING = 1.1  # assumed, not yet measured

STREAMED_LAYERS = 3  # counted: the layer at work, the one fetched ahead, and one whose memory is not yet given back


def rounding(kind: str, heap: bool = False) -> float:
    """Reserved bytes to live ones; `heap`: where a CPU's are mostly in the C library's heap."""
    return {"cuda": CUDA_ROUNDING, "mps": MPS_ROUNDING}.get(kind, CPU_HEAP if heap else CPU_ROUNDING)


def workspace(kind: str) -> int:
    return {"cuda": CUDA_WORKSPACE, "cpu": CPU_WORKSPACE}.get(kind, 0)
