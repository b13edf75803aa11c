"""Causal attention inside each segment of a packed sequence: sequences laid end to end, without padding or a mask.

Registered with transformers under `PACKED`. A forward pass that names segments (transformers' own ``cu_seq_lens_q`` and
its companions) attends inside them: on a GPU in half precision through torch's kernel for sequences of any length, else
segment by segment. Without segments it is transformers' own attention. A mask of all pairs of positions is never made.

Shapes: S positions of the sequence, H heads, G key-value heads, E width of a head.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from espnet_llmst.cli import InputError

PACKED = "espnet_llmst_packed"


def segments(lengths: list[int], device: torch.device) -> dict:
    """Keyword arguments by which a language model reads one sequence (1, S) as segments of these lengths."""
    ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    return {
        "position_ids": torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """The attention function of transformers' interface: (1, H, S, E) and (1, G, S, E) twice to (1, S, H, E).

    Raises:
        InputError: a soft cap, sinks, or a sliding window shorter than a segment.
    """
    ends, longest = options.get("cu_seq_lens_q"), options.get("max_length_q")
    if ends is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    extra = options.get("softcap") is not None or options.get("s_aux") is not None
    if extra or (options.get("sliding_window") or longest) < longest:
        raise InputError(
            "decoder_conf.packing: this language model's attention has a soft cap, sinks or a window; remove it"
        )
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _by_kernel(query, key, value, ends, longest, scaling), None
    grouped = {"enable_gqa": True} if key.size(1) != query.size(1) else {}
    sizes = ends.diff().tolist()
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scaling, **grouped)
        for q, k, v in zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _by_kernel(query, key, value, ends, longest: int, scaling: float | None) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # here: not every torch has it

    share = query.size(1) // key.size(1)
    query_SHE, key_SHE, value_SHE = (
        tensor[0].transpose(0, 1).contiguous()
        for tensor in (query, key.repeat_interleave(share, 1), value.repeat_interleave(share, 1))
    )
    mixed_SHE = varlen_attn(
        query_SHE, key_SHE, value_SHE, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0)
    )
    return mixed_SHE[None]


def _mask(*, attention_mask=None, allow_is_causal_skip=True, **options):
    """None for packed segments, which transformers recognises by their positions; else as with its own attention."""
    if attention_mask is None and not allow_is_causal_skip and options["q_length"] == options["kv_length"]:
        return None
    return sdpa_mask(attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **options)


AttentionInterface.register(PACKED, attention)
AttentionMaskInterface.register(PACKED, _mask)
