"""Resolves the foundation models of a method's phases and records their revision and hash."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import InputError, get_parser, run
from espnet_llmst.datadir.kaldi import atomic_write
from espnet_llmst.foundation import describe, is_hub_id, missing_models, models_of


def keep_hashes(path: Path, names: Sequence[str], known: dict) -> None:
    """Write the hashes of an experiment's models beside it; raises InputError if it began with others.

    Models of the hub are taken as ``known`` from stage 4, without asking the hub.
    """
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {
        name: (known[name] if is_hub_id(name) and name in known else describe(name, known.get(name)))["sha256"]
        for name in names
    }
    changed = next((name for name in names if kept.get(name, found[name]) != found[name]), None)
    if changed:
        raise InputError(
            f"{changed} has changed since {path.parent} was trained with it: train that again (--stage 6 --force true,"
            " or another --expdir)"
        )
    if kept != found:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            json.dump(found, file, indent=1, sort_keys=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print local models that are still to be made, or check all and write ``foundation.json`` or an experiment's."""
    parser = get_parser("llmst_foundation", __doc__)
    parser.add_argument("--train_config", type=Path, nargs="+", required=True, help="YAML of the phases")
    parser.add_argument("--out", type=Path, help="foundation.json; entries of other models are kept")
    parser.add_argument("--kept", type=Path, help="Hashes an experiment began with: refused if others, else written")
    parser.add_argument("--list_local", action="store_true", help="Only print the local models")
    parser.add_argument("--list_missing", action="store_true", help="Only print local models that are missing")
    args = parser.parse_args(argv)
    names = models_of(args.train_config)
    if args.list_local or args.list_missing:
        print("\n".join(missing_models(names) if args.list_missing else [n for n in names if not is_hub_id(n)]))
        return
    known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if args.kept:
        keep_hashes(args.kept, names, known)
        return
    found = {name: describe(name, known.get(name)) for name in names}
    for name in names:
        print(f"{name}: {found[name]['model_type']}, sha256 {found[name]['sha256'][:12]}")
    if known | found != known:
        with atomic_write(args.out) as file:
            json.dump(known | found, file, indent=1, sort_keys=True)


if __name__ == "__main__":
    sys.exit(run(main))
