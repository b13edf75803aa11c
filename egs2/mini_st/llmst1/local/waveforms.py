"""What the trainings of models that read the waveform share (wav2vec 2.0, HuBERT): audio, batches, log-mel guide.

Shapes: B batch, S samples, C channels of the convolutions, T frames (20 ms), M mel bands.
"""

import random
from collections.abc import Callable, Iterator

import numpy as np
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from torchaudio.transforms import MelSpectrogram
from training import read_sets, result
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

NUM_MELS = 40


def read_waves(examples: list[tuple[str, str, str]], features: Wav2Vec2FeatureExtractor) -> list[torch.Tensor]:
    """Waveforms (S,), normalised as the checkpoint will want them; ``examples`` from ``training.read_sets``."""
    waves = []
    for _, path, _ in examples:
        speech, rate = soundfile.read(path, dtype="float32")
        waves.append(features(speech, sampling_rate=rate, return_tensors="pt").input_values[0])
    return waves


def make_batches(waves: list[torch.Tensor], batch_size: int, rng: random.Random) -> Iterator[dict]:
    """Batches for ever, of utterances of about equal length in random order.

    Each holds the utterances' numbers ``picked``, ``values`` (B, S), their ``mask`` (B, S) and ``lengths`` (B,).
    """
    by_length = sorted(range(len(waves)), key=lambda i: len(waves[i]))
    groups = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    while True:
        for group in rng.sample(groups, len(groups)):
            lengths_B = torch.tensor([len(waves[i]) for i in group])
            values_BS = pad_sequence([waves[i] for i in group], batch_first=True)
            mask_BS = (torch.arange(values_BS.size(1)) < lengths_B[:, None]).long()
            yield {"picked": group, "values": values_BS, "mask": mask_BS, "lengths": lengths_B}


def hidden_frames(model: PreTrainedModel, lengths_B: torch.Tensor) -> np.ndarray:
    """Which frames (B, T) masked prediction hides, by numpy's random numbers: spans within each utterance."""
    config = model.config
    frames_B = model._get_feat_extract_output_lengths(lengths_B)
    shape = (len(frames_B), int(frames_B.max()))
    inside_BT = (torch.arange(shape[1]) < frames_B[:, None]).long()
    return _compute_mask_indices(shape, config.mask_time_prob, config.mask_time_length, inside_BT, min_masks=2)


def speed_up_convolutions(model: PreTrainedModel) -> None:
    """Hand each activation of the convolutions a contiguous tensor.

    After a layer normalisation over channels it is transposed, and the gradient of GELU is then computed
    one number at a time: a third of a training step.
    """
    for layer in model.feature_extractor.conv_layers:
        layer.activation.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))


class MelGuide(torch.nn.Module):
    """A linear output on the convolutions that guesses log-mel bands of the same frames; dropped after training.

    Convolutions learn little from a distant loss in a few hundred steps. With it, 700 steps of CTC end at a
    WER of 9 % instead of 27 %.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.output = torch.nn.Linear(model.config.conv_dim[-1], NUM_MELS)
        # The window and the step of the convolutions together: 25 ms and 20 ms.
        self.mel = MelSpectrogram(16000, n_fft=400, hop_length=320, n_mels=NUM_MELS, center=False)
        model.feature_projection.layer_norm.register_forward_hook(self._listen)

    def _listen(self, module, inputs, features_BTC: torch.Tensor) -> None:
        self.features_BTC = features_BTC

    def forward(self, values_BS: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the guess, of the waveforms that the model has just read."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            mel_BTM = (self.mel(values_BS) + 1e-3).log().transpose(1, 2)
            mel_BTM = (mel_BTM - mel_BTM.mean()) / mel_BTM.std()
        return (self.output(self.features_BTC).float() - mel_BTM).square().mean()


def dev_results(name: str, args, languages: list[str], metric: str, features, score_of: Callable) -> list[dict]:
    """Results on the first held-out set of each language; ``score_of(waves)`` gives the score."""
    results = []
    for language in languages:
        examples = read_sets(args.dump_dir, args.splits[1], [language])
        if examples:
            score = score_of(read_waves(examples, features))
            results.append(result(name, f"{args.splits[1]} ({language})", len(examples), metric, score))
    return results
