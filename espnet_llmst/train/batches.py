"""The batches of one epoch: from a position on, as long as every rank has some, with workers that SIGTERM spares."""

import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from espnet_llmst.train.ranks import any_rank, gather, is_distributed
from espnet_llmst.train.rng import set_rng_state
from espnet_llmst.train.sigterm import EXIT_STATUS, Sigterm


def count_batches(loader: Iterable) -> int | None:
    """Batches of a whole epoch, when the loader knows; of several ranks that with the fewest ends it for all."""
    try:
        count = len(loader)
    except TypeError:
        count = None
    counts = gather(count)
    return None if None in counts else min(counts)


def remaining_batches(loader: Iterable, done: int, rng: dict[str, Any] | None) -> Iterator:
    """The batches after the first ``done``, which are not read when the loader has a list of them.

    Args:
        rng: states of the random generators, set once the loader, which draws from them, has started.
    """
    spare_workers(loader)
    if isinstance(loader, DataLoader) and isinstance(loader.batch_sampler, list):
        del loader.batch_sampler[:done]
        batches = iter(loader)
    else:
        batches = iter(loader)
        for _ in islice(batches, done):
            pass
    if rng:
        set_rng_state(rng)
    yield from batches


def together(batches: Iterator, device: str) -> Iterator:
    """Batches until one of the ranks has none left."""
    for batch in batches:
        if any_rank(False, device=device):
            return
        yield batch
    any_rank(True, device=device)


def leave_on(sigterm: Sigterm, batches: Iterable) -> Iterator:
    """Batches of a validation, which SIGTERM ends at once: all before it is saved.

    With several processes it goes on, for they would have to agree on it; they do after the validation.
    """
    spare_workers(batches)
    for batch in batches:
        if sigterm.came and not is_distributed():
            raise SystemExit(EXIT_STATUS)
        yield batch


def spare_workers(loader: Iterable) -> None:
    """Make a loader's worker processes ignore SIGTERM, which Slurm sends to every process of a job.

    They end with the training process, which decides when.
    """
    if isinstance(loader, DataLoader) and loader.num_workers > 0:
        loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)


def _init_worker(init: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if init is not None:
        init(worker)
