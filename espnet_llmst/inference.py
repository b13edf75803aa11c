"""Decoding with a trained model: `Speech2Text` from Python, `decode_dir` for a data directory."""

import pickle
import random
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from espnet_llmst.asr import Transcriber
from espnet_llmst.cli import InputError, read_yaml
from espnet_llmst.datadir.kaldi import read_table, text_files
from espnet_llmst.languages import english_name
from espnet_llmst.precision import autocast
from espnet_llmst.prompt import Template, split_srt
from espnet_llmst.search.generate import SearchOptions, search
from espnet_llmst.search.hypothesis import Hypothesis
from espnet_llmst.tasks.llmst import LLMSTTask, build_preprocessor
from espnet_llmst.train.collate import collate

SAMPLE_RATE = 16000


def load_model(train_config: str | Path, model_file: str | Path, device: str = "cpu"):
    """The model of a phase and its training arguments.

    Args:
        train_config: ``config.yaml`` of the experiment directory.
        model_file: a checkpoint of trained tensors; every one the config trains must be there.

    Raises:
        InputError: a missing file, or a checkpoint of another model.
    """
    for path in (train_config, model_file):
        if not Path(path).exists():
            raise InputError(f"{path} is missing: train the phase first (stage 6)")
    if device != "cpu" and not torch.cuda.is_available():
        raise InputError("no GPU is available here: decode with --ngpu 0 (--gpu_inference false)")
    args = Namespace(**read_yaml(train_config))
    model = LLMSTTask.build_model(args)
    try:
        model.load_state_dict(torch.load(model_file, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{model_file} does not fit {train_config}: {' '.join(str(error).split())[:300]}") from error
    return model.to(device).eval(), args


class Speech2Text:
    """Speech to text in one call.

    Args:
        train_config: ``config.yaml`` of the experiment directory.
        model_file: checkpoint, e.g. ``valid.loss.best.pth``.
        device: "cpu" or "cuda".
        **options: of `SearchOptions`, e.g. ``beam_size=5``.

    Example:
        >>> speech2text = Speech2Text("exp/llast/1_dual_lora/config.yaml", "exp/.../valid.loss.best.pth")
        >>> speech2text(waveform, "st", "fr", "en")[0][0].text
    """

    def __init__(self, train_config: str | Path, model_file: str | Path, device: str = "cpu", **options) -> None:
        self.model, args = load_model(train_config, model_file, device)
        self.preprocess = build_preprocessor(args, train=False)
        self.device, self.options = device, SearchOptions(**options)

    @torch.inference_mode()
    def __call__(
        self,
        speech: np.ndarray | Sequence[np.ndarray] | None,
        task: str = "st",
        src: str = "",
        tgt: str = "",
        transcripts: Sequence[str] | None = None,
    ) -> list[list[Hypothesis]]:
        """The n-best of each utterance.

        Args:
            speech: one waveform (S,) at 16 kHz, or a list of them; None for mt.
            task: asr, st, smt, srt or mt; the model must know it.
            src, tgt: language codes; for asr both are the source.
            transcripts: what is said, for tasks whose prompt shows it.
        """
        waves = [np.zeros(0)] * len(transcripts or []) if speech is None and task == "mt" else _waveforms(speech)
        for code in (src, tgt):
            english_name(code)  # a missing or unknown language is refused here, by name
        if not waves:
            return []
        transcripts = transcripts or [""] * len(waves)
        examples = [
            (
                "",
                self.preprocess("", {"speech": wave, "task": f"{task} {src} {tgt}", "transcript": transcript}),
            )
            for wave, transcript in zip(waves, transcripts, strict=True)
        ]
        _, batch = collate(examples)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        tokenizer = self.preprocess.tokenizer
        with autocast(torch.device(self.device), self.model.precision):
            prompts = self.model.embed_prompts(**batch)
            found = search(self.model.decoder, tokenizer, prompts, self.options)
        return [[_hypothesis(tokenizer, ids, score) for ids, score in nbest] for nbest in found]


def _waveforms(speech) -> list[np.ndarray]:
    """One waveform or several, as float arrays (S,)."""
    if isinstance(speech, str):
        raise InputError(f"speech: '{speech}' is text; read the file, e.g. with soundfile, and give its samples")
    single = getattr(speech, "ndim", None) == 1
    waves = [np.asarray(wave) for wave in ([speech] if single else speech)]
    for wave in waves:
        if wave.ndim != 1 or len(wave) == 0 or not np.issubdtype(wave.dtype, np.floating):
            raise InputError("speech: one-dimensional float samples at 16 kHz between -1 and 1 are expected")
    return waves


def _hypothesis(tokenizer, ids: list[int], score: float) -> Hypothesis:
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Hypothesis(ids, score, tokenizer.convert_ids_to_tokens(ids), text)


def split_transcripts(
    results: dict[str, list[Hypothesis]], template: Template, src: str, tgt: str
) -> tuple[dict[str, list[Hypothesis]], dict[str, str], int]:
    """Take srt outputs apart at their tags.

    Returns:
        The n-best with translations as text, the transcripts of the best, and how many of the best were
        malformed; a malformed output counts as a transcript without translation.
    """
    translations, transcripts, malformed = {}, {}, 0
    for utt, nbest in results.items():
        parts = [split_srt(template, src, tgt, hypothesis.text) for hypothesis in nbest]
        malformed += parts[0] is None
        parts = [part or (hypothesis.text, "") for part, hypothesis in zip(parts, nbest, strict=True)]
        transcripts[utt] = parts[0][0]
        pairs = zip(nbest, parts, strict=True)
        translations[utt] = [replace(hypothesis, text=translation) for hypothesis, (_, translation) in pairs]
    return translations, transcripts, malformed


def other_audio(utterances: Sequence[str], seed: int) -> dict[str, str]:
    """For each utterance another one, each used once: a random cycle through all."""
    order = sorted(utterances)
    if len(order) < 2:
        raise InputError("shuffle_audio: a control needs at least two utterances")
    random.Random(seed).shuffle(order)
    return dict(zip(order, order[1:] + order[:1], strict=True))


def make_batches(sizes: dict[str, int], batch_samples: int) -> Iterator[list[str]]:
    """Utterances, longest first, in batches of at most ``batch_samples`` samples padding included."""
    batch: list[str] = []
    for utt in sorted(sizes, key=lambda utt: (-sizes[utt], utt)):
        if batch and sizes[batch[0]] * (len(batch) + 1) > batch_samples:
            yield batch
            batch = []
        batch.append(utt)
    if batch:
        yield batch


def read_wave(path: str, utt: str) -> np.ndarray:
    """A 16 kHz mono waveform as float32 (S,)."""
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path}: audio of {utt} cannot be read ({error}); run stage 3 again") from error
    if rate != SAMPLE_RATE or wave.shape[1] != 1:
        raise InputError(f"{path}: audio of {utt} is not 16 kHz mono; decode a formatted set (stage 3)")
    return wave[:, 0]


def decode_dir(
    speech2text: Speech2Text,
    data_dir: Path,
    task: str,
    src: str,
    tgt: str,
    *,
    batch_seconds: float = 60.0,
    job: int = 1,
    num_jobs: int = 1,
    shuffle_audio: int | None = None,
    transcriber: Transcriber | None = None,
) -> tuple[dict[str, list[Hypothesis]], dict[str, str], dict[str, float]]:
    """Decode this job's share of a formatted data directory.

    Args:
        batch_seconds: speech per batch, padding included.
        job: 1-based; jobs take every ``num_jobs``-th utterance.
        shuffle_audio: seed of the control in which each utterance gets another one's audio.
        transcriber: writes the transcripts that the prompts show (cascade); None takes the set's own.

    Returns:
        The n-best by utterance, the transcriber's transcripts, and figures: n, speech_seconds, search_seconds.
    """
    waves, samples = read_table(data_dir / "wav.scp"), read_table(data_dir / "utt2num_samples")
    audio_of = other_audio(list(waves), shuffle_audio) if shuffle_audio is not None else {u: u for u in waves}
    shown = shown_transcripts(speech2text.preprocess.template, task, data_dir, src, transcriber)
    mine = sorted(waves)[job - 1 :: num_jobs]
    sizes = {utt: int(samples[audio_of[utt]]) for utt in mine}
    results: dict[str, list[Hypothesis]] = {}
    heard: dict[str, str] = {}
    started = time.monotonic()
    with tqdm(total=len(mine), desc=data_dir.name, unit="utt", disable=None) as bar:
        for batch in make_batches(sizes, int(batch_seconds * SAMPLE_RATE)):
            speech = [read_wave(waves[audio_of[utt]], audio_of[utt]) for utt in batch]
            if transcriber:
                heard |= dict(zip(batch, transcriber(speech, src), strict=True))
            texts = [(heard if transcriber else shown).get(utt, "") for utt in batch]
            found = speech2text(speech, task, src, src if task == "asr" else tgt, texts)
            results |= dict(zip(batch, found, strict=True))
            bar.update(len(batch))
    seconds = sum(sizes.values()) / SAMPLE_RATE
    return results, heard, {"n": len(mine), "speech_seconds": seconds, "search_seconds": time.monotonic() - started}


def shown_transcripts(
    template: Template, task: str, data_dir: Path, src: str, transcriber: Transcriber | None
) -> dict[str, str]:
    """The set's transcripts when the task's prompt shows them and no transcriber is to write them."""
    shows = "{transcript}" in template.tasks.get(task, {}).get("prompt", "")
    if transcriber and not shows:
        raise InputError(f"asr_model: the prompt of '{task}' in {template.path} shows no transcript; decode smt or mt")
    return read_table(text_files(data_dir)[src]) if shows and not transcriber else {}
