"""Command: format a data directory, audio as one 16 kHz mono file per utterance or features, and filter it."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.format_audio import format_data_dir
from espnet_llmst.datadir.format_features import format_feature_dir


def rate(text: str) -> int:
    """A sampling rate in Hz from "16000" or "16k"."""
    match = re.fullmatch(r"(\d+)(k?)", text)
    if not match or int(match[1]) == 0:
        raise InputError(f"--fs {text}: give a sampling rate such as 16k or 16000")
    return int(match[1]) * (1000 if match[2] else 1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = get_parser("llmst_format", __doc__)
    parser.add_argument("--data_dir", required=True, help="Kaldi data directory")
    parser.add_argument("--out_dir", required=True, help="formatted directory to write")
    parser.add_argument("--fs", default="16k", help="sampling rate, e.g. 16k")
    parser.add_argument("--audio_format", default="flac", choices=("flac", "wav"), help="of the audio written")
    parser.add_argument("--min_duration", type=float, default=0.1, help="seconds; shorter ones are dropped")
    parser.add_argument("--max_duration", type=float, default=30.0, help="seconds; longer ones are dropped")
    parser.add_argument("--langs", nargs="+", help="languages whose text is needed; default: all there are")
    parser.add_argument("--keep_all", action="store_true", help="test set: drop only what has no audio or text")
    parser.add_argument("--nj", type=int, default=1, help="number of processes")
    parser.add_argument("--force", action="store_true", help="make everything again")
    args = parser.parse_args(argv)
    options = {"min_duration": args.min_duration, "max_duration": args.max_duration, "drop": not args.keep_all}
    options |= {"langs": args.langs, "nj": args.nj, "force": args.force}
    if (Path(args.data_dir) / "feats.scp").is_file() and not (Path(args.data_dir) / "wav.scp").is_file():
        summary = format_feature_dir(args.data_dir, args.out_dir, **options)
    else:
        audio = {"fs": rate(args.fs), "audio_format": args.audio_format}
        summary = format_data_dir(args.data_dir, args.out_dir, **audio, **options)
    hours, reasons = summary["seconds"] / 3600, summary["reasons"]
    line = f"{args.out_dir}: {summary['utterances']} utterances, {hours:.2f} h, dropped {summary['dropped']}"
    if reasons:
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        line += f" ({counts}; see {args.out_dir}/dropped.tsv)"
    print(line)


if __name__ == "__main__":
    sys.exit(run(main))
