"""Decodes a formatted data directory with a trained phase."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.search.output import merge_jobs, write_info, write_results
from espnet_llmst.train.mixture import parse_direction


def parse(argv: Sequence[str] | None):
    """Options of the command."""
    parser = get_parser("llmst_inference", __doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--merge", action="store_true", help="Only join the results of finished jobs")
    parser.add_argument("--train_config", type=Path, help="config.yaml of the phase")
    parser.add_argument("--model_file", type=Path, help="Checkpoint of the phase")
    parser.add_argument("--data_dir", type=Path, help="Formatted set (dump/raw/<set>)")
    parser.add_argument("--task", default="st", choices=["asr", "st", "smt", "srt"])
    parser.add_argument("--direction", help="Source and target language, e.g. fr-en")
    parser.add_argument("--job", type=int, default=1, help="Number of this job")
    parser.add_argument("--num_jobs", type=int, default=1)
    parser.add_argument("--ngpu", type=int, default=0)
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="Speech per batch, padding included")
    parser.add_argument("--shuffle_audio", type=int, metavar="SEED", help="Control: another utterance's audio")
    parser.add_argument("--beam_size", type=int, default=5)
    parser.add_argument("--nbest", type=int, default=1)
    parser.add_argument("--length_penalty", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--min_new_tokens", type=int, default=0)
    parser.add_argument("--no_repeat_ngram_size", type=int, default=0)
    return parser.parse_args(argv)


def decode(args) -> None:
    """Decode this job's share into ``<output_dir>/job.<n>``."""
    # Late: --help and --merge need no model.
    from espnet_llmst.inference import Speech2Text, decode_dir, split_transcripts

    for name in ("train_config", "model_file", "data_dir", "direction"):
        if getattr(args, name) is None:
            raise InputError(f"--{name} is required for decoding")
    if not 1 <= args.job <= args.num_jobs:
        raise InputError(f"--job {args.job}: must be from 1 to --num_jobs {args.num_jobs}")
    src, tgt = parse_direction(args.direction)
    if not (args.data_dir / "wav.scp").is_file():
        raise InputError(f"{args.data_dir}/wav.scp is missing: give a formatted set (stage 3)")
    started = time.monotonic()
    options = (
        "beam_size",
        "nbest",
        "length_penalty",
        "max_new_tokens",
        "min_new_tokens",
        "no_repeat_ngram_size",
    )
    speech2text = Speech2Text(
        args.train_config,
        args.model_file,
        "cuda" if args.ngpu else "cpu",
        **{name: getattr(args, name) for name in options},
    )
    results, figures = decode_dir(
        speech2text,
        args.data_dir,
        args.task,
        src,
        tgt,
        batch_seconds=args.batch_seconds,
        job=args.job,
        num_jobs=args.num_jobs,
        shuffle_audio=args.shuffle_audio,
    )
    job_dir = args.output_dir / f"job.{args.job}"
    transcripts, figures["malformed"] = None, 0
    if args.task == "srt":
        template = speech2text.preprocess.template
        results, transcripts, figures["malformed"] = split_transcripts(results, template, src, tgt)
    write_results(job_dir, results, transcripts)
    info = {"command": shlex.join(["llmst_inference", *sys.argv[1:]]), "set": args.data_dir.name, **figures}
    info |= {name: getattr(args, name) for name in ("task", "direction", "shuffle_audio", *options)}
    write_info(job_dir, info | {"model_file": str(args.model_file), "wall_seconds": time.monotonic() - started})


def main(argv: Sequence[str] | None = None) -> None:
    """Decode one job, or join all."""
    args = parse(argv)
    if args.merge:
        merge_jobs(args.output_dir, args.num_jobs)
    else:
        decode(args)


if __name__ == "__main__":
    sys.exit(run(main))
