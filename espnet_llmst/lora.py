"""Low-rank adapters (peft) on any part of the model, and the ``trainable:`` list of a phase."""

from collections.abc import Iterable

import torch

from espnet_llmst.cli import InputError


def add_lora(
    module: torch.nn.Module,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
) -> None:
    """Put LoRA adapters into ``module`` in place.

    Args:
        module: a transformers model.
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapters' input.
        targets: names of linear layers, or "all-linear" for every one but the output head (LLaST).
    """
    from peft import LoraConfig, inject_adapter_in_model  # imported here: it takes several seconds

    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")
    inject_adapter_in_model(config, module)


def keep_fixed(module: torch.nn.Module, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Keep ``parameters`` from what ``trainable:`` says: constants, and what never gets the gradient DDP awaits."""
    chosen = set(map(id, parameters))
    for child in module.modules():
        names = {name for name, p in child.named_parameters(recurse=False) if id(p) in chosen}
        if names:
            child.fixed = names | getattr(child, "fixed", set())


def fixed_names(module: torch.nn.Module) -> set[str]:
    """Names of the parameters that `keep_fixed` chose."""
    owners = module.named_modules()
    return {f"{prefix}.{name}".lstrip(".") for prefix, owner in owners for name in getattr(owner, "fixed", ())}


def is_selected(name: str, entry: str) -> bool:
    """Whether a parameter belongs to an entry of ``trainable:``: a name prefix or ``<prefix>.lora``."""
    if entry.endswith(".lora"):
        return name.startswith(entry.removesuffix("lora")) and ".lora_" in name
    return name == entry or name.startswith(entry + ".")


def set_trainable(model: torch.nn.Module, entries: list[str]) -> None:
    """Let gradients reach the parameters named by ``entries`` and no other.

    Raises:
        InputError: an entry selects nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for entry in entries:
        if not any(is_selected(name, entry) for name in names):
            parts = ", ".join(name for name, _ in model.named_children())
            hint = "give that part a lora: setting" if entry.endswith(".lora") else f"the parts are: {parts}"
            raise InputError(f"trainable: '{entry}' selects no parameter; {hint}")
    fixed = fixed_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in fixed and any(is_selected(name, entry) for entry in entries))


def set_train_mode(module: torch.nn.Module) -> None:
    """Training mode for what is trained (its dropout works), eval mode for everything frozen."""
    fixed = fixed_names(module)
    parameters = [p for name, p in module.named_parameters() if name not in fixed]
    if parameters and all(p.requires_grad for p in parameters):
        module.train(True)
        return
    module.training = False
    # The dropout child of a peft layer has no parameters of its own: it works where the adapter is trained.
    adapted = hasattr(module, "lora_A") and any(p.requires_grad for p in parameters)
    for name, child in module.named_children():
        if adapted and name.startswith("lora_"):
            child.train(True)
        else:
            set_train_mode(child)
