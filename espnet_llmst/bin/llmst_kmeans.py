"""Makes discrete speech units: k-means over the states of one layer of a speech encoder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_llmst.cli import get_parser, run
from espnet_llmst.kmeans import choose_utterances, fit_units, gather_states, write_units


def main(argv: Sequence[str] | None = None) -> None:
    """Cluster the states, print the inertia per frame and write the directory of units."""
    parser = get_parser("llmst_kmeans", __doc__)
    parser.add_argument("--model", required=True, help="Hub id or directory of a HuBERT, wav2vec 2.0, WavLM or Whisper")
    parser.add_argument("--layer", type=int, required=True, help="Whose states are clustered")
    parser.add_argument("--num_units", type=int, default=1000, help="Clusters")
    parser.add_argument("--data_dir", type=Path, nargs="+", required=True, help="Formatted sets, e.g. dump/raw/train.*")
    parser.add_argument("--hours", type=float, default=10.0, help="Speech to cluster, chosen at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out_dir", type=Path, required=True, help="Directory of units")
    args = parser.parse_args(argv)
    from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder  # imported here: it takes seconds

    encoder = HuggingFaceEncoder(args.model, layer=args.layer).eval().to(args.device)
    paths = choose_utterances(args.data_dir, args.hours, args.seed)
    states_ND = gather_states(encoder, paths, args.device)
    centroids_KD, inertia = fit_units(states_ND, args.num_units, args.seed)
    print(f"{args.out_dir}: {args.num_units} units of {len(states_ND)} frames, inertia per frame {inertia:.4f}")
    settings = {"model": args.model, "layer": args.layer, "seed": args.seed}
    write_units(args.out_dir, centroids_KD, settings | {"frames": len(states_ND), "inertia_per_frame": inertia})


if __name__ == "__main__":
    sys.exit(run(main))
