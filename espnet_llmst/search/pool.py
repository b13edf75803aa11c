"""Keys and values of the decoding engine: a prompt's once, a generated token's once, both shared by all beams.

An utterance is one row of the batch and its K beams are K query positions of that row. What the beams generate lies in
a pool of K positions a step that is never re-ordered: a mask says which positions are a beam's ancestors. The language
model's own modules run unchanged; only their attention function is ours while the engine is at work.

Shapes: Y layers, N utterances (rows), K beams, P prompt positions, S pool positions (K each step), F positions of the
shared beginning, H heads, G key-value heads, E width of a head, Q queries of a row (beams times heads that share keys).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface, Cache
from transformers.cache_utils import CacheLayerMixin, EncoderDecoderCache

ATTENTION = "espnet_llmst_beams"
GROWTH = 16  # steps by which the pool grows
WIDTH = 64  # prompt positions to whose multiple an extent is rounded
ALIGNED = 8  # the same of the storage: a GPU's fast products want it
_active: list["KVPool"] = []  # the pool at work; transformers offers no way to hand it through every model


class UnsupportedModelError(RuntimeError):
    """An attention that the engine does not compute (soft cap, window shorter than the text)."""


class Extent(NamedTuple):
    """What one step computes and reads: so many rows, and so much of each row's storage.

    Args:
        rows: N.
        prompt: P, without the shared beginning.
        steps: of the pool, the new one included.
        cross: positions of encoder states (seq2seq models).
    """

    rows: int
    prompt: int
    steps: int
    cross: int = 0


class _Layer(CacheLayerMixin):
    """What a model's layer sees: it writes its new keys and values and asks for nothing else."""

    is_sliding = False

    def __init__(self, pool: "KVPool", index: int) -> None:
        super().__init__()
        self.pool, self.index = pool, index

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None: ...

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        self.pool.write(self.index, key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _copy_row(stored_YNGPE: list[torch.Tensor], source: int, target: int, positions: int) -> None:
    """Copy the first positions of one row over another's, in all layers."""
    for tensor in stored_YNGPE:
        tensor[:, target, :, :positions] = tensor[:, source, :, :positions]


class KVPool(Cache):
    """Storage for at most ``rows`` utterances; those at work occupy the rows from 0 to ``live``.

    Args:
        num_layers: of the language model (its decoder).
        rows: utterances at a time.
        beams: K.
        prompt_size: longest prompt, without the shared beginning.
        device: of everything.
    """

    def __init__(self, num_layers: int, rows: int, beams: int, prompt_size: int, device: torch.device) -> None:
        super().__init__(layers=[_Layer(self, index) for index in range(num_layers)])
        self.rows, self.beams, self.prompt_size, self.device = rows, beams, _multiple(prompt_size, ALIGNED), device
        self.prompt_YNGPE: list[torch.Tensor] = []  # keys, values
        self.pool_YNGSE: list[torch.Tensor] = []
        self.shared_GFE: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        self.cross: CrossStates | None = None
        self.prompt_N = torch.zeros(rows, dtype=torch.long, device=device)  # lengths
        self.step_N = torch.zeros(rows, dtype=torch.long, device=device)
        self.prompts, self.steps = [0] * rows, [0] * rows  # the same, where no GPU has to be asked
        self.ancestor_NKS = torch.zeros(rows, beams, 0, dtype=torch.bool, device=device)
        self.live, self.target, self.shared_size = 0, slice(0, 0), 0
        self.live_1 = torch.zeros(1, dtype=torch.long, device=device)  # for steps that ask nothing of the host
        self.used = Extent(0, 0, 0)  # by the step that is computed
        self.window: int | None = None  # the shortest that a layer looks through
        self.phase = "prefill"  # or "share", "decode"
        self.writing: int | None = None  # layer whose self-attention comes next
        self.row_bias: torch.Tensor | None = None

    def release(self) -> None:
        """Give the storage back at once: a pool and its layers hold each other until garbage is collected."""
        self.prompt_YNGPE.clear()
        self.pool_YNGSE.clear()
        self.shared_GFE.clear()
        self.cross = None

    def bytes_in_use(self) -> int:
        """What the keys and values of the rows at work take (not what is allocated)."""
        if not self.prompt_YNGPE:
            return 0
        positions = sum(self.prompts[: self.live]) + self.beams * sum(self.steps[: self.live]) + self.shared_size
        return sum(t[:, 0, :, :1].numel() * t.element_size() for t in self.prompt_YNGPE) * positions

    # -- storage ------------------------------------------------------------------------------------------------

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store new keys and values (rows, G, positions, E) of a layer, by the phase."""
        self.writing = layer
        if self.phase == "share":
            if self.shared_GFE[layer]:  # of an earlier decode: what was captured reads this storage
                for old, new in zip(self.shared_GFE[layer], (key[0], value[0]), strict=True):
                    old.copy_(new)
            else:
                self.shared_GFE[layer] = [key[0], value[0]]
            return
        if not self.prompt_YNGPE:  # all layers in one tensor: a row is moved by one copy
            rows = (len(self.layers), self.rows, key.size(1))
            self.prompt_YNGPE = [t.new_zeros(*rows, self.prompt_size, t.size(-1)) for t in (key, value)]
            self.pool_YNGSE = [t.new_zeros(*rows, self.ancestor_NKS.size(2), t.size(-1)) for t in (key, value)]
        for kind, new in enumerate((key, value)):
            if self.phase == "prefill":
                stored = self.prompt_YNGPE[kind]
                if (stored.size(2), stored.size(4)) != (new.size(1), new.size(3)):
                    raise UnsupportedModelError("layers with different numbers or sizes of heads")
                stored[layer, self.target, :, : new.size(2)] = new
            elif self.common_step is not None:  # all rows are at the same step: a plain copy
                at = self.common_step * self.beams
                self.pool_YNGSE[kind][layer, : self.used.rows, :, at : at + self.beams] = new
            else:
                index = self.slot_NK[:, None, :, None].expand(new.shape)
                self.pool_YNGSE[kind][layer, : self.used.rows].scatter_(2, index, new)

    def reserve(self, steps: int) -> bool:
        """Make room for so many steps; whether the pool was moved for it."""
        missing = steps * self.beams - self.ancestor_NKS.size(2)
        if missing <= 0:
            return False
        missing = _multiple(missing, GROWTH * self.beams)
        self.ancestor_NKS = functional.pad(self.ancestor_NKS, (0, missing))
        for kind, tensor in enumerate(self.pool_YNGSE):  # one by one: both at once would take more memory
            self.pool_YNGSE[kind] = functional.pad(tensor, (0, 0, 0, missing))
        return True

    def admit(self, lengths: list[int]) -> None:
        """The rows behind those at work now hold prompts of these lengths."""
        rows = self.target
        self.prompts[rows], self.steps[rows] = lengths, [0] * len(lengths)
        self.prompt_N[rows], self.step_N[rows] = torch.tensor(lengths, device=self.device), 0
        self.ancestor_NKS[rows] = False
        self.live = rows.stop

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        self.prompts[target], self.steps[target] = self.prompts[source], self.steps[source]
        prompt, steps = self.prompts[source], self.steps[source] * self.beams
        _copy_row(self.prompt_YNGPE, source, target, prompt)
        _copy_row(self.pool_YNGSE, source, target, steps)
        for tensor in (self.prompt_N, self.step_N, self.ancestor_NKS):
            tensor[target] = tensor[source].clone()
        if self.cross is not None:
            self.cross.move(source, target)

    # -- one step -----------------------------------------------------------------------------------------------

    def extent(self) -> Extent:
        """Of the rows at work, as far as the longest of each kind."""
        n, cross = self.live, 0 if self.cross is None else max(self.cross.lengths[: self.live])
        return Extent(n, max(self.prompts[:n]), max(self.steps[:n]) + 1, cross)

    def rounded(self) -> Extent:
        """The same, larger, so that few different ones occur."""
        n, prompt, steps, cross = self.extent()
        rows = 1 << (n - 1).bit_length() if n <= 8 else _multiple(n, 8)
        cross = 0 if self.cross is None else min(_multiple(cross, WIDTH), self.cross.size)
        prompt = min(_multiple(prompt, WIDTH), self.prompt_size)
        return Extent(min(rows, self.rows), prompt, _multiple(steps, GROWTH), cross)

    def begin_step(self) -> None:
        """Prepare one step of the rows at work."""
        n, extent = self.live, self.extent()
        self.reserve(extent.steps)
        first = min(self.steps[:n])
        self.common_step = first if first + 1 == extent.steps else None
        self._begin(extent, self.prompt_N[:n], self.step_N[:n], min(self.prompts[:n]) < extent.prompt)

    def begin_static_step(self, extent: Extent) -> None:
        """The same from tensors alone, for a step that is captured; rows behind those at work count as empty."""
        working_N = torch.arange(extent.rows, device=self.device) < self.live_1
        self.common_step = None
        prompt_N, step_N = self.prompt_N[: extent.rows] * working_N, self.step_N[: extent.rows] * working_N
        self._begin(extent, prompt_N, step_N, True)

    def _begin(self, extent: Extent, prompt_N: torch.Tensor, step_N: torch.Tensor, padded: bool) -> None:
        """Positions and masks of a step."""
        n, device = extent.rows, self.device
        self.used, self.phase, self.row_bias = extent, "decode", None
        self.slot_NK = step_N[:, None] * self.beams + torch.arange(self.beams, device=device)
        self.ancestor_NKS[:n].scatter_(2, self.slot_NK[:, :, None], True)  # a beam sees its own new position
        self.position_NK = (self.shared_size + prompt_N + step_N)[:, None].expand(n, self.beams)
        self.hidden_NP = torch.arange(extent.prompt, device=device) >= prompt_N[:, None] if padded else None
        self.hidden_NKS = ~self.ancestor_NKS[:n, :, : extent.steps * self.beams]
        if self.cross is not None:
            self.cross.show(n, extent.cross)

    def advance(self, parent_NK: torch.Tensor) -> None:
        """End the step: each beam goes on from its parent."""
        n, used = len(parent_NK), self.used.steps * self.beams
        chosen = self.ancestor_NKS[:n, :, :used].gather(1, parent_NK[:, :, None].expand(-1, -1, used))
        self.ancestor_NKS[:n, :, :used] = chosen
        self.step_N[:n] += 1

    def count_step(self) -> None:
        """The host's part of `advance`."""
        self.steps[: self.live] = [step + 1 for step in self.steps[: self.live]]

    def check_window(self, length: int | None = None) -> None:
        """Refuse texts of ``length`` positions, by default those of the next step, that a window would cut."""
        if self.window is None:
            return
        if length is None:
            length = max(self.prompts[: self.live]) + max(self.steps[: self.live]) + 1
        if self.shared_size + length > self.window:
            raise UnsupportedModelError(f"a sliding window of {self.window} positions, shorter than prompt and answer")

    def attend(
        self, layer: int, query_NHKE: torch.Tensor, scale: float, bias_NHKS: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention of the beams to their prompt and their ancestors; result (N, K, H, E)."""
        n, heads, beams, width = query_NHKE.shape
        keys, values = self._segments(layer)
        groups = keys[0].size(1)
        query_NGQE = query_NHKE.reshape(n, groups, heads // groups * beams, width)  # no key is repeated for its heads
        scores = [torch.matmul(query_NGQE, key.transpose(-1, -2)) * scale for key in keys]
        low = torch.finfo(scores[0].dtype).min  # under autocast another type than the query's
        if self.hidden_NP is not None:
            scores[-2].masked_fill_(self.hidden_NP[:, None, None], low)
        hidden_NQS = self.hidden_NKS.repeat(1, heads // groups, 1)
        scores[-1].masked_fill_(hidden_NQS[:, None], low)
        scores_NGQL = torch.cat(scores, dim=-1)
        if bias_NHKS is not None:
            scores_NGQL = scores_NGQL + bias_NHKS.reshape(*scores_NGQL.shape)
        weights = scores_NGQL.softmax(dim=-1, dtype=torch.float32).to(query_NHKE.dtype)
        parts = weights.split([score.size(-1) for score in scores], dim=-1)
        mixed = sum(torch.matmul(part, value) for part, value in zip(parts, values, strict=True))
        return mixed.reshape(n, heads, beams, width).transpose(1, 2)

    def _segments(self, layer: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values that the rows at work look at: shared beginning, prompt, pool."""
        n, prompt, pool = self.used.rows, self.used.prompt, self.used.steps * self.beams
        views = [
            [t[layer, :n, :, :prompt], p[layer, :n, :, :pool]]
            for t, p in zip(self.prompt_YNGPE, self.pool_YNGSE, strict=True)
        ]
        for kind, shared in enumerate(self.shared_GFE[layer]):
            views[kind].insert(0, shared[None].expand(n, -1, -1, -1))
        return views[0], views[1]

    def key_positions(self) -> torch.Tensor:
        """Text position (N, P + S) of every key, for models that look at distances (T5)."""
        n, device = self.used.rows, self.device
        prompt_NP = torch.arange(self.used.prompt, device=device).expand(n, -1)
        pool_NS = self.prompt_N[:n, None] + torch.arange(self.used.steps * self.beams, device=device) // self.beams
        return torch.cat([prompt_NP, pool_NS], dim=1)


class CrossStates(Cache):
    """Keys and values of encoder states, one copy for all beams of an utterance (seq2seq models)."""

    def __init__(self, num_layers: int, rows: int, size: int) -> None:
        super().__init__(layers=[_CrossLayer() for _ in range(num_layers)])
        self.rows, self.size = rows, size
        self.stored_YNHPE: list[torch.Tensor] = []  # keys, values
        self.length_N: torch.Tensor | None = None
        self.lengths = [0] * rows  # the same, where no GPU has to be asked

    def store(self, target: slice, new_layers, lengths: torch.Tensor, sizes: list[int]) -> None:
        """Take over the keys and values (rows, H, P, E) that a prefill computed."""
        if not self.stored_YNHPE:
            shape, first = (len(new_layers), self.rows), new_layers[0]
            self.stored_YNHPE = [t.new_zeros(*shape, t.size(1), self.size, t.size(3)) for t in first]
        for index, layer in enumerate(new_layers):
            for tensor, part in zip(self.stored_YNHPE, layer, strict=True):
                tensor[index, target, :, : part.size(2)] = part
        if self.length_N is None:
            self.length_N = lengths.new_ones(self.rows)  # an empty row sees something: no softmax of nothing
        self.length_N[target], self.lengths[target] = lengths, sizes

    def show(self, rows: int, used: int) -> None:
        """Let the model's layers see the first rows and positions."""
        places = torch.arange(used, device=self.length_N.device)
        self.hidden_NP = places >= self.length_N[:rows, None]
        self.stand_in = self.stored_YNHPE[0][0, :rows, 0, :used]  # of the states themselves, which nobody reads
        for index, layer in enumerate(self.layers):
            layer.keys, layer.values = (t[index, :rows, :, :used] for t in self.stored_YNHPE)

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        length = self.lengths[target] = self.lengths[source]
        _copy_row(self.stored_YNHPE, source, target, length)
        self.length_N[target] = self.length_N[source].clone()


class _CrossLayer(_Layer):
    """Holds views of stored keys and values; never written by a model."""

    def __init__(self) -> None:
        CacheLayerMixin.__init__(self)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        raise RuntimeError("encoder states were not stored before decoding")


def shared_states(pool: KVPool) -> EncoderDecoderCache:
    """The cache a seq2seq model is given: self-attention in the pool, encoder states as stored."""
    cache = EncoderDecoderCache(pool, pool.cross)
    cache.is_updated = dict.fromkeys(range(len(pool.layers)), True)
    return cache


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, position_bias=None, **options):
    """The attention function of transformers' interface while the engine is at work."""
    if options.get("softcap") is not None:
        raise UnsupportedModelError("attention with a soft cap")
    pool = _active[-1]
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    layer, pool.writing = pool.writing, None
    if (window := options.get("sliding_window")) is not None:
        pool.window = min(window, pool.window or window)
    if layer is None:
        return _cross_attention(pool, query, key, value, attention_mask, scale), None
    if pool.phase != "decode":
        pool.check_window(query.size(2))
        return _causal_attention(pool, layer, query, key, value, scale, position_bias), None
    pool.check_window()
    if getattr(module, "has_relative_attention_bias", False):  # T5: the first layer's bias serves all
        pool.row_bias = _relative_bias(module, pool)
    return pool.attend(layer, query, scale, pool.row_bias), None


def _causal_attention(pool, layer, query, key, value, scale, bias) -> torch.Tensor:
    """Prompts read themselves and the shared beginning; padding stands on the right and is never looked at."""
    if pool.phase == "prefill" and pool.shared_size:
        key, value = (
            torch.cat([shared[None].expand(len(new), -1, -1, -1), new], dim=2)
            for shared, new in zip(pool.shared_GFE[layer], (key, value), strict=True)
        )
    size, total = query.size(2), key.size(2)
    grouped = {"enable_gqa": True} if key.size(1) != query.size(1) else {}
    if total == size and bias is None:
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, **grouped)
    else:
        mask = torch.ones(size, total, dtype=torch.bool, device=query.device).tril(total - size)
        if bias is not None:
            mask = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, **grouped)
    return mixed.transpose(1, 2)


def _cross_attention(pool, query, key, value, mask, scale) -> torch.Tensor:
    """Beams (or a prefill's start token) look at their utterance's encoder states."""
    hidden_NP = pool.cross.hidden_NP if pool.phase == "decode" else pool.padding_NP
    visible = None if hidden_NP is None else ~hidden_NP[:, None, None]
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    return mixed.transpose(1, 2)


def _relative_bias(module, pool: KVPool) -> torch.Tensor:
    """T5's bias (N, H, K, P + S) for rows at different steps."""
    distance = pool.key_positions()[:, None] - pool.position_NK[:, :, None]
    bucket = module._relative_position_bucket(
        distance,
        bidirectional=False,
        num_buckets=module.relative_attention_num_buckets,
        max_distance=module.relative_attention_max_distance,
    )
    return module.relative_attention_bias(bucket).permute(0, 3, 1, 2)


@contextmanager
def row_positions(core: torch.nn.Module, pool: KVPool) -> Iterator[None]:
    """While open, a decoder with a table of positions (Marian) takes each row's own instead of one for all."""
    table = getattr(core, "embed_positions", None)
    if table is None:
        yield
        return

    def replace(module, args, kwargs):
        return args, kwargs | {"position_ids": pool.position_NK}

    handle = table.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def at_work(pool: KVPool, configs: list) -> Iterator[None]:
    """While open, models of these configurations attend through ``pool``."""
    before = [config._attn_implementation for config in configs]
    _active.append(pool)
    try:
        for config in configs:
            config._attn_implementation = ATTENTION
        yield
    finally:
        _active.pop()
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


AttentionInterface.register(ATTENTION, attention)
