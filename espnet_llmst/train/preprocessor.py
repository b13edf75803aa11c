"""Turns one example of a data set into the arrays the model reads (no espnet2 preprocessor: it wants nltk)."""

from collections.abc import Sequence

import numpy as np

from espnet_llmst.prompt import encode_prompt, encode_target, load_template, load_tokenizer, render_prompt

CHANNELS = 8  # a second axis of at most so many is channels of a waveform; features of a frame are more


class LLMSTPreprocessor:
    """Prompt and target to token ids.

    Args:
        tokenizer: hub id or directory of the language model.
        added_tokens: appended to its vocabulary.
        prompt: path of the prompt template.
        train: False at decoding time, where a target may be absent.

    The tokenizer is loaded on first use, so that the object can be sent to worker processes.
    """

    def __init__(self, tokenizer: str, prompt: str, train: bool = True, added_tokens: Sequence[str] = ()) -> None:
        self.name, self.added_tokens = tokenizer, added_tokens
        self.template, self.train = load_template(prompt), train
        self._tokenizer = None

    @property
    def tokenizer(self):
        """The transformers tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.name, self.added_tokens)
        return self._tokenizer

    def __call__(self, uid: str, data: dict) -> dict[str, np.ndarray]:
        """Arrays of one utterance.

        Args:
            uid: utterance id.
            data: ``speech`` (S,), (S, channels) or features (F, M); ``task`` "<task> <src> <tgt>"; ``text`` the target;
                ``transcript`` for tasks that show it to the model.

        Returns:
            ``speech`` float32 (S,) or (F, M), of length 0 for mt; ``prefix``, ``suffix`` and (with a target) ``text``
            as int64 ids.
        """
        task, src, tgt = data["task"].split()
        sides = render_prompt(self.template, self.tokenizer, task, src, tgt, data.get("transcript", ""))
        prefix, suffix = encode_prompt(self.tokenizer, *sides)
        speech = np.asarray(data["speech"], dtype=np.float32)
        if speech.ndim == 2 and speech.shape[1] <= CHANNELS:
            speech = speech.mean(1)
        arrays = {
            "speech": speech[:0] if task == "mt" else speech,
            "prefix": np.array(prefix, dtype=np.int64),
            "suffix": np.array(suffix, dtype=np.int64),
        }
        if self.train:
            arrays["text"] = np.array(encode_target(self.tokenizer, data["text"]), dtype=np.int64)
        return arrays

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tokenizer": None}
