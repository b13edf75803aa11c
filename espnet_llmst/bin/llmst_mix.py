"""Materialises the training mixture of a phase, with the sizes its batches are filled by."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from espnet_llmst.cli import InputError, get_parser, read_yaml, run
from espnet_llmst.prompt import load_template, load_tokenizer
from espnet_llmst.train.mixture import decode_task, expand_mixture, find_set, find_sets, make_mix, parse_direction
from espnet_llmst.train.shapes import write_shapes


def read_phase(path: Path) -> dict:
    """Settings of a phase's YAML."""
    settings = read_yaml(path)
    for key in ("prompt", "mixture", "decoder_conf"):
        if key not in settings:
            raise InputError(f"{path}: '{key}:' is missing; see the other phases under conf/")
    return settings


def list_sets(args) -> None:
    """Print the sets that the given phases read, one a line."""
    names: dict[str, None] = {}
    for path in args.train_config:
        parts = expand_mixture(read_phase(path)["mixture"], args.directions)
        for split in args.splits:
            names.update(dict.fromkeys(find_sets(args.data_dir, split, parts, args.near)))
    print("\n".join(names))


def list_directions(args) -> None:
    """Print the run's directions and those that the phases name beside them, in one line."""
    parts = [
        part for path in args.train_config for part in expand_mixture(read_phase(path)["mixture"], args.directions)
    ]
    named = [f"{part.src}-{part.tgt}" for part in parts if part.task != "asr"]
    given = ["-".join(parse_direction(direction)) for direction in args.directions]
    print(" ".join(dict.fromkeys([*given, *named])))


def list_task(args) -> None:
    """Print the task by which the phase is tested."""
    print(decode_task(expand_mixture(read_phase(args.train_config[0])["mixture"], args.directions)))


def measure_speech(path: Path, settings: dict):
    """What tells vectors and encoder frames of an utterance, when the phase fills its batches by them."""
    if "tokens" not in (settings.get("batch_type"), settings.get("valid_batch_type")):
        return None
    from espnet_llmst import summary  # late: slow, and seldom needed

    return summary.speech_sizes(summary.build_empty(summary.read_phase(path)))


def mix(args) -> None:
    """Write ``<out_dir>/<split>`` tables and ``<stats_dir>/<split>`` shapes."""
    settings = read_phase(args.train_config[0])
    template = load_template(settings["prompt"])
    tokenizer = load_tokenizer(settings["decoder_conf"]["model"], settings["decoder_conf"].get("added_tokens", ()))
    measure = measure_speech(args.train_config[0], settings)
    parts = expand_mixture(settings["mixture"], args.directions)
    for role, split in zip(("train", "valid"), args.splits, strict=True):
        if role == "valid":  # validated on the whole split
            parts = list(dict.fromkeys(replace(part, hours=None, every=1) for part in parts))
        counts = make_mix(args.data_dir, split, parts, template, args.out_dir / role, args.near)
        for part, count in counts.items():
            source = find_set(args.data_dir, split, part, parts, args.near)
            print(f"{role}: {part.task} {part.src}-{part.tgt}: {count} examples of {source}")
        mix_ties = settings.get("mix_ties", False)
        means = write_shapes(args.out_dir / role, args.stats_dir / role, template, tokenizer, measure, mix_ties)
        print(f"{role}: on average {means['frames']:.0f} speech frames and {means['tokens']:.0f} text tokens")


def main(argv: Sequence[str] | None = None) -> None:
    """List directions or sets, or mix one phase."""
    parser = get_parser("llmst_mix", __doc__)
    parser.add_argument("--train_config", type=Path, nargs="+", required=True, help="YAML of the phase")
    parser.add_argument("--directions", nargs="*", default=[], help="For entries that name none, e.g. fr-en")
    parser.add_argument("--near", nargs="*", default=[], help="Directions whose sets asr reads first")
    parser.add_argument("--data_dir", type=Path, help="Folder of the sets (data or dump/raw)")
    parser.add_argument("--splits", nargs=2, default=["train", "dev"], help="Training and validation split")
    parser.add_argument("--list_sets", action="store_true", help="Only print the sets that are needed")
    parser.add_argument("--list_directions", action="store_true", help="Only print the directions needed")
    parser.add_argument("--list_task", action="store_true", help="Only print the task the phase is tested by")
    parser.add_argument("--out_dir", type=Path)
    parser.add_argument("--stats_dir", type=Path)
    args = parser.parse_args(argv)
    if args.list_directions:
        list_directions(args)
    elif args.list_task:
        list_task(args)
    elif args.list_sets and args.data_dir:
        list_sets(args)
    elif args.data_dir and args.out_dir and args.stats_dir:
        mix(args)
    else:
        raise InputError("--data_dir, --out_dir and --stats_dir are required")


if __name__ == "__main__":
    sys.exit(run(main))
