"""Transcripts by an ASR model that ESPnet trained, by the joint CTC/attention beam search of ESPnet itself.

Shapes: S samples, T frames, D width, V vocabulary.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from espnet_llmst.cli import InputError, read_yaml
from espnet_llmst.encoder.espnet_asr import (
    ESPnetASREncoder,
    built_from,
    find_experiment,
    get_class,
    load_parts,
    read_weights,
)


class ESPnetTranscriber:
    """An ASR model that ESPnet trained; one without attention decoder takes the best path of its CTC output.

    No language model, no penalty, no bounds on the length: ESPnet's ``asr_inference`` without its options.

    Args:
        model: directory of the experiment, as of `ESPnetASREncoder`.
        device: "cpu" or "cuda".
        beam_size: hypotheses kept.
        ctc_weight: share of the CTC output in a hypothesis' score, 0 without one. ESPnet's recipes choose 0.3.

    Raises:
        InputError: it has neither a CTC output nor an attention decoder, another decoder, or reads features.
    """

    def __init__(self, model: str, device: str = "cpu", beam_size: int = 10, ctc_weight: float = 0.3) -> None:
        config_file, weights_file = find_experiment(model, None, None)
        config, weights = read_yaml(config_file), read_weights(weights_file)
        self.encoder, self.device = ESPnetASREncoder(model).to(device).eval(), device
        if self.encoder.reads_features:
            raise InputError(f"asr_model={model}: reads features, but a cascade reads waveforms; give another")
        parts = output_parts(config, config_file, weights, self.encoder.output_size())
        if not parts:
            raise InputError(f"asr_model={model}: {weights_file.name} has neither decoder nor CTC output; give another")
        load_parts(parts, weights, weights_file)
        self.parts = parts.to(device).eval()
        self.search = beam_search(parts, config, beam_size, ctc_weight).to(device) if "decoder" in parts else None
        # Pieces of SentencePiece begin words by ▁, characters are parted by <space>, words by nothing.
        unspoken = ("<blank>", "<unk>", "<sos/eos>")
        joint = " " if config.get("token_type") == "word" else ""
        self.tokens = [joint if t in unspoken else t.replace("<space>", " ") + joint for t in config["token_list"]]

    @torch.inference_mode()
    def __call__(self, waves: Sequence[np.ndarray], language: str) -> list[str]:
        """Transcripts of 16 kHz waveforms (S,), one at a time; the model's language is what it was trained on."""
        return [self._read(torch.from_numpy(wave).float().to(self.device)) for wave in waves]

    def _read(self, wave_S: torch.Tensor) -> str:
        states_1TD, *_ = self.encoder(wave_S[None], torch.tensor([len(wave_S)], device=self.device))
        if self.search is None:
            tokens = self.parts["ctc"].argmax(states_1TD)[0].unique_consecutive().tolist()
        else:
            found = self.search(states_1TD[0])
            tokens = found[0].yseq[1:-1].tolist() if found else []
        return " ".join("".join(self.tokens[token] for token in tokens).replace("▁", " ").split())


def output_parts(config: dict, config_file: Path, weights: dict, width: int) -> torch.nn.ModuleDict:
    """Attention decoder and CTC output of the experiment, those that it has, by their names in ESPnet.

    Raises:
        InputError: the decoder is not supported, or its settings do not fit it.
    """
    from espnet2.asr.ctc import CTC  # with espnet's package it takes seconds

    parts, size = torch.nn.ModuleDict(), len(config["token_list"])
    if any(name.startswith(("decoder.", "joint_network.")) for name in weights):
        decoder, conf = get_class(config, config_file, "decoder", "rnn"), config.get("decoder_conf") or {}
        with built_from(config_file, "decoder"):
            parts["decoder"] = decoder(size, width, **conf)
    if "ctc.ctc_lo.weight" in weights:
        parts["ctc"] = CTC(size, width)
    return parts


def beam_search(parts: torch.nn.ModuleDict, config: dict, beam_size: int, ctc_weight: float) -> torch.nn.Module:
    """ESPnet's search over its decoder's tokens; called with states (T, D) it gives hypotheses, the best first."""
    from espnet.nets.batch_beam_search import BatchBeamSearch
    from espnet.nets.scorers.ctc import CTCPrefixScorer

    logging.getLogger("espnet.nets").setLevel(logging.WARNING)  # it reports every utterance
    tokens, symbols = config["token_list"], config.get("model_conf") or {}
    sos, eos = (
        tokens.index(symbol) if symbol in tokens else len(tokens) - 1
        for symbol in (symbols.get(name, "<sos/eos>") for name in ("sym_sos", "sym_eos"))
    )
    ctc_weight = ctc_weight if "ctc" in parts else 0.0
    return BatchBeamSearch(
        scorers={"decoder": parts["decoder"], "ctc": CTCPrefixScorer(parts["ctc"], eos) if ctc_weight else None},
        weights={"decoder": 1 - ctc_weight, "ctc": ctc_weight},
        beam_size=min(beam_size, len(tokens) - 1),  # a blank must fall out: its score recovers at the end
        vocab_size=len(tokens),
        sos=sos,
        eos=eos,
        pre_beam_score_key="full",
    )
