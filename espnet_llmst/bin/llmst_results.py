"""llmst_results: write RESULTS.md from all scores below an experiment directory and print the table."""

import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from espnet_llmst.cli import get_parser, run
from espnet_llmst.scoring.results import format_table, write_results
from espnet_llmst.scoring.score_files import refuse_stale


def parser() -> ArgumentParser:
    p = get_parser("llmst_results", "Print the table of every scores.json below a directory; write RESULTS.md.")
    p.add_argument("--expdir", default="exp", help="experiment directory of the recipe")
    p.add_argument("--methods", nargs="+", help="only these folders of --expdir")
    p.add_argument("--command", help="what made the experiments (default: this command)")
    p.add_argument("--tables", nargs="*", default=[], metavar="YAML", help="conf/paper/*.yaml, for RESULTS.md")
    p.add_argument("--check", nargs="*", default=[], metavar="DIR", help="decodes that must not be stale")
    p.add_argument("--out", metavar="MD", help="RESULTS.md to write; default: only print")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    command = args.command or shlex.join(["llmst_results", *(sys.argv[1:] if argv is None else argv)])
    refuse_stale(args.check)
    experiments = write_results(args.expdir, args.out, command=command, methods=args.methods, tables=args.tables)
    if experiments:
        print(format_table(experiments))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
