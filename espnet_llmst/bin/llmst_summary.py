"""Sizes of a phase's model: parameters, trained share, speech vectors, memory; nothing is downloaded."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import get_parser, run


def main(argv: Sequence[str] | None = None) -> None:
    """Print one block for each YAML, or all as a JSON list."""
    parser = get_parser("llmst_summary", __doc__)
    parser.add_argument("train_config", type=Path, nargs="+", help="YAML of the phases; run from the recipe's folder")
    parser.add_argument("--json", action="store_true", help="Print JSON")
    args = parser.parse_args(argv)
    # Late: --help needs no model. ESPnet prints on import that it found no flash_attn.
    with contextlib.redirect_stdout(sys.stderr):
        from espnet_llmst.summary import as_text, summarise

    summaries = [summarise(path) for path in args.train_config]
    if args.json:
        print(json.dumps(summaries, indent=1))
    else:
        print("\n\n".join(map(as_text, summaries)))


if __name__ == "__main__":
    sys.exit(run(main))
