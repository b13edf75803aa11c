"""Any transformers causal language model as an ESPnet decoder that reads embeddings.

Shapes: B batch, L prompt length, Y target length, D width, N target tokens of the batch, V vocabulary.
"""

import importlib.util
from collections.abc import Sequence

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache, GenerationConfig
from typeguard import typechecked

from espnet_llmst.cli import InputError
from espnet_llmst.decoder.packing import PACKED, segments
from espnet_llmst.foundation import require_model
from espnet_llmst.lora import add_lora
from espnet_llmst.prompt import load_tokenizer


class CausalLMDecoder(AbsDecoder):
    """Llama, TinyLlama, Qwen and every other ``AutoModelForCausalLM``.

    Args:
        model: hub id or local ``save_pretrained`` directory.
        lora: ``{r, alpha, dropout, targets}``, see `espnet_llmst.lora.add_lora`; None for none.
        dtype: of the weights.
        added_tokens: special tokens for prompts, e.g. around the speech (LST). They have a table of their
            own, ``decoder.added`` in ``trainable:``, and start as the mean embedding; the model never
            writes them.
        quantize: "nf4" keeps the frozen linear layers in 4 bits, doubly quantised, and computes in ``dtype``
            (QLoRA; LLaST's code). Needs the package bitsandbytes; trains through ``lora`` only.
        attention: transformers' ``attn_implementation`` for training, e.g. "flash_attention_2" or "eager";
            None for its own choice. The search has an attention of its own.
        packing: training reads the prompts and targets of a batch laid end to end instead of padded. The loss is the
            same; it pays where a batch holds very different lengths. See `espnet_llmst.decoder.packing`.

    Raises:
        InputError: no model there, an unknown ``quantize``, bitsandbytes is missing, or a model or ``attention``
            that cannot keep packed sequences apart.
    """

    @typechecked
    def __init__(
        self,
        model: str,
        lora: dict | None = None,
        dtype: str = "float32",
        added_tokens: Sequence[str] | None = None,
        quantize: str | None = None,
        attention: str | None = None,
        packing: bool = False,
    ) -> None:
        super().__init__()
        require_model(model)
        self.packing = packing
        self.lm = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, dtype),
            quantization_config=quantization(quantize, dtype),
            attn_implementation=attention or (PACKED if packing else None),
        )
        if packing:
            check_packing(self.lm, attention)
        self.packs_apart = attention is not None  # else it is tried at the first packed batch
        self.added = None
        if added_tokens:
            self.first_added = len(load_tokenizer(model))
            mean_D = self.lm.get_input_embeddings().weight.detach().float().mean(0)
            self.added = torch.nn.Embedding.from_pretrained(mean_D.repeat(len(added_tokens), 1), freeze=False)
        if lora:
            add_lora(self.lm, **lora)

    @property
    def hidden_size(self) -> int:
        """Width D of the embeddings."""
        return self.lm.get_input_embeddings().embedding_dim

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) to embeddings (..., D)."""
        table = self.lm.get_input_embeddings()
        if self.added is None:
            return table(ids)
        ours = ids >= self.first_added
        embeds = table(ids.masked_fill(ours, 0))
        added = self.added((ids - self.first_added).clamp(min=0))
        return torch.where(ours[..., None], added.to(embeds.dtype), embeds)

    def scale_text(self, prompt_LD: torch.Tensor) -> torch.Tensor:
        """Embeddings of a prompt without speech as the model reads its own text: the same."""
        return prompt_LD

    def forward(
        self, hs_pad: torch.Tensor, hlens: torch.Tensor, ys_in_pad: torch.Tensor, ys_in_lens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the target tokens, computed at the positions that predict one and nowhere else.

        Args:
            hs_pad: prompt embeddings (B, L, D), padded on the right.
            hlens: their lengths (B,).
            ys_in_pad: target tokens, the end of sequence included (B, Y).
            ys_in_lens: their lengths (B,).

        Returns:
            Logits (N, V) of all target tokens in reading order, and ``ys_in_lens``.
        """
        targets_BYD = self.embed(ys_in_pad)
        lengths = list(zip(hlens.tolist(), ys_in_lens.tolist(), strict=True))
        rows = [
            torch.cat([prompt[:before], target[:after]])
            for prompt, target, (before, after) in zip(hs_pad, targets_BYD, lengths, strict=True)
        ]
        positions = torch.arange(max(map(len, rows)), device=hs_pad.device)
        predicts_BL = (positions >= hlens[:, None] - 1) & (positions < (hlens + ys_in_lens)[:, None] - 1)
        if self.packing:
            if not self.packs_apart:
                self.packs_apart = require_apart(self.lm)
            sizes = [len(row) for row in rows]
            embeds_BLD, options = torch.cat(rows)[None], segments(sizes, hs_pad.device)  # here B is 1 and L is S
            predicts_BL = torch.cat([row[:size] for row, size in zip(predicts_BL, sizes, strict=True)])[None]
        else:
            embeds_BLD, options = (
                pad_sequence(rows, batch_first=True),
                {},
            )  # causal attention never looks right: no mask
        output = self.lm(inputs_embeds=embeds_BLD, use_cache=False, logits_to_keep=predicts_BL, **options)
        return output.logits, ys_in_lens

    def states_of(self, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the search starts from: the prompts (L, D) themselves."""
        return prompts

    def generate(self, prompts: list[torch.Tensor], config: GenerationConfig):
        """transformers' ``generate`` on prompts (L, D); padded on the left, so that all end together.

        Each prompt is computed once, not once per beam.
        """
        length = max(len(prompt) for prompt in prompts)
        embeds_BLD = prompts[0].new_zeros(len(prompts), length, prompts[0].size(-1))
        mask_BL = torch.zeros(len(prompts), length, dtype=torch.long, device=embeds_BLD.device)
        for row, prompt in enumerate(prompts):
            embeds_BLD[row, length - len(prompt) :] = prompt
            mask_BL[row, length - len(prompt) :] = 1
        cache = DynamicCache(config=self.lm.config)
        if not all(hasattr(layer, "batch_repeat_interleave") for layer in cache.layers):
            cache = None  # recurrent layers cannot be repeated for the beams
        elif length > 1:
            positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
            self.lm(
                inputs_embeds=embeds_BLD[:, :-1],
                attention_mask=mask_BL[:, :-1],
                position_ids=positions_BL[:, :-1],
                past_key_values=cache,
                logits_to_keep=1,
            )
            cache.batch_repeat_interleave(config.num_beams)
        return self.lm.generate(
            inputs_embeds=embeds_BLD, attention_mask=mask_BL, past_key_values=cache, generation_config=config
        )


def check_packing(lm: torch.nn.Module, attention: str | None) -> None:
    """Refuse an attention that cannot be packed; raises InputError, see `CausalLMDecoder`."""
    if attention is not None and not attention.startswith("flash_attention"):
        raise InputError(f"decoder_conf.packing: not with attention: {attention}; remove it or take flash_attention_2")
    if not lm._supports_attention_backend:
        raise InputError(f"decoder_conf.packing: {type(lm).__name__} has an attention of its own; set it to false")


@torch.no_grad()
def require_apart(lm: torch.nn.Module) -> bool:
    """Refuse a model in which a packed sequence reads the one before it, by trying; True when it does not."""
    sizes, modes = [4, 3], {module: module.training for module in lm.modules()}
    ids_S = torch.arange(sum(sizes), device=lm.device) % lm.config.get_text_config().vocab_size
    embeds_BSD = lm.get_input_embeddings()(ids_S)[None]
    other_BSD = torch.cat([embeds_BSD[:, : sizes[0]].flip(1), embeds_BSD[:, sizes[0] :]], dim=1)
    lm.eval()
    alone = lm(inputs_embeds=embeds_BSD[:, sizes[0] :], use_cache=False).logits[0].float()
    packed, behind_other = (
        lm(inputs_embeds=inputs, use_cache=False, **segments(sizes, lm.device)).logits[0, sizes[0] :].float()
        for inputs in (embeds_BSD, other_BSD)
    )
    for module, mode in modes.items():
        module.training = mode
    exact = lm.dtype == torch.float32 and not torch.is_autocast_enabled(lm.device.type)
    rounding, scale = (1e-5 if exact else 1e-2), alone.norm()  # experts see other batches, and round otherwise
    if (packed - behind_other).norm() > rounding * scale or (packed - alone).norm() > 0.1 * scale:
        raise InputError(
            f"decoder_conf.packing: {type(lm).__name__} reads a sequence behind another one, packed, differently than"
            " alone, as convolutions and recurrent layers do; set it to false"
        )
    return True


def quantization(kind: str | None, dtype: str) -> BitsAndBytesConfig | None:
    """transformers' settings for ``quantize:``, None for none; raises InputError, see `CausalLMDecoder`."""
    if kind is None:
        return None
    if kind != "nf4":
        raise InputError(f"decoder_conf.quantize: '{kind}' must be nf4 or null")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("decoder_conf.quantize: nf4 needs bitsandbytes: pip install bitsandbytes, or set it to null")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
