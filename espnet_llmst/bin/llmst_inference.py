"""Decodes formatted data directories with a trained phase."""

import hashlib
import json
import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from espnet_llmst.cli import InputError, get_parser, read_yaml, run
from espnet_llmst.datadir.kaldi import speech_table, text_files
from espnet_llmst.foundation import models_in
from espnet_llmst.provenance import inputs_of
from espnet_llmst.search.options import SearchOptions
from espnet_llmst.search.output import merge_jobs, write_info, write_results
from espnet_llmst.search.shard import Shard
from espnet_llmst.train.mixture import parse_direction

SEARCH = [field.name for field in fields(SearchOptions)]


class Work(NamedTuple):
    """One set to decode, with the control's seed or None."""

    data_dir: Path
    direction: str
    output_dir: Path
    shuffle_audio: int | None


def parse(argv: Sequence[str] | None):
    """Options of the command."""
    parser = get_parser("llmst_inference", __doc__)
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--merge", action="store_true", help="Only join the results of finished jobs")
    parser.add_argument(
        "--list_keys", action="store_true", help="Only print the lines of --decode_list behind what decides each result"
    )
    parser.add_argument("--train_config", type=Path, help="config.yaml of the phase")
    parser.add_argument("--model_file", type=Path, help="Checkpoint of the phase")
    parser.add_argument("--data_dir", type=Path, help="Formatted set (dump/raw/<set>)")
    parser.add_argument("--direction", help="Source and target language, e.g. fr-en")
    parser.add_argument(
        "--decode_list", type=Path, help="Several sets instead: '<data_dir> <direction> <output_dir> [<control seed>]'"
    )
    parser.add_argument("--task", default="st", choices=["asr", "st", "smt", "srt", "mt"])
    parser.add_argument("--asr_model", help="Cascade: transcripts for smt or mt come from this recogniser")
    parser.add_argument("--job", type=int, default=1, help="Number of this job")
    parser.add_argument("--num_jobs", type=int, default=1)
    parser.add_argument("--ngpu", type=int, default=0)
    parser.add_argument("--batch_seconds", type=float, default=60.0, help="Speech per batch, padding included")
    parser.add_argument("--shuffle_audio", type=int, metavar="SEED", help="Control: another utterance's audio")
    parser.add_argument("--rows", type=int, default=16, help="Utterances searched at a time")
    parser.add_argument("--kv_memory", type=float, metavar="GB", help="Limit of the language model's keys and values")
    parser.add_argument("--cuda_graphs", default=False, type=true_or_false, help="Capture steps on a GPU")
    add_search_options(parser)
    return parser.parse_args(argv)


def true_or_false(text: str) -> bool:
    """An option's value; anything but these two words is refused."""
    if text.lower() not in ("true", "false"):
        raise ArgumentTypeError(f"'{text}' must be true or false")
    return text.lower() == "true"


def add_search_options(parser) -> None:
    """One option for each field of `SearchOptions`."""
    for field in fields(SearchOptions):
        if field.name == "early_stopping":
            kind = {"type": lambda text: {"true": True, "false": False}.get(text.lower(), text)}
        elif field.type is bool:
            kind = {"type": true_or_false}
        else:
            kind = {"type": float if field.type == float | None else field.type}
        parser.add_argument(f"--{field.name}", default=field.default, **kind)


def work_of(args: Namespace) -> list[Work]:
    """The sets to decode, each checked before a model is loaded."""
    if args.decode_list:
        rows = [line.split() for line in args.decode_list.read_text(encoding="utf-8").splitlines()]
        works = [Work(Path(row[0]), row[1], Path(row[2]), int(row[3]) if row[3:] else None) for row in rows]
    else:
        for name in ("data_dir", "direction", "output_dir"):
            if getattr(args, name) is None:
                raise InputError(f"--{name} is required for decoding")
        works = [Work(args.data_dir, args.direction, args.output_dir, args.shuffle_audio)]
    for work in works:
        parse_direction(work.direction)
        speech_table(work.data_dir)
    return works


def model_inputs(args: Namespace) -> dict[str, str]:
    """Hashes of what decides every set's result: checkpoint, configurations, prompt, models below the recipe."""
    trained = read_yaml(args.train_config)
    paths = [args.model_file, args.train_config, trained.get("config"), trained.get("prompt"), args.config]
    return inputs_of([*paths, *models_in(trained), args.asr_model])


def settings_of(args: Namespace, work: Work, inputs: dict[str, str]) -> dict:
    """What decides a decode's result: kept in its ``decode.json``."""
    settings = {name: getattr(args, name) for name in ("task", "asr_model", *SEARCH)}
    settings |= {"direction": work.direction, "shuffle_audio": work.shuffle_audio, "model_file": str(args.model_file)}
    read = [speech_table(work.data_dir)]
    if args.task in ("smt", "mt") and not args.asr_model:
        read.append(text_files(work.data_dir).get(parse_direction(work.direction)[0]))
    return settings | {"output_dir": str(work.output_dir), "inputs": inputs | inputs_of(read)}


def list_keys(args: Namespace) -> None:
    """Print each line of the list behind a hash of its settings."""
    inputs, lines = model_inputs(args), args.decode_list.read_text(encoding="utf-8").splitlines()
    for work, line in zip(work_of(args), lines, strict=True):
        settings = json.dumps(settings_of(args, work, inputs), sort_keys=True)
        print(hashlib.sha256(settings.encode()).hexdigest(), line)


def decode(args: Namespace) -> None:
    """Decode this job's share of each set into ``<output_dir>/job.<n>``."""
    # Late: --help and --merge need no model.
    from espnet_llmst.asr import load_transcriber
    from espnet_llmst.inference import Speech2Text

    for name in ("train_config", "model_file"):
        if getattr(args, name) is None:
            raise InputError(f"--{name} is required for decoding")
    if not 1 <= args.job <= args.num_jobs:
        raise InputError(f"--job {args.job}: must be from 1 to --num_jobs {args.num_jobs}")
    works, device = work_of(args), "cuda" if args.ngpu else "cpu"
    search = {name: getattr(args, name) for name in SEARCH}
    inputs, machine = model_inputs(args), (device, args.rows, args.kv_memory, args.cuda_graphs)
    speech2text = Speech2Text(args.train_config, args.model_file, *machine, **search)
    transcriber = load_transcriber(args.asr_model, device) if args.asr_model else None
    for work in works:
        decode_set(args, work, settings_of(args, work, inputs), speech2text, transcriber)


def decode_set(args: Namespace, work: Work, settings: dict, speech2text, transcriber) -> None:
    """Decode this job's share of one set, from where a killed run left it, and write it."""
    from espnet_llmst.inference import decode_dir, sizes_of_share, split_transcripts
    from espnet_llmst.search.beams import is_loop

    job_dir = work.output_dir / f"job.{args.job}"
    shard = Shard(job_dir / "finished.jsonl", settings)
    sizes = sizes_of_share(work.data_dir, args.job, args.num_jobs)
    shard.keep(sizes)
    info_file = job_dir / "decode.json"
    if info_file.exists() and shard.nbest.keys() == sizes.keys():
        return
    info_file.unlink(missing_ok=True)
    src, tgt = parse_direction(work.direction)
    share = {"job": args.job, "num_jobs": args.num_jobs, "shuffle_audio": work.shuffle_audio}
    options = {"batch_seconds": args.batch_seconds, "transcriber": transcriber, "finished": set(shard.nbest), **share}
    with shard.writing():
        for utt, nbest, heard in decode_dir(speech2text, work.data_dir, args.task, src, tgt, **options):
            shard.add(utt, nbest, heard)
    results, transcripts, malformed = shard.nbest, shard.heard or None, 0
    if args.task == "srt":
        results, transcripts, malformed = split_transcripts(results, speech2text.preprocess.template, src, tgt)
    write_results(job_dir, results, transcripts)
    info = {"command": shlex.join(["llmst_inference", *sys.argv[1:]]), "set": work.data_dir.name, **settings}
    info |= {"n": len(results), "resumed": len(options["finished"]), "malformed": malformed}
    info["loops"] = [utt for utt, nbest in sorted(shard.nbest.items()) if is_loop(nbest[0].ids)]
    seconds = sum(shard.seconds.values())  # of killed runs, too
    info |= {"speech_seconds": sum(sizes.values()) / 16000, "search_seconds": seconds, "wall_seconds": seconds}
    write_info(job_dir, info | {"gpu_seconds": seconds if args.ngpu else 0.0})


def main(argv: Sequence[str] | None = None) -> None:
    """Decode one job, or join all."""
    args = parse(argv)
    if args.list_keys:
        list_keys(args)
        return
    if not args.merge:
        decode(args)
        return
    if not (args.decode_list or args.output_dir):
        raise InputError("--output_dir or --decode_list is required for --merge")
    for output_dir in [work.output_dir for work in work_of(args)] if args.decode_list else [args.output_dir]:
        merge_jobs(output_dir, args.num_jobs)


if __name__ == "__main__":
    sys.exit(run(main))
