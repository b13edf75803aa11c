"""llmst_compare: is the difference between two systems more than chance, and where does it come from?"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.kaldi import atomic_write
from espnet_llmst.scoring.decodes import Decode, add_source_options, load, sources_of
from espnet_llmst.scoring.metrics import ALL_METRICS, ASR_METRICS
from espnet_llmst.scoring.score import bucket_edges_of, edges_of


def parser() -> ArgumentParser:
    p = get_parser("llmst_compare", "Paired significance tests of two decodes, as Markdown on the terminal.")
    p.add_argument("a", metavar="A", help="decode directory (of one set, or of several), or hypotheses '<id> <text>'")
    p.add_argument("b", metavar="B", help="the system that is compared with A")
    add_source_options(p)
    p.add_argument("--metrics", nargs="+", choices=ALL_METRICS, help="default: BLEU chrF2 TER, or WER CER as scored")
    p.add_argument("--buckets", default="5,10,15", help="edges of the duration buckets in seconds; lst, aligned, auto")
    p.add_argument("--length_buckets", default="10,20,30,40", help="edges of the buckets by words of the reference")
    p.add_argument("--n_bootstrap", type=int, default=1000, help="resamples of the paired bootstrap")
    p.add_argument("--n_trials", type=int, default=10000, help="trials of the approximate randomisation")
    p.add_argument("--top", type=int, default=10, help="utterances to show of the greatest gains and losses")
    p.add_argument("--json", metavar="FILE", help="also write everything as JSON")
    return p


def metrics_of(decode: Decode) -> Sequence[str]:
    """The metrics to test when the user names none."""
    scored = set(decode.metrics)
    return ASR_METRICS if scored and scored <= set(ASR_METRICS) else ("BLEU", "chrF2", "TER")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if min(args.n_bootstrap, args.n_trials) < 1:
        raise InputError("--n_bootstrap and --n_trials must be at least 1")
    from espnet_llmst.scoring.compare import compare, pair, render_comparison

    sources, results = sources_of(args), []
    for a, b in pair(load(args.a, sources), load(args.b, sources)):
        result = compare(
            a,
            b,
            args.metrics or metrics_of(a),
            bucket_edges=bucket_edges_of(args.buckets, a.seconds or ()),
            length_edges=edges_of(args.length_buckets, "--length_buckets"),
            n_bootstrap=args.n_bootstrap,
            n_trials=args.n_trials,
        )
        print(render_comparison(result, args.top), flush=True)
        results.append(result)
    if args.json:
        with atomic_write(args.json) as file:
            json.dump(results, file, indent=2, ensure_ascii=False)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
