"""Memory of a training step's activations, found by running the step on tensors that have a shape and no content.

The model's own code runs on torch's fake tensors, so attention, LoRA, autocast, frozen parts and gradient checkpointing
count as they are. Layers of a stack are alike: two of each are run, and the rest is counted from their difference.
Kernels are those of the CPU: where the GPU's attention differs (dropout within attention), the CPU's takes more.

Shapes: B batch, S samples.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from espnet_llmst.encoder.units import UnitEncoder
from espnet_llmst.espnet_model import ESPnetLLMSTModel

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
PROMPT = 2  # tokens that are no target: with all others counted as targets, their logits are an upper bound


@dataclass(frozen=True)
class Shape:
    """What an utterance brings: samples of speech (0: none) and tokens of text, all but two counted as targets."""

    samples: int
    tokens: int


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are still held; ``peak`` is their most."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        # State is counted apart; what shares its storage is no new memory.
        self.known = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in INDEXING:  # the size of what a mask selects is in its content, which fake tensors lack
            args = (args[0], _positions(args[1]), *args[2:])
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _positions(indices) -> list:
    found = []
    for index in indices:
        masked = isinstance(index, torch.Tensor) and index.dtype == torch.bool
        found += index.nonzero().unbind(1) if masked else [index]
    return found


def without_content(model: ESPnetLLMSTModel, fake: FakeTensorMode) -> ESPnetLLMSTModel:
    """Turn parameters and buffers of a model on the meta device, in place, into fake tensors that name the CPU."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:  # tied weights stay one; the original is kept, or its id would be used again
            plain = tensor.detach()
            if plain.is_meta:
                plain = fake.fake_tensor_converter.from_meta_and_device(fake, plain, torch.device("cpu"))
            else:
                plain = fake.from_tensor(plain)
            parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = (torch.nn.Parameter(plain, tensor.requires_grad) if parameter else plain, tensor)
        return made[id(tensor)][0]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: convert(tensor) for name, tensor in tensors.items() if tensor is not None})
    return model


def batch_of(rows: int, shape: Shape) -> dict[str, torch.Tensor]:
    """A batch of equal utterances, as the collate function makes it; what it holds does not matter."""
    batch = {"speech": torch.zeros(rows, max(1, shape.samples)), "speech_lengths": torch.full((rows,), shape.samples)}
    for name, size in (("prefix", PROMPT), ("suffix", 0), ("text", max(1, shape.tokens - PROMPT))):
        batch[name] = torch.ones(rows, size, dtype=torch.long)
        batch[f"{name}_lengths"] = torch.full((rows,), size)
    return batch


def run_step(model: ESPnetLLMSTModel, rows: int, shape: Shape) -> tuple[int, int]:
    """Bytes that a forward pass leaves for the backward one, and what both need beyond that at their peak."""
    live = _Live(model)
    batch = batch_of(rows, shape)
    with live:
        loss = model(**batch)[0]
        kept = live.now
        loss.backward()
    model.zero_grad(set_to_none=True)
    return kept, live.peak - kept


def stacks_of(model: ESPnetLLMSTModel) -> list[tuple[torch.nn.Module, str]]:
    """(owner, name) of the stacks of like layers in the encoder and the language model."""
    found = []
    for part in filter(None, (model.encoder, model.decoder)):
        for owner in part.modules():
            for name, layers in owner.named_children():
                alike = {type(layer) for layer in layers} if isinstance(layers, torch.nn.ModuleList) else ()
                if len(alike) == 1 and len(layers) > 2 and any(True for _ in layers.parameters()):
                    found.append((owner, name))
    return [(owner, name) for owner, name in found if not _inside_another(owner, found)]


def _inside_another(owner: torch.nn.Module, found: list) -> bool:
    return any(owner in getattr(other, name).modules() for other, name in found)


@contextmanager
def cut_to(stacks: list[tuple[torch.nn.Module, str]], depths: list[int]) -> Iterator[None]:
    """While open, each stack has that many layers."""
    whole = [getattr(owner, name) for owner, name in stacks]
    try:
        for (owner, name), layers, depth in zip(stacks, whole, depths, strict=True):
            setattr(owner, name, layers[:depth])
        yield
    finally:
        for (owner, name), layers in zip(stacks, whole, strict=True):
            setattr(owner, name, layers)


def step_memory(model: ESPnetLLMSTModel, rows: int, shape: Shape) -> dict[str, float]:
    """Bytes of a step beyond weights, gradients and the optimizer's state.

    Args:
        model: of `without_content`; in training mode.

    Returns:
        encoder, decoder: kept by their layers for the backward pass; rest: by everything else, copies of trained
        weights in the precision of autocast among it; working: what is held for a moment at the peak.
    """
    stacks = stacks_of(model)
    ones = [1] * len(stacks)
    with cut_to(stacks, ones):
        rest, working = run_step(model, rows, shape)
    found = {"encoder": 0.0, "decoder": 0.0, "rest": float(rest), "working": float(working)}
    for number, (owner, name) in enumerate(stacks):
        depth = len(getattr(owner, name))
        with cut_to(stacks, ones[:number] + [2] + ones[number + 1 :]):
            kept, _ = run_step(model, rows, shape)
        part = "decoder" if owner in model.decoder.modules() else "encoder"
        found[part] += (kept - rest) * (depth - 1)
    return found


def can_be_run(model: ESPnetLLMSTModel) -> bool:
    """Whether shapes alone tell all: the number of discrete units depends on what is said."""
    return not isinstance(model.encoder, UnitEncoder)
