"""Mixed precision by name, the same on GPU and CPU."""

import contextlib

import torch

from espnet_llmst.cli import InputError


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has bfloat16 arithmetic of its own (emulated, it is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def is_mixed(device: torch.device, precision: str) -> bool:
    """Whether ``precision`` means bfloat16 there: "float32", "bfloat16", or "auto".

    "auto" is bfloat16 where the device computes in it, else float32; results then differ between machines.
    """
    if precision not in ("float32", "bfloat16", "auto"):
        raise InputError(f"model_conf.autocast: '{precision}' must be float32, bfloat16 or auto")
    return precision == "bfloat16" or (precision == "auto" and computes_in_bfloat16(device))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """A context that computes in ``precision``, see `is_mixed`; float32 leaves ESPnet's ``use_amp`` in force."""
    mixed = is_mixed(device, precision)
    return torch.autocast(device.type, torch.bfloat16) if mixed else contextlib.nullcontext()
