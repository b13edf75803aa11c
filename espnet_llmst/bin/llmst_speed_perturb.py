"""Command: join a data directory with copies of itself at other speeds."""

import sys
from collections.abc import Sequence

from espnet_llmst.bin.llmst_format import rate
from espnet_llmst.cli import get_parser, run
from espnet_llmst.datadir.speed_perturb import speed_perturb


def main(argv: Sequence[str] | None = None) -> None:
    parser = get_parser("llmst_speed_perturb", __doc__)
    parser.add_argument("--data_dir", required=True, help="Kaldi data directory")
    parser.add_argument("--out_dir", required=True, help="directory to write")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.9, 1.0, 1.1], help="1.0 keeps the original")
    parser.add_argument("--fs", default="16k", help="sampling rate of the perturbed audio, e.g. 16k")
    parser.add_argument("--nj", type=int, default=1, help="number of processes")
    parser.add_argument("--force", action="store_true", help="make everything again")
    args = parser.parse_args(argv)
    summary = speed_perturb(args.data_dir, args.out_dir, args.factors, fs=rate(args.fs), nj=args.nj, force=args.force)
    print(f"{args.out_dir}: {summary['utterances']} utterances")
    if summary["unreadable"]:
        count, first = len(summary["unreadable"]), summary["unreadable"][0]
        print(
            f"WARNING: {args.out_dir}: no copies of {count} utterances without usable audio, e.g. {first}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(run(main))
