"""Gradient checkpointing: a transformer layer keeps its input only and computes the rest again in the backward pass."""

import functools
from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def layers_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of all transformers models within ``module``."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


def recompute_layers(module: torch.nn.Module) -> None:
    """Switch gradient checkpointing on, in place.

    transformers' own switch works in training mode only; here frozen layers, and those with LoRA, are in eval mode
    while gradients pass through them.
    """
    for layer in layers_of(module):
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def call(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return call
