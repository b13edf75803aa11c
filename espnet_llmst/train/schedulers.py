"""Learning-rate schedules that ESPnet lacks: warm-up, then linear or cosine decay to zero."""

import math

import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from torch.optim.lr_scheduler import LambdaLR


def warmup_factor(step: int, warmup_steps: float, total_steps: int, shape: str) -> float:
    """Share of the peak rate at the 0-based ``step``; 0 from ``total_steps`` on."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return 1.0 - done if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class _WarmupDecay(LambdaLR, AbsBatchStepScheduler):
    """Linear warm-up to the optimizer's rate, then decay to zero at ``total_steps``.

    Args:
        optimizer: its rates are the peak.
        total_steps: updates of the whole phase; the task fills it in when the config leaves it out.
        warmup_steps: updates of the warm-up.
        warmup_ratio: the same as a share of ``total_steps``; used when ``warmup_steps`` is None.
    """

    shape: str

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int | None = None,
        warmup_steps: int | None = None,
        warmup_ratio: float = 0.03,
    ) -> None:
        warmup = warmup_ratio * total_steps if warmup_steps is None else warmup_steps
        super().__init__(optimizer, lambda step: warmup_factor(step, warmup, total_steps, self.shape))


class WarmupLinear(_WarmupDecay):
    """Warm-up, then linear decay (LST stage 1, LLM-SRT, Aligned)."""

    shape = "linear"


class WarmupCosine(_WarmupDecay):
    """Warm-up, then cosine decay (LLaST)."""

    shape = "cosine"
