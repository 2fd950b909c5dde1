"""Copies to a GPU that the host does not wait for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdcli.draw import devices


def without_waiting(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, whatever a library copies to the GPU takes its turn among the kernels.

    The usual copy holds the host until the GPU has caught up, and then the GPU waits for the host's next kernels.
    diffusers' schedulers make such copies in every step: of noise, and of single numbers.
    """
    return _WithoutWaiting(device) if devices.functions(device).streams else nullcontext()


class _WithoutWaiting(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and self._is_ours(kwargs.get("device")):
            made = torch.tensor(*args, **{**kwargs, "device": "cpu"})
            return made.pin_memory().to(self._device, non_blocking=True)
        if (
            func is Tensor.to
            and args[0].device.type == "cpu"
            and any(map(self._is_ours, (*args[1:], kwargs.get("device"))))
        ):
            return args[0].pin_memory().to(*args[1:], **{**kwargs, "non_blocking": True})
        return func(*args, **kwargs)

    def _is_ours(self, value: Any) -> bool:
        return isinstance(value, (str, torch.device)) and torch.device(value).type == self._device.type
