"""Plans a phase's batches: memory by part, and the largest batches that a GPU holds; nothing is downloaded."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import InputError, get_parser, run


def main(argv: Sequence[str] | None = None) -> None:
    """Print one block for each YAML, or all as a JSON list."""
    parser = get_parser("llmst_plan", __doc__)
    parser.add_argument("train_config", type=Path, nargs="+", help="YAML of the phases; run from the recipe's folder")
    parser.add_argument("--gpu_memory", type=float, default=80, help="Memory of each GPU in GiB")
    parser.add_argument("--gpus", type=int, default=1, help="Processes of the training, a GPU each")
    parser.add_argument("--stats_dir", type=Path, help="<expdir>/<method>/<phase>/stats/train, for steps of an epoch")
    parser.add_argument("--seconds", type=float, default=30, help="Longest utterance, without --stats_dir")
    parser.add_argument("--tokens", type=int, default=128, help="Its prompt and target, without --stats_dir")
    parser.add_argument("--try_gpu", action="store_true", help="Also run steps on the GPU at hand, with random weights")
    parser.add_argument("--json", action="store_true", help="Print JSON")
    args = parser.parse_args(argv)
    if args.gpu_memory <= 0 or args.gpus < 1 or args.seconds < 0 or args.tokens < 1:
        raise InputError("--gpu_memory, --gpus and --tokens must be above 0")
    # Late: --help needs no model. ESPnet prints on import that it found no flash_attn.
    with contextlib.redirect_stdout(sys.stderr):
        from espnet_llmst.plan import Shape, as_text, plan, try_on_gpu

    longest = Shape(round(args.seconds * 16000), args.tokens)
    plans = [plan(path, args.gpu_memory, args.stats_dir, args.gpus, longest) for path in args.train_config]
    if args.try_gpu:
        for path, found in zip(args.train_config, plans, strict=True):
            found["tried"] = try_on_gpu(path, found)
    print(json.dumps(plans, indent=1) if args.json else "\n\n".join(map(as_text, plans)))


if __name__ == "__main__":
    sys.exit(run(main))
