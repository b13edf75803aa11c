"""Discrete units of a frozen speech encoder as an encoder of ours: waveform in, rows of a learned table out.

Shapes: B batch, S samples, T frames, U units of an utterance, K units of the inventory, D width of the states,
W width of the table.
"""

from pathlib import Path

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch.nn.utils.rnn import pad_sequence
from typeguard import typechecked

from espnet_llmst.cli import InputError
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.kmeans import nearest_units, read_units


class UnitEncoder(AbsEncoder):
    """Semantic units of a self-supervised encoder (LLaST, arXiv 2407.15415, table 3: mHuBERT).

    The states of one layer are replaced by their nearest k-means centroid, runs of one unit become one, and
    each unit is a row of the embedding table ``table``. That one is trained by ``trainable: [encoder.table]``
    and saved; the speech encoder never gets gradients, and computes in float32 so that units do not depend
    on the training's precision.

    Args:
        model: hub id or local directory of a HuBERT, mHuBERT, wav2vec 2.0, WavLM or Whisper.
        layer: whose output is quantised, as in `HuggingFaceEncoder` (paper unknown: 11 of mHuBERT).
        kmeans: directory made by ``llmst_kmeans`` for this model and layer (paper unknown: 1000 units).
        deduplicate: merge runs of the same unit.
        width: of the table; None for that of the centroids.

    The table starts as the centroids, with ``width`` through a fixed random projection.

    Raises:
        InputError: the units are missing, or were made for another model or layer.
    """

    @typechecked
    def __init__(self, model: str, layer: int, kmeans: str, deduplicate: bool = True, width: int | None = None) -> None:
        super().__init__()
        centroids_KD, settings = read_units(kmeans)
        check_origin(kmeans, settings, model, layer)
        self.speech = HuggingFaceEncoder(model, layer=layer)
        if self.speech.output_size() != centroids_KD.size(1):
            width_of = f"{centroids_KD.size(1)} wide, the states of {model} {self.speech.output_size()}"
            raise InputError(f"encoder_conf.kmeans={kmeans}: the centroids are {width_of}; make the units again")
        self.register_buffer("centroids_KD", centroids_KD)
        self.table = torch.nn.Embedding.from_pretrained(first_table(centroids_KD, width), freeze=False)
        self.deduplicate = deduplicate

    def output_size(self) -> int:
        """Width D of the table."""
        return self.table.embedding_dim

    def forward(self, xs_pad: torch.Tensor, ilens: torch.Tensor, prev_states: torch.Tensor | None = None):
        """Waveforms (B, S) at 16 kHz with lengths (B,) to embedded units (B, U, D), their numbers (B,) and None."""
        if any(parameter.requires_grad for parameter in self.speech.parameters()):
            raise InputError("trainable: no gradient passes discrete units; instead of 'encoder' give 'encoder.table'")
        units = self.units(xs_pad, ilens)
        lengths_B = torch.tensor([len(units_U) for units_U in units], device=xs_pad.device)
        return self.table(pad_sequence(units, batch_first=True)), lengths_B, None

    @torch.no_grad()
    def units(self, speech_BS: torch.Tensor, num_samples_B: torch.Tensor) -> list[torch.Tensor]:
        """The unit numbers (U,) of each utterance."""
        with torch.autocast(speech_BS.device.type, enabled=False):
            states_BTD, lengths_B, _ = self.speech(speech_BS.float(), num_samples_B)
            units_BT = nearest_units(states_BTD, self.centroids_KD)
        rows = [row[:length] for row, length in zip(units_BT, lengths_B.tolist(), strict=True)]
        return [row.unique_consecutive() for row in rows] if self.deduplicate else rows


def check_origin(kmeans: str, settings: dict, model: str, layer: int) -> None:
    """Raise InputError when units were made of another layer or model (told by the last part of its name)."""
    made = (Path(settings["model"]).name, settings["layer"])
    if made != (Path(model).name, layer):
        of = f"layer {settings['layer']} of {settings['model']}, not of layer {layer} of {model}"
        raise InputError(f"encoder_conf.kmeans={kmeans}: units of {of}; correct encoder_conf or run llmst_kmeans")


def first_table(centroids_KD: torch.Tensor, width: int | None) -> torch.Tensor:
    """The centroids, or their projection to ``width`` by random numbers that are always the same."""
    if width is None:
        return centroids_KD.clone()
    size = centroids_KD.size(1)
    projection_DW = torch.randn(size, width, generator=torch.Generator("cpu").manual_seed(0), device="cpu") / size**0.5
    return centroids_KD @ projection_DW.to(centroids_KD.device)
