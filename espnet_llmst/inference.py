"""Decoding with a trained model: `Speech2Text` from Python, `decode_dir` for a data directory."""

import logging
import math
import pickle
import random
import time
from argparse import Namespace
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from espnet_llmst.asr import Recogniser
from espnet_llmst.cli import InputError, read_yaml
from espnet_llmst.datadir.audio import AudioError
from espnet_llmst.datadir.format_features import read_matrix, samples_of
from espnet_llmst.datadir.kaldi import read_table, read_text, speech_table
from espnet_llmst.decoder.seq2seq_lm import Seq2SeqLMDecoder
from espnet_llmst.languages import english_name
from espnet_llmst.precision import autocast
from espnet_llmst.prompt import SPEECH, Template, split_srt
from espnet_llmst.search.engine import Prompt
from espnet_llmst.search.generate import Searcher
from espnet_llmst.search.hypothesis import Hypothesis
from espnet_llmst.search.options import SearchOptions
from espnet_llmst.tasks.llmst import LLMSTTask, build_preprocessor
from espnet_llmst.train.collate import collate

SAMPLE_RATE = 16000
BATCH_SECONDS = 60.0  # speech encoded at a time, padding included
WAVE = 8  # times the engine's rows: utterances decoded together, and again together when one of them is missing
SHORTEST_SHARED = 8  # tokens before the speech that are worth a treatment of their own


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
        rows: most utterances searched at a time.
        kv_memory: gigabytes that the language model's keys and values may take; None for no limit.
        cuda_graphs: capture the search's steps as CUDA graphs; without a GPU they run as usual.
        **options: of `SearchOptions`, e.g. ``beam_size=5``.

    Example:
        >>> speech2text = Speech2Text("exp/llast/1_dual_lora/config.yaml", "exp/.../valid.loss.best.pth")
        >>> speech2text(waveform, "st", "fr", "en")[0][0].text
    """

    def __init__(
        self,
        train_config: str | Path,
        model_file: str | Path,
        device: str = "cpu",
        rows: int = 16,
        kv_memory: float | None = None,
        cuda_graphs: bool = False,
        **options,
    ) -> None:
        model, args = load_model(train_config, model_file, device)
        self._take(model, build_preprocessor(args, train=False), rows, kv_memory, options, cuda_graphs)

    @classmethod
    def of_model(cls, model, preprocess, rows: int = 16, kv_memory: float | None = None, **options) -> "Speech2Text":
        """With a model that is at hand, e.g. in training; ``preprocess`` as `build_preprocessor` makes it."""
        speech2text = cls.__new__(cls)
        speech2text._take(model, preprocess, rows, kv_memory, options)
        return speech2text

    def _take(
        self, model, preprocess, rows: int, kv_memory: float | None, options: dict, cuda_graphs: bool = False
    ) -> None:
        self.model, self.preprocess, self.options = model, preprocess, SearchOptions(**options)
        self.device = next(model.parameters()).device
        self.autocast = partial(autocast, self.device, self.model.precision)
        memory = None if kv_memory is None else int(kv_memory * 1e9)
        if cuda_graphs and self.device.type != "cuda":
            logging.warning("cuda_graphs: there is no GPU here, so steps run as usual")
        graphs = cuda_graphs and self.device.type == "cuda"
        self.searcher = Searcher(
            self.model.decoder, self.preprocess.tokenizer, self.options, rows, memory, self.autocast, graphs
        )

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
            speech: one waveform (S,) at 16 kHz, or features (F, M) where the encoder reads them, or a list of
                such; None for mt.
            task: asr, st, smt, srt or mt; the model must know it.
            src, tgt: language codes; for asr both are the source.
            transcripts: what is said, for tasks whose prompt shows it.
        """
        features = getattr(self.model.encoder, "reads_features", False)
        if speech is None and task == "mt":
            waves = [np.zeros(0)] * len(transcripts or [])
        else:
            waves = _speech(speech, 2 if features else 1)
        for code in (src, tgt):
            english_name(code)  # a missing or unknown language is refused here, by name
        if not waves:
            return []
        transcripts = transcripts or [""] * len(waves)
        data = {
            str(n): {"speech": wave, "task": f"{task} {src} {tgt}", "transcript": transcript}
            for n, (wave, transcript) in enumerate(zip(waves, transcripts, strict=True))
        }
        sizes = {key: num_samples(len(one["speech"]), features) for key, one in data.items()}
        batches = make_batches(sizes, int(BATCH_SECONDS * SAMPLE_RATE), self.least_samples)
        found = dict(self.stream([(key, data[key]) for key in batch] for batch in batches))
        return [found[key] for key in data]

    @property
    def least_samples(self) -> int:
        """Samples that an utterance costs at least: a Whisper that pads computes its whole window, text a second."""
        encoder = self.model.encoder
        return encoder.features.n_samples if getattr(encoder, "pad_to_30s", False) else SAMPLE_RATE

    def stream(self, batches: Iterable[list[tuple[str, dict]]]) -> Iterator[tuple[str, list[Hypothesis]]]:
        """The n-best of utterances as they finish, not in order.

        Args:
            batches: utterances that are encoded together: (key, what `LLMSTPreprocessor` takes). All are of one task
                and direction; the longest first is fastest.
        """
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            return
        shared = self._shared(first[0][1])
        for key, nbest in self.searcher.decode(self._prompts(chain([first], batches), shared), shared):
            yield key, [_hypothesis(self.preprocess.tokenizer, ids, score) for ids, score in nbest]

    @torch.inference_mode()
    def _shared(self, data: dict) -> torch.Tensor | None:
        """Embeddings of the text before the speech, which is the same for every utterance of a set."""
        prompt = self.preprocess.template.tasks[data["task"].split()[0]]["prompt"]
        prefix = torch.from_numpy(self.preprocess("", data)["prefix"]).to(self.device)
        if isinstance(self.model.decoder, Seq2SeqLMDecoder) or "{transcript}" in prompt.partition(SPEECH)[0]:
            return None
        if len(prefix) < SHORTEST_SHARED:
            return None
        with self.autocast():
            return self.model.decoder.embed(prefix)

    @torch.inference_mode()
    def _prompts(self, batches: Iterable[list[tuple[str, dict]]], shared: torch.Tensor | None) -> Iterator[Prompt]:
        skipped, rate = 0 if shared is None else len(shared), self.options.max_tokens_per_second
        for batch in batches:
            for key, state, samples in self._states([(key, self.preprocess("", data)) for key, data in batch]):
                limit = max(1, math.ceil(rate * samples / SAMPLE_RATE)) if rate and samples else None
                yield Prompt(key, state[skipped:].clone(), limit)

    def _states(self, batch: list[tuple[str, dict]]) -> list[tuple[str, torch.Tensor, int]]:
        """Key, states (L, D) and samples of speech of each utterance; in halves when there is no memory for all."""
        keys, arrays = collate(batch)
        arrays = {name: tensor.to(self.device) for name, tensor in arrays.items()}
        try:
            with self.autocast():
                states = self.model.decoder.states_of(self.model.embed_prompts(**arrays))
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise InputError(f"{keys[0]}: out of memory in the encoder with this utterance alone") from error
            states = None  # outside of here the error holds what it was computing with
        if states is None:
            torch.cuda.empty_cache()
            logging.warning("out of memory in the encoder: %d utterances are encoded in halves", len(batch))
            half = len(batch) // 2
            return self._states(batch[:half]) + self._states(batch[half:])
        lengths = [num_samples(length, arrays["speech"].dim() == 3) for length in arrays["speech_lengths"].tolist()]
        return list(zip(keys, states, lengths, strict=True))


def num_samples(length: int, features: bool) -> int:
    """Samples of speech of a length in samples, or in frames of features."""
    return samples_of(length) if features else length


def _speech(speech, axes: int) -> list[np.ndarray]:
    """One utterance or several, as float arrays (S,), or (F, M) with two axes."""
    if isinstance(speech, str):
        raise InputError(f"speech: '{speech}' is text; read the file, e.g. with soundfile, and give its samples")
    single = getattr(speech, "ndim", None) == axes
    waves = [np.asarray(wave) for wave in ([speech] if single else speech)]
    for wave in waves:
        if wave.ndim != axes or len(wave) == 0 or not np.issubdtype(wave.dtype, np.floating):
            one = "one-dimensional float samples at 16 kHz between -1 and 1"
            raise InputError(f"speech: {one if axes == 1 else 'float features (frames, features)'} are expected")
    return waves


def _hypothesis(tokenizer, ids: list[int], score: float) -> Hypothesis:
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    tokens = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)  # tables may be larger than the tokenizer
    return Hypothesis(ids, score, [f"<{number}>" if token is None else token for number, token in tokens], text)


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


def make_batches(sizes: dict[str, int], batch_samples: int, least: int = 1) -> Iterator[list[str]]:
    """Utterances, longest first, in batches of at most ``batch_samples`` samples with padding, each of ``least``."""
    batch: list[str] = []
    for utt in sorted(sizes, key=lambda utt: (-sizes[utt], utt)):
        if batch and max(least, sizes[batch[0]]) * (len(batch) + 1) > batch_samples:
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


def read_speech(table: Path, place: str, utt: str) -> np.ndarray:
    """A waveform (S,) of a wav.scp, or features (F, M) of a feats.scp, as float32."""
    if table.name == "wav.scp":
        return read_wave(place, utt)
    try:
        return read_matrix(place).astype(np.float32)
    except AudioError as error:
        raise InputError(f"{place}: features of {utt} cannot be read ({error}); run stage 3 again") from error


def decode_dir(
    speech2text: Speech2Text,
    data_dir: Path,
    task: str,
    src: str,
    tgt: str,
    *,
    batch_seconds: float = BATCH_SECONDS,
    job: int = 1,
    num_jobs: int = 1,
    shuffle_audio: int | None = None,
    transcriber: Recogniser | None = None,
    finished: Collection[str] = (),
) -> Iterator[tuple[str, list[Hypothesis], str | None]]:
    """Decode this job's share of a formatted data directory.

    It goes in waves of `WAVE` times the engine's rows, the longest utterances first. What is decoded together with
    an utterance decides the last digits of its score, so a wave that is not finished is decoded as a whole: a decode
    that was killed and continued writes what an undisturbed one does, bit for bit.

    Args:
        batch_seconds: speech that is encoded at a time, padding included.
        job: 1-based; jobs take every ``num_jobs``-th utterance.
        shuffle_audio: seed of the control in which each utterance gets another one's audio.
        transcriber: writes the transcripts that the prompts show (cascade); None takes the set's own.
        finished: utterances that are there already.

    Yields:
        Utterance, n-best and the transcriber's transcript, as they finish.
    """
    table = speech_table(data_dir)
    waves = read_table(table)
    if transcriber and table.name == "feats.scp":
        raise InputError(f"{table}: asr_model reads waveforms; prepare audio (--feats_type raw)")
    audio_of = other_audio(list(waves), shuffle_audio) if shuffle_audio is not None else {u: u for u in waves}
    shown = shown_transcripts(speech2text.preprocess.template, task, data_dir, src, transcriber)
    sizes = sizes_of_share(data_dir, job, num_jobs, audio_of)
    heard: dict[str, str] = {}

    def batches(wave: dict[str, int]) -> Iterator[list[tuple[str, dict]]]:
        for batch in make_batches(wave, int(batch_seconds * SAMPLE_RATE), speech2text.least_samples):
            speech = [read_speech(table, waves[audio_of[utt]], audio_of[utt]) for utt in batch]
            if transcriber:
                heard.update(zip(batch, transcriber(speech, src), strict=True))
            texts = heard if transcriber else shown
            name = f"{task} {src} {src if task == 'asr' else tgt}"
            data = [
                {"speech": s, "task": name, "transcript": texts.get(u, "")} for u, s in zip(batch, speech, strict=True)
            ]
            yield list(zip(batch, data, strict=True))

    done = sum(utt in finished for utt in sizes)
    speech_seconds, started = 0.0, time.monotonic()
    with tqdm(total=len(sizes), initial=done, desc=data_dir.name, unit="utt", disable=None) as bar:
        for wave in unfinished_waves(sizes, WAVE * speech2text.searcher.engine.rows, finished):
            lacking = set(wave)
            for utt, nbest in speech2text.stream(batches(wave)):
                lacking.remove(utt)
                transcript = heard.pop(utt, None)
                if utt not in finished:
                    speech_seconds += sizes[utt] / SAMPLE_RATE
                    bar.update()
                    bar.set_postfix(rtf=f"{(time.monotonic() - started) / speech_seconds:.4f}", refresh=False)
                    yield utt, nbest, transcript
            if lacking:
                raise RuntimeError(f"{data_dir}: the search gave nothing for {len(lacking)} utterances: {min(lacking)}")


def unfinished_waves(sizes: dict[str, int], wave: int, finished: Collection[str]) -> Iterator[dict[str, int]]:
    """Utterances in groups of ``wave``, the longest first; whole groups, without those that are all finished."""
    order = sorted(sizes, key=lambda utt: (-sizes[utt], utt))
    for start in range(0, len(order), wave):
        utts = order[start : start + wave]
        if not all(utt in finished for utt in utts):
            yield {utt: sizes[utt] for utt in utts}


def sizes_of_share(data_dir: Path, job: int, num_jobs: int, audio_of: dict[str, str] | None = None) -> dict[str, int]:
    """Samples of what each utterance of a job's share is decoded from."""
    samples = read_table(data_dir / "utt2num_samples")
    mine = sorted(samples)[job - 1 :: num_jobs]
    return {utt: int(samples[audio_of[utt] if audio_of else utt]) for utt in mine}


def shown_transcripts(
    template: Template, task: str, data_dir: Path, src: str, transcriber: Recogniser | None
) -> dict[str, str]:
    """The set's transcripts when the task's prompt shows them and no transcriber is to write them."""
    shows = "{transcript}" in template.tasks.get(task, {}).get("prompt", "")
    if transcriber and not shows:
        raise InputError(f"asr_model: the prompt of '{task}' in {template.path} shows no transcript; decode smt or mt")
    return read_text(data_dir, src) if shows and not transcriber else {}
