"""llmst_score: score one decoded set against its references and write scores.json."""

import json
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.kaldi import atomic_write, read_table
from espnet_llmst.provenance import changed_input, inputs_of
from espnet_llmst.scoring.comet import DEFAULT_COMET, comet_score
from espnet_llmst.scoring.decodes import read_durations
from espnet_llmst.scoring.metrics import ALL_METRICS, ASR_METRICS, CHARACTER_LANGUAGES, ST_METRICS, base_language
from espnet_llmst.scoring.results import bleu_with_interval
from espnet_llmst.scoring.score import align, bucket_edges_of, edges_of, score_hypotheses, split_srt

METRICS = {"st": ST_METRICS, "asr": ASR_METRICS}
PRINTED = ("BLEU", "BLEU_char", "spBLEU", "chrF2", "TER", "WER", "CER", "COMET")


def parser() -> ArgumentParser:
    p = get_parser("llmst_score", "Score decoded text against references by utterance id.")
    p.add_argument("--hyp", required=True, metavar="TEXT", help="hypotheses, '<id> <text>'; text may be empty")
    p.add_argument("--ref", required=True, nargs="+", metavar="TEXT", help="references, '<id> <text>'")
    p.add_argument("--tgt_lang", required=True, help="language of the text, e.g. de or zh-CN")
    p.add_argument("--out", required=True, metavar="JSON", help="where the scores go")
    p.add_argument("--kind", choices=sorted(METRICS), default="st", help="st: BLEU, chrF2, TER; asr: WER, CER")
    p.add_argument("--metrics", nargs="+", choices=ALL_METRICS, help="metrics in place of those of --kind")
    p.add_argument("--also", nargs="+", choices=ALL_METRICS, default=[], help="more metrics, e.g. spBLEU")
    p.add_argument("--tokenize", help="BLEU tokenizer of sacreBLEU other than the language's own")
    p.add_argument("--durations", metavar="TABLE", help="utt2num_samples (or utt2dur, with --fs 1)")
    p.add_argument("--fs", type=float, default=16000, help="samples per second in --durations")
    p.add_argument(
        "--buckets", default="5,10,15", help="edges of the duration buckets in seconds; lst, aligned: the papers'"
    )
    p.add_argument("--length_buckets", default="10,20,30,40", help="edges of the buckets by words of the reference")
    p.add_argument("--groups", metavar="TABLE", help="'<id> <group>': groups that are scored apart")
    p.add_argument(
        "--srt_tags", metavar="TAGS", help="--hyp is '<transcript>TAGS<translation>': score the --kind's part"
    )
    p.add_argument("--comet", metavar="COMMAND", help="comet-score of an environment with unbabel-comet: adds COMET")
    p.add_argument("--comet_model", default=DEFAULT_COMET, help="COMET model: name on the hub, or a .ckpt file")
    p.add_argument("--comet_gpus", type=int, default=0, help="devices for COMET")
    p.add_argument("--src", metavar="TEXT", help="source texts, '<id> <text>', which COMET reads")
    p.add_argument("--decode_info", metavar="JSON", help="decode.json of the decoder, for the real-time factor")
    p.add_argument("--set", dest="set_name", help="name of the set; unset: the folder of --out")
    p.add_argument("--allow_missing", action="store_true", help="count a missing hypothesis as an empty one")
    return p


def read_decode_info(path: str) -> dict:
    """What the decoder noted about its run."""
    try:
        info = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}), decode this set again") from error
    if not isinstance(info, dict):
        raise InputError(f"{path}: is not the decode.json of a decode, check --decode_info")
    changed = changed_input(info.get("inputs", {}))
    if changed:
        raise InputError(f"{path}: stale, {changed} has changed since this was decoded; run stage 7 again")
    return info


def summary(scores: dict) -> str:
    """One line for the terminal."""
    parts = [
        f"{name} {bleu_with_interval(scores[name])} {scores[name].get('verbose_score', '')}".rstrip()
        for name in PRINTED
        if name in scores
    ]
    for group, score in scores["groups"].items():
        parts += [f"{group} (n={score['n']}) {value:.2f}" for name, value in score.items() if name in PRINTED]
    return f"{scores['set']}: n={scores['n']}  " + "  ".join(parts)


def comet_of(args: Namespace, hyps: dict[str, str], refs: list[dict[str, str]]) -> dict:
    """COMET of what is scored, from the source texts in ``--src``."""
    if not args.src or len(refs) != 1:
        raise InputError("--comet needs the source texts, --src TEXT, and exactly one file in --ref")
    sources = read_table(args.src, allow_empty=True)
    ids, texts, (ref,), _ = align(hyps, refs, args.allow_missing)
    lacking = [utt for utt in ids if utt not in sources]
    if lacking:
        raise InputError(f"{args.src}: utterance {lacking[0]} is missing, COMET reads the source of every reference")
    options = {"command": args.comet, "model": args.comet_model, "gpus": args.comet_gpus}
    return comet_score(texts, ref, [sources[utt] for utt in ids], **options)


def metrics_of(args: Namespace) -> list[str]:
    """The metrics asked for; those of ``--kind`` without TER where writing has no words for it to count."""
    chosen = args.metrics or METRICS[args.kind]
    if not args.metrics and base_language(args.tgt_lang) in CHARACTER_LANGUAGES:
        chosen = [name for name in chosen if not name.startswith("TER")]
    return list(dict.fromkeys([*chosen, *args.also]))


def scores_of(args: Namespace, command: str) -> dict:
    """What ``--out`` gets."""
    hyps, malformed = read_table(args.hyp, allow_empty=True), {}
    refs = [read_table(ref, allow_empty=True) for ref in args.ref]  # a test set is kept whole
    if args.srt_tags:
        *parts, count = split_srt(hyps, args.srt_tags)
        hyps, malformed = parts[args.kind == "st"], {"n_malformed": count}
    durations = read_durations(args.durations, args.fs) if args.durations else None
    groups = read_table(args.groups) if args.groups else None
    if groups and not groups.keys() & refs[0].keys():
        raise InputError(f"{args.groups}: no utterance of {args.ref[0]} is in it, check --groups")
    comet = {"COMET": comet_of(args, hyps, refs)} if args.comet else {}
    scores = score_hypotheses(
        hyps,
        refs,
        tgt_lang=args.tgt_lang,
        durations=durations,
        bucket_edges=bucket_edges_of(args.buckets, list((durations or {}).values())),
        length_edges=edges_of(args.length_buckets, "--length_buckets"),
        groups=groups,
        allow_missing=args.allow_missing,
        metrics=metrics_of(args),
        tokenize=args.tokenize,
        set_name=args.set_name or Path(args.out).absolute().parent.name,
        decode_info=read_decode_info(args.decode_info) if args.decode_info else None,
        command=command,
    )
    return {**scores, **malformed, **comet, "inputs": inputs_of([args.hyp, *args.ref])}


def options_of_config(args: Namespace, given: Sequence[str]) -> list[str]:
    """What llmst_compare and llmst_report look for in the recorded command and a ``--config`` file said."""
    if not args.config:
        return []
    words = []
    for name in ("hyp", "ref", "tgt_lang", "out", "kind", "tokenize", "durations", "fs", "srt_tags"):
        value, said = getattr(args, name), any(word.split("=")[0] == f"--{name}" for word in given)
        if value is not None and not said:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    said = not args.allow_missing or "--allow_missing" in given
    return words if said else [*words, "--allow_missing"]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.fs <= 0:
        raise InputError(f"--fs {args.fs:g} is not a sampling rate, give samples per second")
    given = list(sys.argv[1:] if argv is None else argv)
    scores = scores_of(args, shlex.join(["llmst_score", *given, *options_of_config(args, given)]))
    with atomic_write(args.out) as file:
        json.dump(scores, file, indent=2, ensure_ascii=False)
        file.write("\n")
    print(summary(scores))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
