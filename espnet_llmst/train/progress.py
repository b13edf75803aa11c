"""How far a training is: ESPnet's lines in the log; on a terminal a bar with loss, target tokens/s and time left."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import humanfriendly
from espnet2.train.reporter import aggregate
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from espnet_llmst.train import ranks
from espnet_llmst.train.state import Training

RECENT = 20  # batches whose mean the bar shows


class Clock:
    """Time left of a phase, from the batches that this process has trained on."""

    def __init__(self) -> None:
        self.started, self.trained = time.perf_counter(), 0

    def left(self, training: Training) -> str:
        """In words; empty when the number of batches is unknown."""
        if training.batches is None or not self.trained:
            return ""
        ahead = (training.options.max_epoch - training.epoch + 1) * training.batches - training.batch
        return humanfriendly.format_timespan((time.perf_counter() - self.started) / self.trained * ahead)


@contextmanager
def progress_bar(training: Training) -> Iterator[tqdm]:
    """The bar of one epoch; it shows nothing when stderr is no terminal, nor on other ranks than 0."""
    hidden = ranks.rank() > 0 or not sys.stderr.isatty()
    epoch = f"epoch {training.epoch}/{training.options.max_epoch}"
    with tqdm(total=training.batches, initial=training.batch, desc=epoch, unit="batch", disable=hidden) as bar:
        if hidden:
            yield bar
            return
        with logging_redirect_tqdm():
            yield bar


def advance(bar: tqdm, training: Training) -> None:
    """One batch more."""
    bar.update()
    if not bar.disable:
        stats = training.statistics.stats
        speed = aggregate(stats["tokens_per_second"][-RECENT:]) if "tokens_per_second" in stats else 0.0
        bar.set_postfix_str(f"loss={aggregate(stats['loss'][-RECENT:]):.3f}, {speed:.0f} tokens/s", refresh=False)


def log_interval(training: Training) -> int:
    """Batches between two lines of the log."""
    if training.options.log_interval is not None:
        return training.options.log_interval
    return 100 if training.batches is None else max(training.batches // 20, 10)


def log_batches(training: Training, clock: Clock, writer, interval: int) -> None:
    """Report the means over the last ``interval`` batches: log, curve, tensorboard, wandb."""
    statistics = training.statistics
    left = clock.left(training)
    logging.info(statistics.log_message(-interval) + (f", time left: {left}" if left else ""))
    rates = statistics.stats.get("optim0_lr0")
    loss = float(aggregate(statistics.stats["loss"][-interval:]))
    training.curve.append([statistics.total_count, loss, float(aggregate(rates[-interval:])) if rates else 0.0])
    if writer is not None:
        statistics.tensorboard_add_scalar(writer, -interval)
    if training.options.use_wandb:
        statistics.wandb_log(-interval)
