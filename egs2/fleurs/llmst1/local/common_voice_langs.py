"""Print the languages that a method's phases transcribe and that no direction of FLEURS speaks.

Those are Common Voice's: phase 1 of LLM-SRT reads sets such as train.en and dev.zh-CN.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.bin.llmst_mix import read_phase
from espnet_llmst.cli import get_parser, run
from espnet_llmst.train.mixture import expand_mixture, parse_direction


def common_voice_langs(phases: Sequence[Path], directions: Sequence[str]) -> list[str]:
    """Languages of the ``asr`` entries that are no source of the directions."""
    spoken = {parse_direction(direction)[0] for direction in directions}
    parts = [part for path in phases for part in expand_mixture(read_phase(path)["mixture"], list(directions))]
    return list(dict.fromkeys(part.src for part in parts if part.task == "asr" and part.src not in spoken))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = get_parser("common_voice_langs.py", "List the Common Voice languages that a method needs")
    parser.add_argument("--train_config", type=Path, nargs="+", required=True, help="YAML files of the phases")
    parser.add_argument("--directions", nargs="*", default=[], help="all directions of the run")
    args = parser.parse_args(argv)
    print(" ".join(common_voice_langs(args.train_config, args.directions)))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
