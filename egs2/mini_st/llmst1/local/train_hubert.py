"""Trains a tiny HuBERT by masked prediction of MFCC clusters (its first iteration); ``save_pretrained``.

Shapes: S samples, B batch, T frames, N frames of all utterances, D features or width, K clusters.
"""

import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tiny_models import new_wav2vec2, wav2vec2_features
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import compute_deltas
from torchaudio.transforms import MFCC
from training import run_training, train, training_speech
from transformers import HubertModel
from waveforms import MelGuide, dev_results, hidden_frames, make_batches, read_waves, speed_up_convolutions

from espnet_llmst.cli import run
from espnet_llmst.kmeans import fit_units, nearest_units
from espnet_llmst.precision import autocast

TEMPERATURE = 0.1  # of the cosine similarities, as published


class ClusterHead(torch.nn.Module):
    """Guesses the clusters by similarity to an embedding of each; dropped after training."""

    def __init__(self, width: int, clusters: int) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(width, width)
        self.embeddings = torch.nn.Parameter(torch.randn(clusters, width))

    def forward(self, states_BTD: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, K)."""
        return normalize(self.projection(states_BTD), dim=-1) @ normalize(self.embeddings, dim=-1).T / TEMPERATURE


def mfccs(waves: list[torch.Tensor]) -> list[torch.Tensor]:
    """13 MFCCs with first and second differences (T, 39), at the frames of the convolutions."""
    mel = {"n_fft": 400, "hop_length": 320, "n_mels": 40, "center": False}
    transform = MFCC(16000, n_mfcc=13, log_mels=True, melkwargs=mel)
    features = []
    for wave in waves:
        mfcc_DT = transform(wave)
        first_DT = compute_deltas(mfcc_DT)
        features.append(torch.cat([mfcc_DT, first_DT, compute_deltas(first_DT)]).T)
    return features


class Clusters:
    """K-means over standardised MFCCs: gives the cluster numbers (T,) of utterances."""

    def __init__(self, waves: list[torch.Tensor], count: int, seed: int) -> None:
        features_ND = torch.cat(mfccs(waves))
        self.mean_D, self.std_D = features_ND.mean(0), features_ND.std(0)
        self.centroids_KD, _ = fit_units(((features_ND - self.mean_D) / self.std_D).numpy(), count, seed)

    def __call__(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        return [nearest_units((one_TD - self.mean_D) / self.std_D, self.centroids_KD) for one_TD in mfccs(waves)]


def predict(model: HubertModel, head: ClusterHead, batch: dict, targets: list[torch.Tensor]):
    """Logits (B, T, K), clusters (B, T; -100 beyond an utterance's end) and which frames were hidden (B, T)."""
    hidden_BT = torch.from_numpy(hidden_frames(model, batch["lengths"]))
    states_BTD = model(batch["values"], batch["mask"], mask_time_indices=hidden_BT).last_hidden_state
    targets_BT = pad_sequence([targets[i] for i in batch["picked"]], batch_first=True, padding_value=-100)
    return head(states_BTD).float(), targets_BT, hidden_BT


def prediction_loss(logits_BTK, targets_BT, hidden_BT, seen_weight: float) -> torch.Tensor:
    """Cross-entropy of the hidden frames, and weighted that of the others."""
    seen_BT = ~hidden_BT & (targets_BT >= 0)
    loss = cross_entropy(logits_BTK[hidden_BT], targets_BT[hidden_BT])
    return loss + seen_weight * cross_entropy(logits_BTK[seen_BT], targets_BT[seen_BT])


def accuracy(model: HubertModel, head: ClusterHead, clusters: Clusters, waves: list[torch.Tensor]) -> dict:
    """Share of hidden frames, in %, whose cluster is guessed; one utterance at a time."""
    targets = clusters(waves)
    hits = total = 0
    for number, wave in enumerate(waves):
        size = torch.tensor([len(wave)])
        batch = {"picked": [number], "values": wave[None], "mask": torch.ones(1, len(wave)).long(), "lengths": size}
        with torch.inference_mode():
            logits_1TK, targets_1T, hidden_1T = predict(model, head, batch, targets)
        hits += int((logits_1TK.argmax(-1) == targets_1T)[hidden_1T].sum())
        total += int(hidden_1T.sum())
    return {"score": 100.0 * hits / total, "frames": total}


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Train one model, write it to ``directory`` and return its accuracy on the first held-out set."""
    name, languages = args.out_dir.name, conf["languages"]
    np.random.seed(conf["seed"])
    features = wav2vec2_features()
    waves = read_waves(training_speech(args, languages), features)
    clusters = Clusters(waves, conf["clusters"], conf["seed"])
    targets = clusters(waves)
    model = new_wav2vec2(kind="hubert", **conf["size"])
    speed_up_convolutions(model)
    head, guide = ClusterHead(conf["size"]["width"], conf["clusters"]), MelGuide(model)

    def loss_of(batch: dict) -> torch.Tensor:
        with autocast(torch.device("cpu"), conf["autocast"]):
            prediction = predict(model, head, batch, targets)
            guess_error = guide(batch["values"])
        return guess_error + prediction_loss(*prediction, conf["seen_weight"])

    batches = make_batches(waves, conf["batch_size"], random.Random(conf["seed"]))
    parts = torch.nn.ModuleDict({"model": model, "head": head, "guide": guide})
    train(parts, batches, loss_of, conf["steps"], conf["lr"], name, directory)
    features.save_pretrained(directory)
    model.save_pretrained(directory)
    score_of = partial(accuracy, model, head, clusters)
    return dev_results(name, args, languages, "masked prediction accuracy", features, score_of)


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
