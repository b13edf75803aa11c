"""What a training is made of, and the two ways between it and the plain values of a checkpoint."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import TrainerOptions

from espnet_llmst.cli import InputError
from espnet_llmst.train import ranks
from espnet_llmst.train.checkpoint import (
    NEWEST,
    load_checkpoint,
    part_names,
    plain,
    read_verified,
    remove_parts,
    save_checkpoint,
    write_atomically,
)
from espnet_llmst.train.fsdp import joined, split
from espnet_llmst.train.reports import load_reporter, load_statistics, reporter_state, statistics_state
from espnet_llmst.train.rng import get_rng_state

KEYS = {"model", "optimizers", "schedulers", "scaler", "reporter", "epoch", "batch", "batches", "updates"}
KEYS |= {"accum_grad", "statistics", "gradients", "rng", "curve", "parts"}


@dataclass
class Training:
    """A phase in training.

    ``parallel`` is the model as it is called (under DDP, its wrapper). ``epoch`` is in work, ``batch`` of its
    ``batches`` are done, ``updates`` of its updates had a finite gradient. ``statistics`` are of its batches;
    ``curve`` holds (batches since the beginning, loss, learning rate) at every line of the log.
    ``rng`` are the generators' states to go on from in the middle of an epoch. ``current`` is the batch in work,
    ``role`` what for: train or valid.
    """

    model: torch.nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[Any]
    scaler: torch.amp.GradScaler | None
    options: TrainerOptions
    distributed_option: DistributedOption
    parallel: torch.nn.Module | None = None
    reporter: Reporter = field(default_factory=Reporter)
    epoch: int = 1
    batch: int = 0
    batches: int | None = None
    updates: int = 0
    statistics: SubReporter | None = None
    loaded_statistics: dict[str, Any] | None = None
    curve: list[list[float]] = field(default_factory=list)
    rng: dict[str, Any] | None = None
    saved: tuple[int, int] | None = None
    current: tuple[list[str], dict[str, torch.Tensor]] | None = None
    role: str = "train"

    @property
    def directory(self) -> Path:
        """Where the phase's files lie."""
        return Path(self.options.output_dir)

    @property
    def device(self) -> str:
        """Where batches go."""
        return "cuda" if self.options.ngpu > 0 else "cpu"

    @property
    def sharded(self) -> bool:
        """Whether every process has only its part of the model (``fsdp``); alone it has all."""
        return self.options.fsdp and ranks.is_distributed()


def start_epoch(training: Training, batches: int | None) -> None:
    """Open the statistics of ``training.epoch``, with what was loaded of them.

    Raises:
        InputError: an epoch has another number of batches than when it was begun.
    """
    training.reporter.set_epoch(training.epoch)
    training.statistics = training.reporter.start_epoch("train")
    if training.loaded_statistics:
        if batches != training.batches:
            raise InputError(
                f"{training.directory}: epoch {training.epoch} was begun with {training.batches} batches and has now "
                f"{batches}: the data, the batch size or the number of processes differs; use another output_dir"
            )
        load_statistics(training.statistics, training.loaded_statistics)
        training.loaded_statistics = None
    training.batches = batches


def next_epoch(training: Training) -> None:
    """Close an epoch that is trained, validated and reported."""
    training.epoch, training.batch, training.updates, training.statistics = training.epoch + 1, 0, 0, None


def capture(training: Training) -> dict[str, Any]:
    """All that is needed to go on from here, as plain values; every rank must call this.

    ``gradients`` are those of batches after the last update of an epoch, which count in the next one's first.
    """
    between = training.statistics is None
    parameters = training.model.named_parameters()
    state = {
        "model": training.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in training.optimizers],
        "schedulers": [scheduler and scheduler.state_dict() for scheduler in training.schedulers],
        "scaler": training.scaler and training.scaler.state_dict(),
        "reporter": reporter_state(training.reporter, training.epoch),
        "epoch": training.epoch,
        "batch": training.batch,
        "batches": training.batches,
        "updates": training.updates,
        "accum_grad": training.options.accum_grad,
        "statistics": None if between else statistics_state(training.statistics),
        "gradients": {name: p.grad for name, p in parameters if p.grad is not None},
        "rng": ranks.gather(get_rng_state()),
        "curve": training.curve,
        "parts": [],
    }
    return plain(state)


def save(training: Training) -> None:
    """Write a checkpoint, unless the last one is of the same place; every rank must call this."""
    place = (training.epoch, training.batch)
    if training.saved == place:
        return
    if (cache := getattr(training.model, "cache", None)) is not None:  # an ASR model (How2's recipe) has none
        cache.flush()
    state = capture(training)
    if training.sharded:
        state = _save_part(training, state, place)
    if ranks.rank() == 0:
        save_checkpoint(training.directory, state)
        if training.sharded:
            remove_parts(training.directory, [place, *filter(None, [training.saved])])
    ranks.wait_for_all()  # torchrun ends them all when the first ends
    training.saved = place


def _save_part(training: Training, state: dict[str, Any], place: tuple[int, int]) -> dict[str, Any]:
    """Write this rank's tensors beside the checkpoint; returns what is to stand in the checkpoint itself.

    Raises:
        InputError: a rank could not write; the last checkpoint and its parts are untouched.
    """
    own, rest = split(state)
    names, failure = part_names(place, ranks.size()), None
    try:
        write_atomically(training.directory / names[ranks.rank()], own)
    except InputError as error:
        failure = error
    if ranks.any_rank(failure is not None, training.device):
        raise failure or InputError(f"{training.directory}: another process could not write its part of the checkpoint")
    return {**rest, "parts": names}


def resume(training: Training) -> bool:
    """Go on from the newest checkpoint; False when there is none. Every rank must call this.

    Raises:
        InputError: no checkpoint can be read, or it does not fit this training.
    """
    directory = training.directory
    state = load_checkpoint(directory) if ranks.rank() == 0 else None
    ranks.wait_for_all()
    if ranks.rank() > 0 and (directory / NEWEST).exists():
        state = read_verified(directory / NEWEST)
    if state is None:
        return False
    try:
        restore(training, state)
    except (RuntimeError, ValueError) as error:  # of load_state_dict: they name the tensors
        reason = " ".join(str(error).split())[:500]
        raise InputError(f"{directory / NEWEST} does not fit this model and its settings: {reason}") from error
    place = f"epoch {training.epoch}" + (f" after {training.batch} batches" if training.batch else "")
    logging.info(f"The training was resumed using {directory / NEWEST}: {place}")
    return True


def restore(training: Training, state: dict[str, Any]) -> None:
    """Load what `capture` returned.

    Raises:
        ValueError, RuntimeError: a key or a tensor is missing, unknown or of another shape.
    """
    _check_keys(state, KEYS, "keys")
    if len(state["parts"]) != (ranks.size() if training.sharded else 0):
        written, now = len(state["parts"]) or "no", ranks.size() if training.sharded else "none"
        raise ValueError(f"fsdp split it into {written} parts, this training has {now}: start it as it was begun")
    if training.sharded:
        own = read_verified(training.directory / state["parts"][ranks.rank()])
        state = {**state, **joined(training, own)}
    if (state["batch"] or state["gradients"]) and state["accum_grad"] != training.options.accum_grad:
        raise ValueError(f"accum_grad was {state['accum_grad']} when it was written")
    training.model.load_state_dict(state["model"])
    _load_each(training.optimizers, state["optimizers"], "optimizers")
    _load_each(training.schedulers, state["schedulers"], "schedulers")
    _load_each([training.scaler], [state["scaler"]], "scaler (use_amp)")
    load_reporter(training.reporter, state["reporter"])
    _load_gradients(training.model, state["gradients"])
    for name in ("epoch", "batch", "batches", "updates", "curve"):
        setattr(training, name, state[name])
    training.loaded_statistics = state["statistics"]
    training.saved = (training.epoch, training.batch)
    if training.batch:
        training.rng = _rng_of_rank(state["rng"])


def _check_keys(found: Iterable[str], wanted: Iterable[str], what: str) -> None:
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unknown:
        raise ValueError(f"{what}: missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}")


def _load_each(objects: Sequence[Any], states: Sequence[Any], what: str) -> None:
    """Load states one by one; where there is no object there must be no state."""
    if [o is None for o in objects] != [s is None for s in states]:
        raise ValueError(f"{what}: the checkpoint has others than the settings ask for")
    for obj, state in zip(objects, states, strict=True):
        if obj is not None:
            obj.load_state_dict(state)


def _load_gradients(model: torch.nn.Module, gradients: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    _check_keys(set(gradients) - set(parameters), (), "gradients")
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.to(parameters[name].device)


def _rng_of_rank(states: list[dict[str, Any]]) -> dict[str, Any] | None:
    if len(states) == ranks.size():
        return states[ranks.rank()]
    logging.warning(f"the checkpoint is of {len(states)} processes, now there are {ranks.size()}: other random numbers")
    return None
