"""ESPnetLLMSTModel: speech encoder, connector and language model joined; speech + prompt + target -> loss.

Shapes: B batch, S samples, T speech vectors, P prompt tokens, Y target tokens, D width,
N target tokens of the batch, V vocabulary.
"""

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.postencoder.abs_postencoder import AbsPostEncoder
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from typeguard import typechecked

from espnet_llmst.cli import InputError
from espnet_llmst.encoder.cache import StateCache
from espnet_llmst.lora import fixed_names, set_train_mode
from espnet_llmst.precision import autocast, is_mixed
from espnet_llmst.recompute import recompute_layers


class ESPnetLLMSTModel(AbsESPnetModel):
    """A language model that reads speech.

    Args:
        encoder: waveform to hidden states; None, and no postencoder either, for a model that reads text only (mt).
        postencoder: the connector, hidden states to vectors of the language model's width.
        decoder: the language model.
        autocast: "float32", "bfloat16" (mixed precision) or "auto", see `espnet_llmst.precision`.
        cache_encoder: folder for the states of a frozen encoder: training computes them once and reads them from
            then on, see `espnet_llmst.encoder.cache`. None for no cache.
        gradient_checkpointing: compute the transformer layers again in the backward pass instead of keeping what is in
            them, see `espnet_llmst.recompute`: a third more work, many times less memory.

    A checkpoint (``state_dict``) holds what is trained, and what an earlier phase trained; frozen
    foundation weights are left out. Loading is strict for all the rest.
    """

    @typechecked
    def __init__(
        self,
        encoder: AbsEncoder | None,
        postencoder: AbsPostEncoder | None,
        decoder: AbsDecoder,
        autocast: str = "float32",
        cache_encoder: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.postencoder, self.decoder = encoder, postencoder, decoder
        is_mixed(torch.device("cpu"), autocast)  # refuses an unknown name
        self.precision, self.cache_folder = autocast, cache_encoder
        self.cache: StateCache | None = None
        self.placed_later = False  # `to` leaves the device alone: fsdp brings its parts there
        if gradient_checkpointing:
            recompute_layers(self)
        self.loaded: set[str] = set()  # names that came from a checkpoint: trained by an earlier phase
        self.register_state_dict_post_hook(_drop_foundation)
        self.register_load_state_dict_post_hook(_forgive_foundation)

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        prefix: torch.Tensor,
        prefix_lengths: torch.Tensor,
        suffix: torch.Tensor,
        suffix_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        **kwargs,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Cross-entropy on the target tokens.

        Args:
            speech: waveforms at 16 kHz (B, S), or features (B, F, M); a length of 0 means a prompt without speech (mt).
            prefix: prompt tokens before the speech (B, P).
            suffix: prompt tokens after the speech (B, P).
            text: target tokens, the end of sequence included (B, Y).

        Returns:
            Mean loss per target token, statistics, and the number of target tokens as weight, so that
            averages over batches and ranks are averages over tokens.
        """
        with autocast(speech.device, self.precision):
            nothing = 0.0 if speech_lengths.any() else self._read_silence(speech)  # now, when others read speech
            prompts = self.embed_prompts(
                speech, speech_lengths, prefix, prefix_lengths, suffix, suffix_lengths, self._open_cache()
            )
            lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=speech.device)
            logits_NV, _ = self.decoder(pad_sequence(prompts, batch_first=True), lengths_B, text, text_lengths)
        target_N = torch.cat(_cut(text, text_lengths))
        loss = cross_entropy(logits_NV.float(), target_N) + nothing
        accuracy = (logits_NV.argmax(-1) == target_N).float().mean()
        stats = {"loss": loss.detach(), "acc": accuracy}
        return force_gatherable((loss, stats, loss.new_tensor(len(target_N))), loss.device)

    def embed_prompts(
        self, speech, speech_lengths, prefix, prefix_lengths, suffix, suffix_lengths, cache: StateCache | None = None
    ) -> list[torch.Tensor]:
        """Embeddings (L, D) of each utterance's prefix, speech and suffix; arguments as in ``forward``."""
        spoken = speech_lengths.nonzero()[:, 0].tolist()
        vectors = dict(zip(spoken, self._read_speech(speech[spoken], speech_lengths[spoken], cache), strict=True))
        befores = _cut(self.decoder.embed(prefix), prefix_lengths)
        afters = _cut(self.decoder.embed(suffix), suffix_lengths)
        prompts = []
        for row, (before, after) in enumerate(zip(befores, afters, strict=True)):
            if row in vectors:
                prompts.append(torch.cat([before, vectors[row].to(before.dtype), after]))
            else:
                prompts.append(self.decoder.scale_text(before))
        return prompts

    def _read_speech(self, speech_BS, lengths_B: torch.Tensor, cache: StateCache | None) -> list[torch.Tensor]:
        if not len(lengths_B):
            return []
        if self.encoder is None:
            raise InputError("this model has no encoder: it reads text only, by the task mt")
        if speech_BS.dim() == 3 and not getattr(self.encoder, "reads_features", False):
            raise InputError("the data has features, but the encoder reads waveforms: prepare audio (--feats_type raw)")
        if cache is None:
            states_BTD, lengths_B, _ = self.encoder(speech_BS, lengths_B)
        else:
            states_BTD, lengths_B = cache(self.encoder, speech_BS, lengths_B)
        return _cut(*self.postencoder(states_BTD, lengths_B))

    def _read_silence(self, speech_BS: torch.Tensor) -> torch.Tensor | float:
        """Zero, by way of encoder and connector if one of them is trained, for a batch without speech.

        Processes that train together must use the same parameters in every batch, or they wait for each other for ever.
        """
        parts = [part for part in (self.encoder, self.postencoder) if part is not None]
        if not any(p.requires_grad for part in parts for p in part.parameters()):
            return 0.0
        length = 16000 if speech_BS.dim() == 2 else 100  # a second
        silence_BS = speech_BS.new_zeros(1, length, *speech_BS.shape[2:])
        (vectors_TD,) = self._read_speech(silence_BS, torch.tensor([length], device=speech_BS.device), None)
        return 0.0 * vectors_TD.float().sum()

    def _open_cache(self) -> StateCache | None:
        if self.cache is None and self.cache_folder is not None and self.encoder is not None:
            if any(p.requires_grad for p in self.encoder.parameters()):
                raise InputError("model_conf.cache_encoder: the encoder is trained, so its states change; remove it")
            device = next(self.encoder.parameters()).device
            self.cache = StateCache(self.cache_folder, self.encoder, str(is_mixed(device, self.precision)))
        return self.cache

    def collect_feats(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """The waveform: there is nothing else to collect statistics of."""
        return {"feats": batch["speech"][..., None], "feats_lengths": batch["speech_lengths"]}

    def train(self, mode: bool = True) -> "ESPnetLLMSTModel":
        """Training mode reaches what is trained; the frozen rest stays in eval mode."""
        super().train(mode)
        if self.cache is not None:  # an epoch or its validation begins
            self.cache.flush()
        if mode:
            for part in self.children():  # not itself: that would come back here where all is trained
                set_train_mode(part)
        return self

    def to(self, *args, **kwargs) -> "ESPnetLLMSTModel":
        """Like ``Module.to``, but a dtype given by keyword changes trainable parameters only.

        ESPnet's task asks for ``dtype=train_dtype``; a language model loaded in bfloat16 stays so.
        """
        dtype = kwargs.pop("dtype", None)
        if dtype is not None:
            for parameter in self.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
        if self.placed_later:
            kwargs.pop("device", None)
        return super().to(*args, **kwargs) if args or kwargs else self

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Load a checkpoint; a key that is missing or unknown is an error when ``strict``."""
        result = super().load_state_dict(state_dict, strict, assign)
        self.loaded.update(state_dict)
        return result


def foundation_names(model: ESPnetLLMSTModel) -> set[str]:
    """State that comes from the foundation models as published: neither trained nor loaded."""
    trained: set[str] = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        keep = [name for name, p in own.items() if p.requires_grad]
        keep += [name for name, _ in module.named_buffers(recurse=False)] if keep else []
        trained.update(f"{prefix}.{name}" if prefix else name for name in keep)
    everything = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    everything.update(name for name, _ in model.named_buffers())
    return everything - trained - model.loaded


def refuse_random(model: ESPnetLLMSTModel) -> None:
    """Raise InputError for weights that start at random and that a phase neither trains nor has loaded.

    No checkpoint would keep them, and decoding would draw others.
    """
    parts = ("postencoder.", "decoder.") if getattr(model.decoder, "random_init", False) else ("postencoder.",)
    parameters = {name for name, _ in model.named_parameters()} - fixed_names(model)
    lost = sorted(name for name in foundation_names(model) & parameters if name.startswith(parts))
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise InputError(f"trainable: {lost[0]}{more} are random, neither trained nor loaded; add them, or init_from")


def _drop_foundation(model, state_dict, prefix, local_metadata) -> None:
    frozen = foundation_names(model)
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        # 4-bit weights add keys below their own.
        if name in frozen or f"{name.partition('.weight.')[0]}.weight" in frozen:
            del state_dict[key]


def _forgive_foundation(model, incompatible) -> None:
    frozen = foundation_names(model)
    # In place: a strict load then complains about what remains.
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in frozen]


def _cut(padded: torch.Tensor, lengths_B: torch.Tensor) -> list[torch.Tensor]:
    return [row[:length] for row, length in zip(padded, lengths_B.tolist(), strict=True)]
