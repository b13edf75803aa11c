"""llmst_report: one HTML page with scores, charts and every utterance of one system, or of two side by side."""

import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import get_parser, run
from espnet_llmst.datadir.kaldi import atomic_write
from espnet_llmst.scoring.decodes import add_source_options, load, sources_of


def parser() -> ArgumentParser:
    p = get_parser("llmst_report", "Write one HTML page about the scored decodes below a folder.")
    p.add_argument("exp", metavar="EXP", help="method, phase or decode directory, or hypotheses '<id> <text>'")
    p.add_argument("--compare", metavar="EXP", help="another system to show beside it")
    p.add_argument("--out", default="report.html", metavar="HTML", help="the page to write")
    add_source_options(p)
    p.add_argument("--buckets", default="auto", help="edges of the duration chart in seconds; lst, aligned, auto")
    p.add_argument("--embed_audio", type=int, default=20, metavar="N", help="utterances per decode with audio inside")
    p.add_argument("--absolute_audio", action="store_true", help="link other audio by absolute paths, not relative")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from espnet_llmst.scoring.report import build_data, missing_audio, render_page

    sources = sources_of(args)
    data = build_data(
        load(args.exp, sources),
        load(args.compare, sources) if args.compare else [],
        folder=Path(args.out).absolute().parent,
        buckets=args.buckets,
        embed=args.embed_audio,
        absolute=args.absolute_audio,
        command=shlex.join(["llmst_report", *(sys.argv[1:] if argv is None else argv)]),
    )
    page = render_page(data)
    with atomic_write(args.out) as file:
        file.write(page)
    lost, total = missing_audio(data), sum(len(view["ids"]) for view in data["views"])
    print(f"{args.out}: {len(data['table'])} decodes, {total} utterances, {len(page.encode()) / 1e6:.1f} MB")
    if lost:
        print(f"no audio for {lost} of {total} utterances: wav.scp beside the references names no playable file")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
