"""FSDP2: each process keeps its part of parameters, gradients and optimizer state (torch's ``fully_shard``).

Layers come together one by one when they compute; what is in no layer (embeddings, head, connector) stays whole during
a step. A frozen encoder stays whole on every process: it is small beside a language model.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from espnet_llmst.cli import InputError
from espnet_llmst.precision import is_mixed
from espnet_llmst.recompute import layers_of
from espnet_llmst.train import ranks

PARTS = ("model", "optimizers", "gradients")  # of a checkpoint: every process has its own
LAYER_DROPS = ("layerdrop", "layer_drop_rate", "stochastic_depth_rate")  # of transformers and of ESPnet


def shard(model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], device: str) -> None:
    """Split the model's parameters over all processes, in place; the optimizers get the parts.

    Args:
        model: an ESPnetLLMSTModel with its starting weights, the same on every process; it may lie on the CPU still.
        optimizers: of its parameters, before their first step.
        device: "cuda" or "cpu".

    Raises:
        InputError: quantised weights.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    integers = [name for parameter, name in names.items() if not parameter.is_floating_point()]
    if integers:
        raise InputError(f"fsdp: {integers[0]} is quantised, which cannot be split; set decoder_conf.quantize to null")
    mixed = is_mixed(torch.device(device), model.precision)
    # Inputs keep their precision: waveforms come in here.
    precision = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if mixed else {}
    settings = {
        "mesh": init_device_mesh(device, (ranks.size(),)),
        "mp_policy": MixedPrecisionPolicy(**precision, cast_forward_inputs=False),
    }
    whole = _frozen_encoder(model)
    whole.to(device)
    keep_all_layers(model)
    apart = set(whole.modules())
    for layer in layers_of(model):
        if layer not in apart:
            fully_shard(layer, **settings)
    fully_shard(model, **settings, ignored_params=set(whole.parameters()))
    parts = dict(model.named_parameters())
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["params"] = [parts[names[parameter]] for parameter in group["params"]]


def _frozen_encoder(model: torch.nn.Module) -> torch.nn.Module:
    """The encoder, or a module of nothing when it is trained or absent."""
    if model.encoder is None or any(p.requires_grad for p in model.encoder.parameters()):
        return torch.nn.Identity()
    return model.encoder


def keep_all_layers(model: torch.nn.Module) -> None:
    """No layer drop: of several processes, one that leaves a layer out would let the others wait for ever."""
    for module in model.modules():
        for owner, name in itertools.product((module, getattr(module, "config", None)), LAYER_DROPS):
            if getattr(owner, name, 0.0):
                logging.info(f"{name} is switched off in {type(module).__name__}")
                setattr(owner, name, 0.0)


def full_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """``state_dict`` with whole tensors, on the CPU of rank 0 (empty on the others); every rank must call this."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's content as this process's tensors, and the rest, which is the same on all."""
    own = tree_map_only(DTensor, lambda tensor: tensor.to_local(), {name: state[name] for name in PARTS})
    return own, {**state, **dict.fromkeys(PARTS)}


def joined(training, own: dict[str, Any]) -> dict[str, Any]:
    """What `split` took apart, for the same model and optimizers.

    Raises:
        ValueError: a tensor has another shape.
    """
    parameters = dict(training.model.named_parameters(remove_duplicate=False))
    return {
        "model": _like(parameters, own["model"]),
        "gradients": _like(parameters, own["gradients"]),
        "optimizers": [
            _join_optimizer(optimizer, state)
            for optimizer, state in zip(training.optimizers, own["optimizers"], strict=True)
        ],
    }


def _join_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {
            name: _part(ordered[number], value) if torch.is_tensor(value) and value.dim() else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}


def _like(parameters: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: _part(parameters.get(name), tensor, name) for name, tensor in tensors.items()}


def _part(parameter: torch.Tensor | None, local: torch.Tensor, name: str = "optimizer state") -> torch.Tensor:
    """A process's part of a tensor that is split as ``parameter`` is."""
    if not isinstance(parameter, DTensor):
        return local
    if local.shape != parameter.to_local().shape:
        raise ValueError(f"{name}: the part of this process is {tuple(local.shape)}, not {tuple(parameter.shape)}")
    local = local.to(parameter.device)
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
