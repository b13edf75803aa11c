"""llmst_score: score one decoded set against its references and write scores.json."""

import json
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.kaldi import atomic_write, read_table
from espnet_llmst.scoring.metrics import ALL_METRICS, ASR_METRICS, ST_METRICS
from espnet_llmst.scoring.results import bleu_with_interval
from espnet_llmst.scoring.score import bucket_edges_of, score_hypotheses

METRICS = {"st": ST_METRICS, "asr": ASR_METRICS}


def parser() -> ArgumentParser:
    p = get_parser("llmst_score", "Score decoded text against references by utterance id.")
    p.add_argument("--hyp", required=True, metavar="TEXT", help="hypotheses, '<id> <text>'; text may be empty")
    p.add_argument("--ref", required=True, nargs="+", metavar="TEXT", help="references, '<id> <text>'")
    p.add_argument("--tgt_lang", required=True, help="language of the text, e.g. de or zh-CN")
    p.add_argument("--out", required=True, metavar="JSON", help="where the scores go")
    p.add_argument("--kind", choices=sorted(METRICS), default="st", help="st: BLEU, chrF2, TER; asr: WER, CER")
    p.add_argument("--metrics", nargs="+", choices=ALL_METRICS, help="metrics other than those of --kind")
    p.add_argument("--tokenize", help="BLEU tokenizer of sacreBLEU other than the language's own")
    p.add_argument("--durations", metavar="TABLE", help="utt2num_samples (or utt2dur, with --fs 1)")
    p.add_argument("--fs", type=float, default=16000, help="samples per second in --durations")
    p.add_argument("--buckets", default="5,10,15", help="edges of the duration buckets in seconds")
    p.add_argument("--decode_info", metavar="JSON", help="decode.json of the decoder, for the real-time factor")
    p.add_argument("--set", dest="set_name", help="name of the set; unset: the folder of --out")
    p.add_argument("--allow_missing", action="store_true", help="count a missing hypothesis as an empty one")
    return p


def read_durations(path: str, fs: float) -> dict[str, float]:
    """Seconds per utterance from a table of sample counts at ``fs`` samples per second."""
    seconds = {}
    for utt, value in read_table(path).items():
        try:
            seconds[utt] = float(value) / fs
        except ValueError as error:
            raise InputError(f"{path}: utterance {utt}: '{value}' is not a number of samples") from error
    return seconds


def read_decode_info(path: str) -> dict:
    """What the decoder noted about its run."""
    try:
        info = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}), decode this set again") from error
    if not isinstance(info, dict):
        raise InputError(f"{path}: is not the decode.json of a decode, check --decode_info")
    return info


def summary(scores: dict) -> str:
    """One line for the terminal."""
    parts = [f"{name} {bleu_with_interval(scores[name])}" for name in ALL_METRICS if name in scores]
    return f"{scores['set']}: n={scores['n']}  " + "  ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.fs <= 0:
        raise InputError(f"--fs {args.fs:g} is not a sampling rate, give samples per second")
    given = sys.argv[1:] if argv is None else argv
    scores = score_hypotheses(
        read_table(args.hyp, allow_empty=True),
        [read_table(ref) for ref in args.ref],
        tgt_lang=args.tgt_lang,
        durations=read_durations(args.durations, args.fs) if args.durations else None,
        bucket_edges=bucket_edges_of(args.buckets),
        allow_missing=args.allow_missing,
        metrics=args.metrics or METRICS[args.kind],
        tokenize=args.tokenize,
        set_name=args.set_name or Path(args.out).absolute().parent.name,
        decode_info=read_decode_info(args.decode_info) if args.decode_info else None,
        command=shlex.join(["llmst_score", *given]),
    )
    with atomic_write(args.out) as file:
        json.dump(scores, file, indent=2, ensure_ascii=False)
        file.write("\n")
    print(summary(scores))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
