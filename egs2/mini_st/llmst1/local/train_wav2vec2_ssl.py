"""Trains a tiny wav2vec 2.0 on speech alone, by contrastive and diversity loss; writes it with ``save_pretrained``.

Shapes: B batch, T frames, N negatives, D width of the code vectors.
"""

import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tiny_models import new_wav2vec2, wav2vec2_features
from torch.nn.functional import cosine_similarity
from training import run_training, train, training_speech
from transformers import Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices
from waveforms import MelGuide, dev_results, hidden_frames, make_batches, read_waves, speed_up_convolutions

from espnet_llmst.cli import run
from espnet_llmst.precision import autocast


def loss_function(model: Wav2Vec2ForPreTraining, guide: MelGuide, precision: str, steps: int):
    """The published loss per hidden frame, and the error of the log-mel guide.

    The quantiser's temperature falls from 2, as published, to 0.5 over the training.
    """

    def loss_of(batch: dict) -> torch.Tensor:
        model.set_gumbel_temperature(2.0 * 0.25 ** (batch["step"] / steps))
        hidden_BT = hidden_frames(model, batch["lengths"])
        negatives_BTN = _sample_negative_indices(hidden_BT.shape, model.config.num_negatives, hidden_BT)
        with autocast(torch.device("cpu"), precision):
            output = model(
                batch["values"],
                attention_mask=batch["mask"],
                mask_time_indices=torch.from_numpy(hidden_BT),
                sampled_negative_indices=torch.from_numpy(negatives_BTN),
            )
            guess_error = guide(batch["values"])
        return output.loss / int(hidden_BT.sum()) + guess_error

    return loss_of


def contrastive_accuracy(model: Wav2Vec2ForPreTraining, waves: list[torch.Tensor]) -> dict:
    """Share of hidden frames, in %, whose own code vector is nearer than all negatives; one utterance at a time.

    A negative that equals the frame's own code vector does not count, as in the loss.
    """
    hits = total = 0
    for wave in waves:
        hidden_1T = hidden_frames(model, torch.tensor([len(wave)]))
        negatives_1TN = _sample_negative_indices(hidden_1T.shape, model.config.num_negatives, hidden_1T)
        with torch.inference_mode():
            output = model(wave[None], mask_time_indices=torch.from_numpy(hidden_1T))
        places = torch.from_numpy(np.flatnonzero(hidden_1T))
        guess_TD, codes_TD = output.projected_states[0, places], output.projected_quantized_states[0]
        own_TD, others_TND = codes_TD[places], codes_TD[torch.from_numpy(negatives_1TN)[0, places].long()]
        near_T = cosine_similarity(guess_TD, own_TD, dim=-1)
        rivals_TN = cosine_similarity(guess_TD[:, None], others_TND, dim=-1)
        rivals_TN[(others_TND == own_TD[:, None]).all(-1)] = -2.0
        best_T = rivals_TN.amax(1)
        hits += int(((near_T > best_T) & (best_T > -2.0)).sum())
        total += len(places)
    return {"score": 100.0 * hits / total, "frames": total}


def train_one(conf: dict, args, directory: Path) -> list[dict]:
    """Train one model, write it to ``directory`` and return its accuracy on the first held-out set."""
    name, languages = args.out_dir.name, conf["languages"]
    np.random.seed(conf["seed"])
    features = wav2vec2_features()
    waves = read_waves(training_speech(args, languages), features)
    model = new_wav2vec2(**conf["size"])
    speed_up_convolutions(model.wav2vec2)
    batches = make_batches(waves, conf["batch_size"], random.Random(conf["seed"]))
    numbered = (batch | {"step": step} for step, batch in enumerate(batches))
    parts = torch.nn.ModuleDict({"model": model, "guide": MelGuide(model.wav2vec2)})
    loss_of = loss_function(model, parts["guide"], conf["autocast"], conf["steps"])
    train(parts, numbered, loss_of, conf["steps"], conf["lr"], name, directory)
    features.save_pretrained(directory)
    model.save_pretrained(directory)
    score_of = partial(contrastive_accuracy, model)
    return dev_results(name, args, languages, "contrastive accuracy", features, score_of)


if __name__ == "__main__":
    sys.exit(run(lambda argv: run_training(__doc__, train_one, argv)))
