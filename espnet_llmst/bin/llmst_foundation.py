"""Resolves the foundation models of a method's phases and records their revision and hash."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import get_parser, run
from espnet_llmst.datadir.kaldi import atomic_write
from espnet_llmst.foundation import describe, is_hub_id, missing_models, models_of


def main(argv: Sequence[str] | None = None) -> None:
    """Print the local models that are still to be made, or check all and write ``foundation.json``."""
    parser = get_parser("llmst_foundation", __doc__)
    parser.add_argument("--train_config", type=Path, nargs="+", required=True, help="YAML of the phases")
    parser.add_argument("--out", type=Path, help="foundation.json; entries of other models are kept")
    parser.add_argument("--list_local", action="store_true", help="Only print the local models")
    parser.add_argument("--list_missing", action="store_true", help="Only print local models that are missing")
    args = parser.parse_args(argv)
    names = models_of(args.train_config)
    if args.list_local or args.list_missing:
        print("\n".join(missing_models(names) if args.list_missing else [n for n in names if not is_hub_id(n)]))
        return
    known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    found = {name: describe(name, known.get(name)) for name in names}
    for name in names:
        print(f"{name}: {found[name]['model_type']}, sha256 {found[name]['sha256'][:12]}")
    if known | found != known:
        with atomic_write(args.out) as file:
            json.dump(known | found, file, indent=1, sort_keys=True)


if __name__ == "__main__":
    sys.exit(run(main))
