"""Makes discrete units of a speech model that the recipe trained before: k-means over one layer's states."""

import sys
from pathlib import Path

from training import result, run_training

from espnet_llmst.cli import run
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.kmeans import choose_utterances, fit_units, gather_states, write_units


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Cluster the states of the training speech, write the units to ``directory`` and return the inertia."""
    name, split = args.out_dir.name, args.splits[0]
    sets = [path for language in conf["languages"] for path in sorted(args.dump_dir.glob(f"{split}.{language}-*"))]
    encoder = HuggingFaceEncoder(conf["model"], layer=conf["layer"]).eval()
    paths = choose_utterances(sets, conf["hours"], conf["seed"])
    states_ND = gather_states(encoder, paths)
    centroids_KD, inertia = fit_units(states_ND, conf["num_units"], conf["seed"])
    write_units(directory, centroids_KD, {"model": conf["model"], "layer": conf["layer"], "frames": len(states_ND)})
    languages = " ".join(conf["languages"])
    return [result(name, f"{split} ({languages})", len(paths), "inertia per frame", {"score": inertia})]


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
