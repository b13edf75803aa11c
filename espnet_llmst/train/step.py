"""The two halves of a training step: gradients of one batch, and the update after ``accum_grad`` of them."""

import contextlib
import logging
import time

import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from espnet2.torch_utils.add_gradient_noise import add_gradient_noise
from espnet2.torch_utils.device_funcs import to_device
from espnet2.torch_utils.recursive_op import recursive_average
from torch.distributed.tensor import DTensor

from espnet_llmst.train import ranks
from espnet_llmst.train.state import Training


def until_update(training: Training) -> contextlib.AbstractContextManager:
    """Around `add_gradients`: DDP adds up the gradients of all ranks once in a window of ``accum_grad`` batches.

    Also at an epoch's end, so that what is left over for the next window is the same on all ranks and in a checkpoint.
    FSDP does it for every batch: whole gradients of a large model are what it is there to avoid.
    """
    parallel, done = training.parallel, training.batch + 1
    whole = done % training.options.accum_grad == 0 or training.batches in (None, done)
    if whole or not isinstance(parallel, torch.nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return parallel.no_sync()


def add_gradients(training: Training, utt_ids: list[str], batch: dict[str, torch.Tensor]) -> float:
    """Forward and backward of one batch; its statistics are registered. Returns its target tokens, over all ranks.

    Every batch of a window weighs the same, as in ESPnet; within a batch every token does, on whatever rank.
    """
    statistics = training.statistics
    batch = to_device({**batch, "utt_id": utt_ids}, training.device)
    with _autocast(training):
        with statistics.measure_time("forward_time"):
            loss, stats, weight = training.parallel(**batch)
        stats = {name: value for name, value in stats.items() if value is not None}
        if ranks.is_distributed():
            loss = (loss * weight.type(loss.dtype)).sum()
            stats, weight = recursive_average(stats, weight, True)
            loss = loss / weight * ranks.size()  # DDP and FSDP divide gradients by the number of ranks
        loss = loss / training.options.accum_grad
    statistics.register(stats, weight)
    with statistics.measure_time("backward_time"):
        (training.scaler.scale(loss) if training.scaler else loss).backward()
    return float(weight.sum())


def update(training: Training) -> None:
    """Clip, step, schedule; an update whose gradient is not finite is left out, with a warning."""
    options, scaler, statistics = training.options, training.scaler, training.statistics
    for optimizer in training.optimizers:
        if scaler:
            scaler.unscale_(optimizer)
    if options.grad_noise:
        add_gradient_noise(training.parallel, statistics.get_total_count())
    norm = torch.nn.utils.clip_grad_norm_(
        training.parallel.parameters(), max_norm=options.grad_clip, norm_type=options.grad_clip_type
    )
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if torch.isfinite(norm):
        clipped = 100.0 if norm > options.grad_clip else 0.0
        scale = scaler.get_scale() if scaler else 1.0
        statistics.register({"grad_norm": norm, "clip": clipped, "loss_scale": scale})
        with statistics.measure_time("optim_step_time"):
            _step(training, schedule=True)
        training.updates += 1
    else:
        logging.warning(f"The grad norm is {norm}. Skipping updating the model.")
        if scaler:
            _step(training, schedule=False)  # the scaler leaves the optimizer alone and lowers its scale
    for optimizer in training.optimizers:
        optimizer.zero_grad()


def _step(training: Training, schedule: bool) -> None:
    for optimizer, scheduler in zip(training.optimizers, training.schedulers, strict=True):
        if training.scaler:
            training.scaler.step(optimizer)
        else:
            optimizer.step()
        if schedule and isinstance(scheduler, AbsBatchStepScheduler):
            scheduler.step()
    if training.scaler:
        training.scaler.update()


def register_rates(training: Training, tokens: float, started: float) -> None:
    """Learning rates, and the speed of the update that began at ``started`` (perf_counter)."""
    seconds = time.perf_counter() - started
    rates = {
        f"optim{i}_lr{j}": group["lr"]
        for i, optimizer in enumerate(training.optimizers)
        for j, group in enumerate(optimizer.param_groups)
    }
    training.statistics.register({**rates, "train_time": seconds})
    # Weighted by time, so that a mean of speeds is all tokens by all time.
    training.statistics.register({"tokens_per_second": tokens / seconds}, seconds)


def _autocast(training: Training):
    """ESPnet's ``use_amp``; the model has its own autocast (``model_conf.autocast``), which is preferred."""
    if training.scaler is None:
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float16
    return torch.autocast(training.device, dtype=dtype, enabled=training.device == "cuda")
