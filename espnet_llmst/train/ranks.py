"""What the processes of a distributed training tell each other; alone, each function is trivial."""

from typing import Any

import torch
from torch import distributed


def is_distributed() -> bool:
    """Whether other processes take part."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number; 0 writes the files."""
    return distributed.get_rank() if is_distributed() else 0


def size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if is_distributed() else 1


def any_rank(flag: bool, device: torch.device | str) -> bool:
    """Whether the flag is set on any rank; every rank must call this at the same point."""
    if not is_distributed():
        return flag
    count = torch.tensor(int(flag), device=device)
    distributed.all_reduce(count)
    return bool(count > 0)


def gather(value: Any) -> list[Any]:
    """The values of all ranks, on every rank."""
    if not is_distributed():
        return [value]
    values = [None] * size()
    distributed.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Until every rank has come here."""
    if is_distributed():
        distributed.barrier()
