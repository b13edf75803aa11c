"""LLMSTTask: LLM-based speech translation as an ESPnet task."""

import argparse
import importlib.util
import itertools
import logging
import multiprocessing
import os
import sys
from pathlib import Path

from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.postencoder.abs_postencoder import AbsPostEncoder
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.samplers.build_batch_sampler import build_batch_sampler
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
from espnet2.train.class_choices import ClassChoices
from espnet2.utils.get_default_kwargs import get_default_kwargs
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str2bool, str_or_none
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

from espnet_llmst.cli import InputError, run
from espnet_llmst.connector.conv_linear import ConvLinearConnector
from espnet_llmst.connector.mlp import MLPConnector
from espnet_llmst.connector.qformer import QFormerConnector
from espnet_llmst.connector.subsampler_transformer import SubsamplerTransformerConnector
from espnet_llmst.datadir.kaldi import atomic_write
from espnet_llmst.decoder.causal_lm import CausalLMDecoder
from espnet_llmst.decoder.seq2seq_lm import Seq2SeqLMDecoder
from espnet_llmst.encoder.espnet_asr import ESPnetASREncoder
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.encoder.units import UnitEncoder
from espnet_llmst.espnet_model import ESPnetLLMSTModel, refuse_random
from espnet_llmst.lora import set_trainable
from espnet_llmst.train import ranks
from espnet_llmst.train.checkpoint import write_atomically
from espnet_llmst.train.collate import collate
from espnet_llmst.train.preprocessor import LLMSTPreprocessor
from espnet_llmst.train.schedulers import WarmupCosine, WarmupLinear
from espnet_llmst.train.token_batches import TOKENS, fill_batches, read_sizes
from espnet_llmst.train.trainer import LLMSTTrainer

encoder_choices = ClassChoices(
    "encoder",
    classes={"hugging_face": HuggingFaceEncoder, "espnet_asr": ESPnetASREncoder, "units": UnitEncoder},
    type_check=AbsEncoder,
    default="hugging_face",
    optional=True,
)
postencoder_choices = ClassChoices(
    "postencoder",
    classes={
        "conv_linear": ConvLinearConnector,
        "mlp": MLPConnector,
        "qformer": QFormerConnector,
        "subsampler_transformer": SubsamplerTransformerConnector,
    },
    type_check=AbsPostEncoder,
    default="mlp",
    optional=True,
)
decoder_choices = ClassChoices(
    "decoder",
    classes={"causal_lm": CausalLMDecoder, "seq2seq_lm": Seq2SeqLMDecoder},
    type_check=AbsDecoder,
    default="causal_lm",
)
OPTIONAL_PACKAGES = {"use_matplotlib": "matplotlib", "use_tensorboard": "tensorboard"}
SCHEDULERS = {"warmup_linear": WarmupLinear, "warmup_cosine": WarmupCosine}
abs_task.scheduler_classes.update(SCHEDULERS)  # read when the parser is built


class LLMSTTask(AbsTask):
    """Arguments, data and model of LLM-based speech translation; the rest is ESPnet's life cycle."""

    num_optimizers = 1
    trainer = LLMSTTrainer
    class_choices_list = [encoder_choices, postencoder_choices, decoder_choices]

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Arguments beside ESPnet's own; `trainable`, `mixture` and `init_from` are set in YAML."""
        group = parser.add_argument_group("LLM-based speech translation")
        group.add_argument("--prompt", type=str_or_none, help="Prompt template (YAML)")
        group.add_argument("--trainable", nargs="*", default=["postencoder"], help="Parts that are trained")
        group.add_argument("--mixture", default=[], help="Tasks and directions of the training data (YAML only)")
        group.add_argument(
            "--mix_ties",
            type=str2bool,
            default=False,
            help="Batches of sorted lengths take equally long examples of all tasks and directions, not of one after "
            "the other (YAML only: stage 5 reads it)",
        )
        group.add_argument("--init_from", type=str_or_none, help="'previous' phase or a checkpoint (run.sh)")
        conf = get_default_kwargs(ESPnetLLMSTModel)
        group.add_argument("--model_conf", action=NestedDictAction, default=conf, help="See ESPnetLLMSTModel")
        for choices in cls.class_choices_list:
            choices.add_arguments(group)
        # Attention plots know ESPnet's own attention only; the plots' packages are optional here.
        parser.set_defaults(num_att_plot=0, required=["output_dir", "prompt"])
        parser.set_defaults(**{option: has_package(name) for option, name in OPTIONAL_PACKAGES.items()})

    @classmethod
    def build_collate_fn(cls, args: argparse.Namespace, train: bool):
        """Right padding."""
        return collate

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> LLMSTPreprocessor:
        """Prompt rendering and tokenisation (validation has targets too)."""
        return build_preprocessor(args, train=True)

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names in ``--*_data_path_and_name_and_type``."""
        return ("speech", "task") if inference else ("speech", "task", "text")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """The transcript, for tasks whose prompt shows it."""
        return ("transcript",)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ESPnetLLMSTModel:
        """The joined model with exactly ``args.trainable`` receiving gradients."""
        decoder = decoder_choices.get_class(args.decoder)(**args.decoder_conf)
        encoder, postencoder = None, None
        if (args.encoder is None) != (args.postencoder is None):
            raise InputError("encoder and postencoder: give both, or null for both (a model that reads text only)")
        if args.encoder is not None:
            encoder = encoder_choices.get_class(args.encoder)(**args.encoder_conf)
            postencoder = postencoder_choices.get_class(args.postencoder)(
                input_size=encoder.output_size(), output_size=decoder.hidden_size, **args.postencoder_conf
            )
        model = ESPnetLLMSTModel(encoder, postencoder, decoder, **args.model_conf)
        set_trainable(model, args.trainable)
        model.placed_later = ranks.is_distributed() and args.fsdp
        return model

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """Training; a phase with nothing to train leaves its settings and what it starts from (zero-shot)."""
        check_settings(args)
        if args.trainable:
            check_packages(args)
            train = super().main_worker
            if multiprocessing.parent_process() is None:
                return train(args)
            sys.exit(run(lambda _: train(args)))  # the process of one GPU: bad input is one line here too
        model = cls.build_model(args)  # settings that fit no model are refused here
        for file in args.init_param or []:
            load_pretrained_model(file, model, args.ignore_init_mismatch, map_location="cpu")
        refuse_random(model)
        if os.environ.get("RANK", "0") != "0":
            return
        directory = Path(args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(directory / "config.yaml") as file:
            yaml_no_alias_safe_dump(vars(args), file, indent=4, sort_keys=False)
        for criterion in args.best_model_criterion:
            write_atomically(directory / f"{'.'.join(criterion[:2])}.best.pth", model.state_dict())

    @classmethod
    def build_sequence_iter_factory(cls, args: argparse.Namespace, iter_options, mode: str):
        """ESPnet's, and that of ``batch_type: tokens``; every rank takes its part of every batch."""
        if iter_options.batch_type != TOKENS:
            return super().build_sequence_iter_factory(args, iter_options, mode)
        size = ranks.size() if iter_options.distributed else 1
        batches = token_batches(args, iter_options.shape_files, iter_options.batch_bins, size)
        rows = [len(batch) for batch in batches]
        logging.info(f"[{mode}] {len(rows)} batches of {min(rows)} to {max(rows)} utterances")
        batches = [batch[ranks.rank() :: size] for batch in batches] if size > 1 else batches
        return SequenceIterFactory(
            dataset=cls.build_dataset(args, iter_options, set(itertools.chain(*batches))),
            batches=batches,
            seed=args.seed,
            num_iters_per_epoch=iter_options.num_iters_per_epoch,
            shuffle=iter_options.train,
            num_workers=args.num_workers,
            collate_fn=iter_options.collate_fn,
            pin_memory=args.ngpu > 0,
        )

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model):
        """ESPnet's optimizer over the trainable parameters; schedules learn how long the phase is."""
        if args.scheduler in SCHEDULERS and args.scheduler_conf.get("total_steps") is None:
            args.scheduler_conf["total_steps"] = updates_of_phase(args)
            logging.info(f"the schedule decays over {args.scheduler_conf['total_steps']} updates")
        elif args.scheduler in SCHEDULERS and args.scheduler_conf["total_steps"] < updates_of_phase(args):
            given = f"scheduler_conf.total_steps: {args.scheduler_conf['total_steps']}"
            logging.warning(f"{given}: the rate is 0 from there on to update {updates_of_phase(args)}, the last")
        parameters = [p for p in model.parameters() if p.requires_grad]
        return [abs_task.optim_classes[args.optim](parameters, **args.optim_conf)]


def has_package(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def check_packages(args: argparse.Namespace) -> None:
    """Refuse an option whose package is missing before a day of training is lost over it."""
    for option, name in {**OPTIONAL_PACKAGES, "use_wandb": "wandb"}.items():
        if getattr(args, option) and not has_package(name):
            raise InputError(f"{option}: the package {name} is not installed (pip install {name}); or set it to false")


def check_settings(args: argparse.Namespace) -> None:
    """Refuse options of ESPnet that would do something else here than they say."""
    for file in args.init_param or []:
        if any(file.split(":")[1:3]):
            raise InputError(
                f"init_param: {file}: parts cannot be renamed, their weights would be missing from every checkpoint; "
                "give a file with the whole model's names"
            )
    for option, classes in (("optim", abs_task.optim_classes), ("scheduler", abs_task.scheduler_classes)):
        name = getattr(args, option)
        if name is not None and name not in classes:  # ESPnet checks what stands in the command only
            raise InputError(f"{option}: '{name}' is none of {', '.join(classes)}")
    if args.exclude_weight_decay:
        raise InputError("exclude_weight_decay: not supported here; remove it")
    types = {args.batch_type, args.valid_batch_type or args.batch_type}
    if TOKENS in types and len(types) > 1:
        raise InputError(f"batch_type and valid_batch_type: {TOKENS} must stand in both or in neither")


def build_preprocessor(args: argparse.Namespace, train: bool) -> LLMSTPreprocessor:
    """The preprocessor that belongs to a phase's language model and prompt."""
    conf = args.decoder_conf
    return LLMSTPreprocessor(conf["model"], args.prompt, train, conf.get("added_tokens") or ())


def token_batches(args: argparse.Namespace, shape_files: list[str], bins: int, size: int) -> list[tuple[str, ...]]:
    """The batches of ``batch_type: tokens``, for so many processes.

    Raises:
        InputError: an option that would not let the limits hold, or another kind of shape file.
    """
    if args.shuffle_within_batch:
        raise InputError("shuffle_within_batch: mixes lengths, so batch_bins would not hold; remove it")
    batches = fill_batches(read_sizes(shape_files[0]), bins, args.batch_frames, size)
    return batches[:-1] if args.drop_last_iter and len(batches) > 1 else batches


def training_batches(args: argparse.Namespace) -> list[tuple[str, ...]]:
    """The training batches of an epoch, as `build_sequence_iter_factory` makes them."""
    size = ranks.size() if args.distributed else 1
    if args.batch_type == TOKENS:
        return token_batches(args, args.train_shape_file, args.batch_bins, size)
    sampler = build_batch_sampler(
        type=args.batch_type,
        shape_files=args.train_shape_file,
        batch_size=args.batch_size,
        batch_bins=args.batch_bins,
        fold_lengths=args.fold_length,
        sort_in_batch=args.sort_in_batch,
        sort_batch=args.sort_batch,
        drop_last=args.drop_last_iter,
        # As in ESPnet's build_sequence_iter_factory: every rank gets a part of every batch.
        min_batch_size=size if args.distributed else args.min_batch_size,
    )
    return list(sampler)


def updates_of_phase(args: argparse.Namespace) -> int:
    """Optimizer updates of ``args.max_epoch`` epochs."""
    batches = args.num_iters_per_epoch or len(training_batches(args))
    return max(1, args.max_epoch * (batches // args.accum_grad))  # ESPnet counts accumulation per epoch
