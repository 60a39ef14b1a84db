"""Where torch computes: the device, its precision, its threads."""

from __future__ import annotations

import torch

from fracskip.errors import ConfigError
from fracskip.machine import describe_processor


def pick_device(wanted: str = "auto") -> torch.device:
    """The device to use: a GPU where there is one, unless told otherwise.

    Args:
        wanted: 'auto', 'cpu' or 'cuda'.

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, torch finds no GPU: use 'auto' or 'cpu'")
    return torch.device(wanted)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic; emulating it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    )


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether a run computes in bfloat16: 'auto' where the device does, 'bf16' always, 'off'."""
    return amp == "bf16" or (amp == "auto" and computes_in_bf16(device))


def describe(device: torch.device) -> str:
    """The device in words: the GPU's name, or the processor and how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return describe_processor(torch.get_num_threads())
