"""Command: check, fix, combine, subset, copy, split and filter Kaldi data directories and tables."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir import transform
from espnet_llmst.datadir.kaldi import atomic_write, invert_spk2utt, invert_utt2spk, read_lines, split_line
from espnet_llmst.datadir.lines import filter_scp, split_scp
from espnet_llmst.datadir.validate import validate_data_dir


def _note(message: str) -> None:
    print(f"llmst_datadir: {message}", file=sys.stderr)


def _print_lines(lines: Iterable[str]) -> None:
    try:
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()


def _input_lines(path: str) -> list[str]:
    return read_lines("/dev/stdin" if path == "-" else path)


def validate(args: argparse.Namespace) -> int:
    faults = validate_data_dir(args.data_dir, text=not args.no_text, wav=not args.no_wav)
    for fault in faults:
        _note(f"error: {fault}")
    if not faults:
        _note(f"{args.data_dir} is a valid data directory")
    return 1 if faults else 0


def fix(args: argparse.Namespace) -> None:
    for name, removed in transform.fix_data_dir(args.data_dir).items():
        if removed:
            _note(f"{args.data_dir}/{name}: {removed} lines removed")


def combine(args: argparse.Namespace) -> None:
    for name in transform.combine_data_dirs(args.out, args.source):
        _note(f"{args.out}: no {name}, since not every source has one")


def subset(args: argparse.Namespace) -> None:
    lists = [path for path in (args.utt_list, args.spk_list) if path]
    if len(args.place) != (2 if lists else 3) or len(lists) > 1:
        raise InputError("give SOURCE N OUT, or one of --utt-list/--spk-list FILE with SOURCE OUT")
    source, out = args.place[0], args.place[-1]
    tables = transform.read_data_dir(source)
    if lists:
        wanted = {split_line(line)[0] for line in read_lines(lists[0])}
        utt2spk = tables["utt2spk"]
        utts = [utt for utt in utt2spk if (utt if args.utt_list else utt2spk[utt]) in wanted]
    elif not args.place[1].isdigit():
        raise InputError(f"the number of utterances must be a whole number, not {args.place[1]}")
    else:
        utts = transform.choose_utts(tables, int(args.place[1]), args.how, args.seed)
    _note(f"{out}: {transform.subset_data_dir(source, out, utts)} of {len(tables['utt2spk'])} utterances")


def copy(args: argparse.Namespace) -> None:
    names = ("utt_prefix", "utt_suffix", "spk_prefix", "spk_suffix")
    transform.copy_data_dir(args.source, args.out, **{name: getattr(args, name) for name in names})


def filter_(args: argparse.Namespace) -> None:
    ids = {split_line(line)[0] for line in _input_lines(args.id_list)}
    _print_lines(filter_scp(_input_lines(args.scp), ids, args.field, args.exclude))


def split(args: argparse.Namespace) -> None:
    utt2spk = dict(map(split_line, read_lines(args.utt2spk))) if args.utt2spk else None
    outputs = args.out or ["-"]
    parts = split_scp(_input_lines(args.scp), args.jobs[0] if args.jobs else len(outputs), utt2spk)
    if args.jobs:
        job = args.jobs[1] - args.one_based
        if not 0 <= job < len(parts) or len(outputs) > 1:
            raise InputError(f"-j {args.jobs[0]} {args.jobs[1]}: no such job, or more than one output; see --help")
        parts = [parts[job]]
    for path, part in zip(outputs, parts, strict=True):
        if path == "-":
            _print_lines(part)
        else:
            with atomic_write(path) as file:
                file.writelines(f"{line}\n" for line in part)


def utt2spk_to_spk2utt(args: argparse.Namespace) -> None:
    spk2utt = invert_utt2spk(dict(map(split_line, _input_lines(args.table))))
    _print_lines(f"{spk} {spk2utt[spk]}" for spk in sorted(spk2utt))


def spk2utt_to_utt2spk(args: argparse.Namespace) -> None:
    utt2spk = invert_spk2utt(map(split_line, _input_lines(args.table)))
    _print_lines(f"{utt} {utt2spk[utt]}" for utt in sorted(utt2spk))


def _verb(verbs: argparse._SubParsersAction, function: Callable, description: str) -> Callable:
    """Add a verb; returns a function that adds options to it, `--a-b` also spelled `--a_b`."""
    name = function.__name__.rstrip("_")
    parser = verbs.add_parser(name, help=description, description=description, allow_abbrev=False)
    parser.set_defaults(function=function)

    def add(option: str, *more: str, **settings) -> None:
        if option.startswith("--") and "-" in option[2:]:
            more = (*more, "--" + option[2:].replace("-", "_"))
        parser.add_argument(option, *more, **settings)

    return add


def _directory_verbs(verbs: argparse._SubParsersAction) -> None:
    needless = "accepted as Kaldi's scripts do; not needed, since every table is handled"

    add = _verb(
        verbs,
        validate,
        "report every fault of a directory's tables; exit status 1 when there is one (audio is not opened)",
    )
    add("--no-text", action="store_true", help="do not ask for a text table")
    add("--no-wav", action="store_true", help="do not ask for wav.scp")
    for option in ("--no-feats", "--no-spk-sort", "--non-print"):
        add(option, action="store_true", help="accepted as Kaldi's script does; such things are not checked")
    add("data_dir")

    add = _verb(verbs, fix, "keep the utterances that every table has, sorted, without duplicates")
    add("--utt-extra-files", help=needless)
    add("--spk-extra-files", help=needless)
    add("data_dir")

    add = _verb(verbs, combine, "join data directories")
    add("--extra-files", help=needless)
    add("--skip-fix", help="accepted as Kaldi's script does; tables are sorted in any case")
    add("out")
    add("source", nargs="+")

    add = _verb(verbs, subset, "take part of a data directory: SOURCE N OUT, or a list with SOURCE OUT")
    for how in ("first", "last", "shortest", "speakers"):
        add(
            f"--{how}",
            dest="how",
            action="store_const",
            const=how,
            default="random",
            help=f"choose by: {how}",
        )
    add("--seed", type=int, default=0, help="of the random choice")
    add("--utt-list", help="file whose first column is the utterances to keep")
    add("--spk-list", help="file whose first column is the speakers to keep")
    add("place", nargs="+", metavar="SOURCE [N] OUT")

    add = _verb(verbs, copy, "copy a data directory, renaming its utterances or speakers")
    for option in ("--utt-prefix", "--utt-suffix", "--spk-prefix", "--spk-suffix"):
        add(
            option,
            default="",
            help="put to every id; one that starts with a dash needs the form option=value",
        )
    add("source")
    add("out")


def _table_verbs(verbs: argparse._SubParsersAction) -> None:
    add = _verb(verbs, filter_, "print the lines whose id is in a list")
    add("--exclude", action="store_true", help="print the other lines instead")
    add("-f", dest="field", type=int, default=1, help="column of the id, from 1")
    add("id_list")
    add("scp", nargs="?", default="-", help="table; standard input where not given")

    add = _verb(verbs, split, "split a table into consecutive parts of nearly equal size")
    add("--utt2spk", help="keep the lines of a speaker together")
    add("-j", dest="jobs", nargs=2, type=int, metavar=("JOBS", "JOB"), help="only part JOB (from 0) of JOBS")
    add("--one-based", action="store_true", help="count -j's JOB from 1")
    add("scp")
    add("out", nargs="*", help="one file per part (with -j one file, or standard output)")

    for function in (utt2spk_to_spk2utt, spk2utt_to_utt2spk):
        add = _verb(verbs, function, "print the inverted table")
        add("table", nargs="?", default="-", help="standard input where not given")


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = get_parser("llmst_datadir", __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    _directory_verbs(verbs)
    _table_verbs(verbs)
    args = parser.parse_args(argv)
    return args.function(args)


if __name__ == "__main__":
    sys.exit(run(main))
