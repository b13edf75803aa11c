"""llmst_table: what a paper's table (conf/paper) still needs, and the table itself from what is there."""

import contextlib
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.kaldi import atomic_write
from espnet_llmst.scoring.results import collect_results
from espnet_llmst.scoring.tables import load_table


def parser() -> ArgumentParser:
    p = get_parser("llmst_table", "Plan or write a table of conf/paper; run from the recipe's folder.")
    p.add_argument("--table", required=True, help="name of conf/paper/<name>.yaml")
    p.add_argument("--rows", nargs="*", default=[], help="only these rows, by id (see --dry_run) or method")
    p.add_argument("--seeds", nargs="*", type=int, default=[], help="train each row with these seeds")
    p.add_argument("--conf", type=Path, default=Path("conf"))
    p.add_argument("--expdir", type=Path, default=Path("exp"))
    p.add_argument("--train_args", default="", help="more options for llmst_train, for every row")
    p.add_argument("--decode_suffix", default="", help="what options of the command line add to a decode's name")
    p.add_argument("--stage", type=int, default=1)
    p.add_argument("--stop_stage", type=int, default=8)
    p.add_argument("--inference_args", default="", help="options of llmst_inference, for the commands that are shown")
    p.add_argument("--dry_run", action="store_true", help="print what is there, what is missing and GPU memory")
    p.add_argument("--list_runs", action="store_true", help="print the calls of llmst.sh: row and options, by tabs")
    p.add_argument("--out", metavar="MD", help="write the table")
    return p


def table_file(conf: Path, name: str) -> Path:
    """The YAML of a table."""
    path = conf / "paper" / f"{name}.yaml"
    if not path.is_file():
        known = " ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(f"unknown table '{name}'; there are: {known or f'none in {path.parent}'}")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan, the runs, or write the table."""
    args = parser().parse_args(argv)
    # Late: scoring's tests take a moment to load.
    from espnet_llmst.scoring import table_runs as runs

    table = load_table(table_file(args.conf, args.table), args.seeds)
    rows = runs.choose_rows(table, args.rows, args.table)
    settings = runs.Settings(args.conf, args.expdir, args.train_args, args.decode_suffix, args.stage, args.stop_stage)
    experiments = collect_results(args.expdir) if args.expdir.is_dir() else {}
    decoding = ["--inference_args", args.inference_args] if args.inference_args else []
    if args.dry_run:
        terminal = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):  # ESPnet prints on import that it found no flash_attn
            for line in runs.plan_lines(table, rows, experiments, settings, decoding):
                print(line, file=terminal, flush=True)
    if args.list_runs:
        for one in runs.table_runs(table, rows, settings):
            print("\t".join([one.row, *one.options]))
    if args.out:
        words = ["./run.sh", "--table", args.table]
        words += ["--seeds", " ".join(map(str, args.seeds))] if args.seeds else []
        words += ["--expdir", str(args.expdir)] if args.expdir != Path("exp") else []
        words += ["--train_args", args.train_args] if args.train_args else []
        text = runs.render_full(table, experiments, settings, shlex.join([*words, *decoding]))
        with atomic_write(args.out) as file:
            file.write(text)
        print(text)


if __name__ == "__main__":
    sys.exit(run(main))
