"""Transcripts by a speech recogniser of the foundation models: the first half of a cascade.

Shapes: S samples, C characters.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor

from espnet_llmst.asr_espnet import ESPnetTranscriber
from espnet_llmst.cli import InputError
from espnet_llmst.foundation import require_model
from espnet_llmst.languages import whisper_code

SAMPLE_RATE = 16000
AT_ONCE = 16  # utterances that Whisper hears together
Recogniser = Callable[[Sequence[np.ndarray], str], list[str]]  # waveforms (S,) and their language to transcripts


def load_transcriber(model: str, device: str = "cpu") -> Recogniser:
    """The recogniser of a hub id or a directory: of ESPnet, if that has a ``config.yaml``, else of transformers."""
    return (ESPnetTranscriber if Path(model, "config.yaml").is_file() else Transcriber)(model, device)


class Transcriber:
    """Whisper, or a wav2vec 2.0, HuBERT or WavLM with its CTC output.

    Args:
        model: hub id or local directory.
        device: "cpu" or "cuda".
        beam_size: of Whisper; CTC takes the best path.

    Raises:
        InputError: another kind of model.
    """

    def __init__(self, model: str, device: str = "cpu", beam_size: int = 5) -> None:
        require_model(model)
        config = AutoConfig.from_pretrained(model)
        self.is_whisper = config.model_type == "whisper"
        if not self.is_whisper and not any(name.endswith("ForCTC") for name in config.architectures or []):
            raise InputError(f"asr_model={model}: '{config.model_type}' writes no text; give Whisper or a CTC model")
        loader = AutoModelForSpeechSeq2Seq if self.is_whisper else AutoModelForCTC
        self.model = loader.from_pretrained(model).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(model)
        self.device, self.beam_size = device, beam_size

    @torch.inference_mode()
    def __call__(self, waves: Sequence[np.ndarray], language: str) -> list[str]:
        """Transcripts of 16 kHz waveforms (S,); Whisper hears at most its window of each (30 s)."""
        if self.is_whisper:  # each takes a whole window, times the beam
            groups = [waves[n : n + AT_ONCE] for n in range(0, len(waves), AT_ONCE)]
            texts = [text for group in groups for text in self._whisper(group, language)]
        else:
            texts = [self._ctc(wave) for wave in waves]
        return [" ".join(text.split()) for text in texts]

    def _whisper(self, waves: Sequence[np.ndarray], language: str) -> list[str]:
        inputs = self.processor(
            list(waves), sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
        ).to(self.device)
        multilingual = getattr(self.model.generation_config, "is_multilingual", True)
        task = {"language": whisper_code(language), "task": "transcribe"} if multilingual else {}
        ids = self.model.generate(**inputs, num_beams=self.beam_size, **task)
        return self.processor.batch_decode(ids, skip_special_tokens=True)

    def _ctc(self, wave: np.ndarray) -> str:
        inputs = self.processor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self.device)
        ids_1C = self.model(**inputs).logits.argmax(-1)  # alone: a base model's states would feel padding
        return self.processor.batch_decode(ids_1C)[0]
