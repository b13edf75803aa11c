"""LLMSTTrainer: ESPnet's trainer with checkpoints within the epoch, from which a killed training goes on bit for bit.

Options, files and lines of the log are ESPnet's, and so are the numbers. ESPnet writes checkpoints in the middle of one
long ``run`` and calls one long ``train_one_epoch``, neither of which lets others in; these two are written anew here.
Validation is inherited. The order of what happens makes every kill harmless:

1. training: a checkpoint each ``save_interval_iters`` updates, at SIGTERM, and after the last batch;
2. validation, then ``<n>epoch.pth`` and its links: done again when killed before 3;
3. a checkpoint that counts the epoch as finished.
"""

import argparse
import dataclasses
import errno
import logging
import time

import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler, AbsEpochStepScheduler, AbsValEpochStepScheduler
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import int_or_none, str2bool

from espnet_llmst.cli import InputError
from espnet_llmst.espnet_model import ESPnetLLMSTModel, refuse_random
from espnet_llmst.train import ranks
from espnet_llmst.train.batches import count_batches, leave_on, remaining_batches, together
from espnet_llmst.train.checkpoint import NEWEST, PREVIOUS
from espnet_llmst.train.fsdp import full_state, keep_all_layers, shard
from espnet_llmst.train.out_of_memory import memory_advice, noted
from espnet_llmst.train.progress import Clock, advance, log_batches, log_interval, progress_bar
from espnet_llmst.train.results import average, report_epoch, write_model
from espnet_llmst.train.sigterm import EXIT_STATUS, Sigterm, note_sigterm
from espnet_llmst.train.state import Training, next_epoch, resume, save, start_epoch
from espnet_llmst.train.step import add_gradients, register_rates, until_update, update
from espnet_llmst.train.valid_bleu import check_valid_bleu, register_bleu

UNSUPPORTED = {
    "use_adapter": "write lora: into encoder_conf or decoder_conf",
    "sharded_ddp": "its package fairscale is no longer maintained",
    "no_forward_run": "nothing would be trained",
    "create_graph_in_tensorboard": "torch cannot trace language models",
}


@dataclasses.dataclass
class LLMSTTrainerOptions(TrainerOptions):
    """ESPnet's options of training, and ours."""

    save_interval_iters: int
    save_dtype: str | None
    batch_type: str
    batch_size: int
    batch_bins: int
    batch_frames: int | None
    valid_batch_type: str | None
    valid_batch_size: int | None
    valid_batch_bins: int | None
    fsdp: bool
    valid_bleu: dict


class LLMSTTrainer(Trainer):
    """Trains a phase; see the file's head."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Options beside ESPnet's own."""
        parser.add_argument(
            "--save_interval_iters",
            type=int,
            default=1000,
            help="Updates between two checkpoints within an epoch, from which a killed training goes on; 0: none",
        )
        parser.add_argument(
            "--save_dtype",
            choices=[None, "bfloat16"],
            help="Of the model files (<n>epoch.pth); bfloat16 halves them, and what computes in bfloat16 loses nothing "
            "but the next phase's or an average's last digits. checkpoint.pth stays exact",
        )
        parser.add_argument("--batch_frames", type=int_or_none, help="Encoder frames of a batch (batch_type tokens)")
        parser.add_argument(
            "--fsdp",
            type=str2bool,
            default=False,
            help="Split parameters, gradients and optimizer state over the processes (for full fine-tuning)",
        )
        parser.add_argument(
            "--valid_bleu",
            action=NestedDictAction,
            default={},
            help="Decode so many validation utterances after each epoch and report valid.bleu, e.g. utterances=50; "
            "other keys are options of the search, e.g. beam_size=1",
        )

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> LLMSTTrainerOptions:
        """The options of ``run``.

        Raises:
            InputError: an option that this trainer does not have.
        """
        for name, remedy in UNSUPPORTED.items():
            if getattr(args, name):
                raise InputError(f"{name}: not supported here ({remedy})")
        if args.save_dtype not in (None, "bfloat16"):  # ESPnet does not check what stands in YAML
            raise InputError(f"save_dtype: '{args.save_dtype}' must be bfloat16 or null")
        if args.save_interval_iters < 0 or args.accum_grad < 1:
            raise InputError("save_interval_iters must be 0 or more, accum_grad 1 or more")
        if args.keep_nbest_models in (0, [0]):
            raise InputError("keep_nbest_models: 0 would leave no model to decode with; give 1 or more")
        for name in ("use_amp", "grad_noise", "ddp_comm_hook"):
            if args.fsdp and getattr(args, name):
                raise InputError(f"{name}: not with fsdp (model_conf: {{autocast: bfloat16}} is mixed precision)")
        return build_dataclass(LLMSTTrainerOptions, args)

    @classmethod
    def run(
        cls,
        model: torch.nn.Module,
        optimizers: list[torch.optim.Optimizer],
        schedulers: list,
        train_iter_factory: AbsIterFactory,
        valid_iter_factory: AbsIterFactory,
        plot_attention_iter_factory: AbsIterFactory | None,
        trainer_options: LLMSTTrainerOptions,
        distributed_option: DistributedOption,
    ) -> None:
        """Train to ``max_epoch`` or until ``patience`` ends, from the newest checkpoint on with ``resume``.

        Raises:
            InputError: a checkpoint that does not fit, a full disk, an epoch without a finite gradient, a batch for
                which the GPU's memory does not suffice.
            SystemExit: 143 after SIGTERM, when all is saved.
        """
        if plot_attention_iter_factory is not None:
            raise InputError("num_att_plot: attention of foundation models cannot be plotted; set it to 0")
        if isinstance(model, ESPnetLLMSTModel):  # ESPnet's own ASR models are trained by this, too
            refuse_random(model)
        scaler = torch.amp.GradScaler("cuda") if trainer_options.use_amp else None
        training = Training(model, optimizers, schedulers, scaler, trainer_options, distributed_option)
        if training.sharded:
            shard(model, optimizers, training.device)
        check_valid_bleu(training, valid_iter_factory)
        begin(training)
        training.parallel = parallelise(model, trainer_options, distributed_option)
        factories = {"train": train_iter_factory, "valid": valid_iter_factory}
        writers, clock = tensorboard_writers(training), Clock()
        try:
            with note_sigterm() as sigterm:
                while not is_finished(training):
                    cls.run_epoch(training, factories, writers, clock, sigterm)
                    leave_if_asked(training, sigterm)
            if ranks.rank() == 0:
                average(training)
        except torch.OutOfMemoryError as error:
            raise InputError(memory_advice(training)) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"{training.directory}: {error.strerror}; the last checkpoint is whole: make room, then run the same "
                "command again"
            ) from error

    @classmethod
    def run_epoch(
        cls, training: Training, factories: dict[str, AbsIterFactory], writers: dict, clock: Clock, sigterm: Sigterm
    ) -> None:
        """What is left of one epoch: training, validation, report, files, checkpoint."""
        options, epoch = training.options, training.epoch
        left = clock.left(training)
        logging.info(
            f"{epoch}/{options.max_epoch}epoch started" + (f". Estimated time to finish: {left}" if left else "")
        )
        set_all_random_seed(options.seed + epoch)
        loader = factories["train"].build_iter(epoch)
        start_epoch(training, count_batches(loader))
        train_epoch(training, loader, writers.get("train"), clock, sigterm)
        training.reporter.finish_epoch(training.statistics)
        with training.reporter.observe("valid") as reporter:
            cls.validate_one_epoch(
                model=training.parallel,
                iterator=noted(training, leave_on(sigterm, factories["valid"].build_iter(epoch)), "valid"),
                reporter=reporter,
                options=options,
                distributed_option=training.distributed_option,
            )
            if options.valid_bleu:
                register_bleu(training, factories["valid"], reporter)
        step_epoch_schedulers(training)
        state = full_state(training.model) if training.sharded else training.model.state_dict()
        if ranks.rank() == 0:
            report_epoch(training, writers)
            write_model(training, state)
        next_epoch(training)
        save(training)


def begin(training: Training) -> None:
    """Load the newest checkpoint, or make sure that a new training spoils no other.

    Raises:
        InputError: without ``resume``, and another training's checkpoints are there.
    """
    if training.options.resume:
        if resume(training) and training.epoch > training.options.max_epoch:
            logging.warning(f"The training has already reached at max_epoch: {training.options.max_epoch}")
        return
    old = [name for name in (NEWEST, PREVIOUS) if (training.directory / name).exists()]
    if old:
        raise InputError(
            f"{training.directory / old[0]} is of an earlier training: go on with it by --resume true, or remove it"
        )


def parallelise(
    model: torch.nn.Module, options: TrainerOptions, distributed_option: DistributedOption
) -> torch.nn.Module:
    """The model as it is called: under DDP when there are several processes that each have the whole of it.

    Raises:
        InputError: several GPUs in one process.
    """
    if not distributed_option.distributed:
        if options.ngpu > 1:
            raise InputError("ngpu: several GPUs need a process each: --multiprocessing_distributed true, or torchrun")
        return model
    if options.fsdp:
        return model
    keep_all_layers(model)
    device = [torch.cuda.current_device()] if options.ngpu > 0 else None
    parallel = torch.nn.parallel.DistributedDataParallel(
        model,
        device_ids=device,
        output_device=device and device[0],
        find_unused_parameters=options.unused_parameters,
        gradient_as_bucket_view=options.gradient_as_bucket_view,
    )
    if options.ddp_comm_hook is not None:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        parallel.register_comm_hook(None, getattr(default_hooks, options.ddp_comm_hook))
    return parallel


def tensorboard_writers(training: Training) -> dict:
    """Writers of train and valid, on rank 0 and when asked for."""
    if not training.options.use_tensorboard or ranks.rank() > 0:
        return {}
    from torch.utils.tensorboard import SummaryWriter

    return {part: SummaryWriter(str(training.directory / "tensorboard" / part)) for part in ("train", "valid")}


def is_finished(training: Training) -> bool:
    """Whether the last epoch is done, or the value of ``patience`` stopped improving."""
    options, reporter = training.options, training.reporter
    if training.epoch > options.max_epoch:
        logging.info(f"The training was finished at {options.max_epoch} epochs")
        return True
    if options.patience is None or training.epoch == 1 or training.batch:
        return False
    return reporter.check_early_stopping(options.patience, *options.early_stopping_criterion)


def train_epoch(training: Training, loader, writer, clock: Clock, sigterm: Sigterm) -> None:
    """The batches of the epoch that are left; a checkpoint at its end and at intervals, only after whole updates.

    Batches after the last whole window of ``accum_grad`` keep their gradients for the next epoch's first update, as in
    ESPnet.

    Raises:
        InputError: no update had a finite gradient.
        SystemExit: 143 after SIGTERM.
    """
    accum_grad, interval = training.options.accum_grad, log_interval(training)
    if training.batches is not None and training.batches < accum_grad:
        raise InputError(f"accum_grad {accum_grad} is more than the {training.batches} batches of an epoch: no update")
    training.parallel.train()
    batches = noted(training, together(remaining_batches(loader, training.batch, training.rng), training.device))
    training.rng = None
    started, tokens = time.perf_counter(), 0.0
    with progress_bar(training) as bar:
        for utt_ids, batch in training.statistics.measure_iter_time(batches, "iter_time"):
            with until_update(training):
                tokens += add_gradients(training, utt_ids, batch)
            training.batch += 1
            clock.trained += 1
            whole = training.batch % accum_grad == 0
            if whole:
                update(training)
                register_rates(training, tokens, started)
                started, tokens = time.perf_counter(), 0.0
            training.statistics.next()
            advance(bar, training)
            if training.batch % interval == 0:
                log_batches(training, clock, writer, interval)
            if whole:
                save_if_due(training)
                leave_if_asked(training, sigterm)
    if training.updates == 0:
        raise InputError(
            f"{training.directory}: no update of epoch {training.epoch} had a finite gradient; lower the learning rate "
            "(optim_conf: lr), train in float32 (model_conf: {autocast: float32}), or look for bad data"
        )
    save(training)
    leave_if_asked(training, sigterm)


def save_if_due(training: Training) -> None:
    """A checkpoint each ``save_interval_iters`` updates of an epoch."""
    interval = training.options.save_interval_iters
    if interval and training.batch // training.options.accum_grad % interval == 0:
        save(training)


def leave_if_asked(training: Training, sigterm: Sigterm) -> None:
    """After SIGTERM to any rank: save and end on all, with status 143."""
    if ranks.any_rank(sigterm.came, training.device):
        save(training)
        logging.warning(f"SIGTERM: saved in {training.directory}; the same command goes on from here")
        raise SystemExit(EXIT_STATUS)


def step_epoch_schedulers(training: Training) -> None:
    """Schedules that change by epoch.

    ESPnet takes every LambdaLR for one of them, also those that change by update; they must not step twice.
    """
    for scheduler in training.schedulers:
        if isinstance(scheduler, AbsBatchStepScheduler):
            continue
        if isinstance(scheduler, AbsValEpochStepScheduler):
            scheduler.step(training.reporter.get_value(*training.options.val_scheduler_criterion))
        elif isinstance(scheduler, AbsEpochStepScheduler):
            scheduler.step()
