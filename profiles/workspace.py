"""Transient bytes of each block while it runs, as closed forms of its shapes (docs/workspace.md).

The forms describe the forward of transformers 5.23: eager PyTorch without autograd, a growing cache, torch's fused
attention where the model uses it, grouped matrix products for experts. Each is a list of *moments*, places in that code
where most bytes are alive at once, of which the largest counts. They are read off the code, not fitted, and held
against a run of that code on fake tensors (benchmarks/workspace.py). v is the size of one activation.

A layer's forward keeps alive: its input (the base model holds it), what it has added to it so far, the normed copy, and
on the embedding's device the looked-up vectors. Which block shares the embedding's device is not known here, so each
counts those vectors; that, rotary tables and buffers are why a form is somewhat above what is measured.

Ignored: workspaces inside kernels, the allocator's rounding and fragmentation, quantised kernels that unpack weights,
and the copies of weights that `generate()` makes where it decodes with transformers' batched experts kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from profiles.model import Workspace
from profiles.tensors import Cache, LayerTensors, ModelTensors, RoutedExperts, Tensor, params
from profiles.workspace_habits import USUAL, Habits, habits_of

FP32_BYTES = 4
INDEX_BYTES = 8
ROTARY_SIZE = 256
"""No known model rotates more values of a head; tables are small beside the rest."""
BUFFER_BYTES = 65_536
"""Rotary frequencies and router biases: buffers, which no block's weights count (61 KB in DeepSeek-V3)."""
DELTA_CHUNK = 64
"""Tokens of one chunk of transformers' gated delta rule, to whose multiple it pads."""


@dataclass(frozen=True)
class Surroundings:
    """What a block's form needs to know of the model around it.

    `scores` says that attention is not fused (gpt-oss: attention sinks have no kernel in torch), so masks are of the
    activations' type and scores exist. `windows` and `full` say whether masks are made for layers with a window, and
    for layers without. `shared` says that there are shared experts; where those run first, as in Qwen, their output
    waits for the routed ones. `heads` is how many have sinks where some have: layers without are not fused either.
    """

    hidden: int
    vocab: int
    value: int
    scores: bool = False
    windows: bool = False
    full: bool = True
    shared: bool = False
    heads: int = 0
    habits: Habits = USUAL

    @property
    def fixed(self) -> int:
        """Bytes a sequence on any device: buffers, and the last token's logits, which go where the ids came from."""
        return BUFFER_BYTES + self.vocab * self.value

    @property
    def tables(self) -> int:
        """Bytes a token of what all layers share: rotary sine and cosine, positions and ids."""
        return 2 * ROTARY_SIZE * self.value + 4 * INDEX_BYTES

    def base(self, vectors: int) -> int:
        """Bytes a token of `vectors` hidden vectors and of what all layers share."""
        in_fp32 = FP32_BYTES * self.habits.fp32_vectors * self.hidden
        return vectors * self.hidden * self.value + in_fp32 + self.tables

    @property
    def norm(self) -> int:
        """Bytes a token of a norm: fp32 tensors, and one in v where the weight is applied in fp32 (gpt-oss)."""
        return self.hidden * (self.habits.norm_tensors * FP32_BYTES + (self.value if self.scores else 0))


def surroundings(model: ModelTensors, value: int) -> Surroundings:
    """The surroundings of every block of `model`, whose activations take `value` bytes each."""
    attends = [layer.cache for layer in model.layers if layer.cache.values_per_token]
    habits = habits_of(model.architecture)
    return Surroundings(
        hidden=model.hidden_size,
        vocab=model.vocab_size,
        value=value,
        scores=any(_named(layer.attention, "sinks") for layer in model.layers),
        windows=habits.idle_windows or any(cache.window_tokens for cache in attends),
        full=any(not cache.window_tokens for cache in attends),
        shared=any(layer.experts and _width(_split(layer.attention)[1]) for layer in model.layers),
        heads=max((_heads(layer.attention) for layer in model.layers), default=0),
        habits=habits,
    )


def embedding_workspace(around: Surroundings) -> Workspace:
    """The vectors looked up, rotary tables in fp32 (cosine and sine, scaled and not), and masks while they are made.

    A mask is a byte for every pair of tokens, and as many for each of its conditions (causal, window) and their
    conjunction; where attention is not fused, the mask before of type v stays while the next is made.
    """
    per_token = around.base(2 if around.habits.scaled_embedding else 1) + 5 * ROTARY_SIZE * FP32_BYTES
    pairs = 3 + around.value if around.scores else 4 if around.windows else 0
    first = Workspace(per_token=per_token, per_token_pair=pairs, per_sequence=around.fixed)
    return first if pairs else _largest([first, first.replace(per_token_pair=1, after_first_chunk=True)])


def head_workspace(around: Surroundings) -> Workspace:
    """The final norm of every token, logits of the last one and their fp32 copy; the embedding's vectors and masks.

    Ignored: sampling's own copies, and callers that ask for the logits of the whole prompt.
    """
    moment = Workspace(per_token=around.base(2) + around.norm, per_sequence=around.fixed + FP32_BYTES * around.vocab)
    return _largest(_with_masks([moment], around))


def attention_workspace(layer: LayerTensors, around: Surroundings) -> Workspace:
    """A layer without its routed experts: norms, attention, dense or shared feed-forward network, router."""
    mixer, feed_forward = _split(layer.attention)
    norms = Workspace(per_token=around.base(3) + around.norm)
    moments = [norms, *_feed_forward(feed_forward, layer.experts, around)]
    if layer.cache.expanded_values_per_token:
        moments += _latent_attention(mixer, layer.cache, around)
    elif layer.cache.tokens_per_entry > 1:
        moments += _compressed_attention(mixer, layer.cache, around)
    elif layer.cache.values_per_token:
        moments += _attention(mixer, layer.cache, around)
    else:
        moments += _recurrence(mixer, layer.cache, around)
    if around.scores:
        moments.append(_after_scores(mixer, layer, moments, around))
    routers = [tensor for tensor in feed_forward if _is_router(tensor, layer.experts)]
    fixed = around.fixed + FP32_BYTES * params(routers)
    moments = [moment.replace(per_sequence=moment.per_sequence + fixed) for moment in moments]
    return _largest(_with_masks(moments, around))


def experts_workspace(experts: RoutedExperts, around: Surroundings) -> Workspace:
    """Routed experts with transformers' grouped matrix products, where k experts are used by a token.

    For T tokens, S = T k, hidden size H, expert width I and routing weights of w bytes, the larger of two moments:
        at the gate:        v S H + 4 v S I             (gathered inputs; gate-up, activated, product)
        at the last gather: S H (2 v + 2 max(v, w))     (inputs, outputs, their weighted copies)
    plus S (36 + 2 w) of ids, weights and their order, and 8 an expert: to the byte where a device has nothing else
    (tests/test_profiles_workspace.py). Experts with biases gather those too, gate-up's 2 I and down's H a pair, and
    gpt-oss's gate, the only such known, makes three more products of I. In Llama 4 every expert is given all tokens.
    Beside that the layer's own vectors, as if it were on the same device, and its router's logits.
    """
    fixed = around.fixed + INDEX_BYTES * experts.count
    return _largest(_with_masks([Workspace(per_token=_experts_bytes(experts, around), per_sequence=fixed)], around))


def _experts_bytes(experts: RoutedExperts, around: Surroundings) -> int:
    v, hidden, width = around.value, around.hidden, experts.width
    k, weight = experts.active, experts.router_weight_bytes
    base = around.base(5 if around.shared else 4) + FP32_BYTES * experts.count
    if around.habits.every_expert:
        return base + experts.count * v * (hidden + 4 * width)
    biased = any("bias" in tensor.name.rsplit(".", 1)[-1] for tensor in experts.tensors)
    gate = v * k * (hidden + (9 if biased else 4) * width)
    gather = k * hidden * (2 * v + 2 * max(v, weight) + (v if biased else 0))
    return base + max(gate, gather) + k * (36 + 2 * weight)


def _feed_forward(tensors: list[Tensor], experts: RoutedExperts | None, around: Surroundings) -> list[Workspace]:
    """The FFN: activated gate, up and product, beside input, residual and normed input (and what experts gave).

    With experts also: their output on its way through the sum, and the router in fp32: a copy of the normed input,
    logits, probabilities and masks of groups, 24 bytes an expert at most (DeepSeek-V3).
    """
    v, hidden = around.value, around.hidden
    width, copies = _width(tensors), around.habits.dense_copies
    if experts is None:
        return [Workspace(per_token=around.base(4) + copies * v * width)]
    logits = FP32_BYTES * experts.count
    moments = [
        Workspace(per_token=around.base(6 if width else 5) + copies * v * width + logits),
        Workspace(per_token=around.base(7) + logits),
        Workspace(per_token=around.base(4) + FP32_BYTES * hidden + 24 * experts.count),
    ]
    if around.habits.every_expert:  # inputs by expert and their outputs, while the shared expert runs
        moments.append(Workspace(per_token=around.base(5) + v * (2 * experts.count * hidden + 3 * width)))
    return moments


def _attention(mixer: list[Tensor], cache: Cache, around: Surroundings) -> list[Workspace]:
    """Grouped-query attention: Q values of queries, K of keys and as many of values a token, G of a gate or the like.

    - norms of queries (and keys) in fp32;
    - rotation, of queries: the two products, and a rotated copy in two steps, or where only a share of a head is
      rotated, that and the whole put together again; of keys beside rotated queries;
    - the cache grows: old and new keys live together, in a layer with a window old values as well;
    - attention: queries, output, its projection; gated: gate, its sigmoid, the product;
    - keys and values repeated to the number of heads, where there is a mask (a fused kernel takes fewer heads only
      without one): for a window always, else where a chunk meets a cache that is not empty;
    - not fused: repeated keys and values, and three matrices of scores a head, each with a column for the sink.
    """
    v, base = around.value, around.base(3)
    queries, keys = cache.flops_per_token_pair // 4, cache.values_per_token // 2
    outputs = sum(tensor.out_features * tensor.matrices for tensor in mixer if tensor.quantisable)
    gate = max(0, outputs - around.hidden - queries - 2 * keys)
    moments = []
    if _named(mixer, "q_norm"):
        in_fp32 = 2 * FP32_BYTES * queries
        moments.append(Workspace(per_token=base + v * (queries + 2 * keys + 2 * gate) + in_fp32))
    share = around.habits.rotated
    turned = ceil(queries * max(1 + 3 * share, 2 + share))
    rotating = v * (max(turned + 2 * keys, 2 * queries + 5 * keys) + gate)
    if around.habits.fp32_rotation:
        in_fp32 = FP32_BYTES * around.habits.fp32_rotation * max(queries, keys)
        rotating = v * (queries + 2 * keys + gate) + in_fp32
    moments.append(Workspace(per_token=base + rotating))
    old = keys if cache.window_tokens is None else 2 * keys
    moments.append(Workspace(per_token=base + v * (queries + 2 * keys + gate), per_context_token=old * v))
    moments.append(Workspace(per_token=around.base(4) + v * (2 * queries + 3 * gate)))
    attending = base + v * (2 * queries + gate)
    if around.scores:
        pairs = around.habits.score_copies * around.heads * v
        windowed = cache.window_tokens is not None
        moments.append(
            Workspace(
                per_token=attending + pairs,
                per_context_token=2 * queries * v,
                per_token_pair=0 if windowed else pairs,
                per_window_pair=pairs if windowed else 0,
            )
        )
    elif queries > keys:
        moments.append(
            Workspace(
                per_token=attending,
                per_context_token=2 * queries * v,
                after_first_chunk=cache.window_tokens is None,
            )
        )
    if indexer := [tensor for tensor in mixer if ".indexer." in tensor.name]:
        moments.append(_block_mask(mixer, indexer, around, attending))
    return moments


def _block_mask(mixer: list[Tensor], indexer: list[Tensor], around: Surroundings, per_token: int) -> Workspace:
    """MiniMax-M3's indexer ends in a mask of every head: two in bytes, two in v, beside four of its own in fp32."""
    scores = 4 * FP32_BYTES * _heads_by_norm(indexer)
    heads = _heads_by_norm([tensor for tensor in mixer if tensor not in indexer])
    return Workspace(per_token=per_token, per_token_pair=heads * (2 + 2 * around.value) + scores)


def _heads_by_norm(tensors: list[Tensor]) -> int:
    """Heads of queries that are normed by head; 0 where none are."""
    rows = sum(tensor.out_features for tensor in tensors if tensor.quantisable and _named([tensor], "q_proj"))
    sizes = [tensor.params for tensor in tensors if _named([tensor], "q_norm")]
    return rows // sizes[0] if sizes else 0


def _after_scores(
    mixer: list[Tensor], layer: LayerTensors, moments: list[Workspace], around: Surroundings
) -> Workspace:
    """Without fusion a layer keeps its attention weights to its end: beside its FFN, and experts if they are here."""
    pairs = around.value * (around.heads if layer.cache.values_per_token else 0)
    experts = _experts_bytes(layer.experts, around) if layer.experts else 0
    plain = (m.per_token for m in moments if not m.per_context_token and not m.per_token_pair)
    per_token = max(experts, *plain)
    if (rate := layer.cache.tokens_per_entry) > 1:
        own = pairs * _window(mixer, layer.cache)
        return Workspace(per_token=per_token + own, per_token_pair=ceil(pairs / rate), per_chunk_pair=pairs)
    windowed = layer.cache.window_tokens is not None
    return Workspace(
        per_token=per_token, per_token_pair=0 if windowed else pairs, per_window_pair=pairs if windowed else 0
    )


def _heads(mixer: Iterable[Tensor]) -> int:
    """Attention heads, as the number of sinks."""
    return sum(tensor.params for tensor in mixer if _named([tensor], "sinks"))


def _compressed_attention(mixer: list[Tensor], cache: Cache, around: Surroundings) -> list[Workspace]:
    """DeepSeek-V4 in a layer that compresses, not fused: three matrices of scores a head, of a token with the window,
    its chunk and all entries; queries, and values repeated to all heads while they are summed. Or the indexer, whose
    scores of its heads with all entries are in fp32, three times, beside queries and its own in both types.
    """
    v, rate, window = around.value, cache.tokens_per_entry, _window(mixer, cache)
    indexer = [tensor for tensor in mixer if ".indexer" in tensor.name]
    queries = sum(t.out_features for t in mixer if t not in indexer and _named([t], "q_b_proj"))
    scores = 3 * v * _heads(mixer)
    attending = Workspace(
        per_token=around.base(3) + 2 * v * queries + scores * window,
        per_context_token=ceil(v * queries / rate),
        per_token_pair=ceil(scores / rate),
        per_chunk_pair=scores,
        per_sequence=v * queries * window,
    )
    moments = [_indexing(indexer, Workspace(per_token=around.base(5) + v * queries), 3, rate)] if indexer else []
    return [attending, *moments]


def _window(mixer: list[Tensor], cache: Cache) -> int:
    """Most tokens that the window of a layer with compressed entries can keep: its state, as if of nothing else."""
    keys = (t.out_features for t in mixer if t.quantisable and _named([t], "kv_proj", "attn_kv"))
    return cache.state_values // next(keys, cache.values_per_token)


def _indexing(indexer: list[Tensor], beside: Workspace, copies: int, rate: int = 1) -> Workspace:
    """An indexer's scores of all its heads in fp32, `copies` times, and its queries in fp32, beside what is there."""
    heads = sum(tensor.shape[0] for tensor in indexer if _named([tensor], "weights_proj", "proj"))
    queries = sum(tensor.out_features for tensor in indexer if _named([tensor], "wq_b", "q_b_proj", "attn_q_b"))
    per_pair = ceil(copies * FP32_BYTES * heads / rate)
    return beside.replace(per_token=beside.per_token + 2 * FP32_BYTES * queries, per_token_pair=per_pair)


def _latent_attention(mixer: list[Tensor], cache: Cache, around: Surroundings) -> list[Workspace]:
    """Multi-head latent attention: the whole cache is expanded into keys and values a head, at every step.

    Beside that: queries as projected, their rotated part, both joined, attention's output and its projection, and the
    new latents. Measured to the byte in DeepSeek-V2, but for the allowances of all forms. A layer with an indexer holds
    its scores beside the expanded keys and values; GLM-5.3's scores pools of tokens.
    """
    v, latents = around.value, cache.values_per_token
    queries = sum(t.out_features for t in mixer if t.quantisable and _named([t], "q_proj", "q_b_proj"))
    low_rank = sum(t.out_features for t in mixer if t.quantisable and _named([t], "q_a_proj"))
    output = sum(t.in_features for t in mixer if t.quantisable and _named([t], "o_proj"))
    per_token = around.base(4) + v * (3 * queries + output + 2 * latents + low_rank)
    plain = Workspace(per_token=per_token, per_context_token=cache.expanded_values_per_token * v)
    indexer = [tensor for tensor in mixer if ".indexer" in tensor.name]
    if not indexer:
        return [plain]
    pools = [
        tensor.shape[0] for tensor in indexer if _named([tensor], "index_kpool_compress_ape", "indexer_compressor_ape")
    ]
    return [plain, _indexing(indexer, plain, 3 if pools else 2, pools[0] if pools else 1)]


def _recurrence(mixer: list[Tensor], cache: Cache, around: Surroundings) -> list[Workspace]:
    """Linear attention; the gated delta rule of Qwen3-Next as transformers computes it without its optional kernels.

    With keys repeated to the value heads, of E values a token, and V values: the projection, the convolved queries,
    keys and values, the gate's copy; in fp32 five tensors of V and five of E (values, scaled values and keys, solved
    values and keys, decayed ones, outputs), and three matrices of chunk by chunk a head. Padding to whole chunks, and
    states on their way, count per sequence. Any other recurrence: every projection's output three times. Kimi's delta
    attention as transformers computes it without its optional kernel has, beside that, the decays of every pair of a
    chunk's tokens for each channel, in fp32, three times.
    """
    v, base = around.value, around.base(4)
    projected = sum(tensor.out_features * tensor.matrices for tensor in mixer if tensor.quantisable) - around.hidden
    if _named(mixer, "D"):
        return [_state_space(mixer, cache, around)]
    heads = sum(tensor.params for tensor in mixer if _named([tensor], "A_log"))
    values = sum(tensor.in_features for tensor in mixer if tensor.quantisable and _named([tensor], "out_proj"))
    if not heads or not values or not cache.state_fp32_values:
        states = 3 * (v * cache.state_values + FP32_BYTES * cache.state_fp32_values)
        by_channel = sum(
            tensor.params for tensor in mixer if _named([tensor], "dt_bias") and _named(mixer, "f_b_proj", "f_proj")
        )
        decays = 3 * FP32_BYTES * DELTA_CHUNK * by_channel
        states += (DELTA_CHUNK - 1) * decays
        return [Workspace(per_token=base + 3 * v * projected + decays, per_sequence=states)]
    convolved = sum(tensor.shape[0] for tensor in mixer if _named([tensor], "conv1d"))
    keys = heads * (cache.state_fp32_values // values)
    in_fp32 = FP32_BYTES * (5 * values + 5 * keys + heads * (3 * DELTA_CHUNK + 8))
    states = 3 * FP32_BYTES * (cache.state_fp32_values + DELTA_CHUNK * max(values, keys))
    return [
        Workspace(
            per_token=base + v * (projected + convolved + values) + in_fp32,
            per_sequence=(DELTA_CHUNK - 1) * in_fp32 + states + 4 * v * cache.state_values,
        )
    ]


def _state_space(mixer: list[Tensor], cache: Cache, around: Surroundings) -> Workspace:
    """Mamba and Mamba-2 as transformers computes them without their optional kernels, in fp32.

    The first: three tensors of a state for every token (its decay, its input's weight, and that times the input), and
    six of the inner width. The second works in chunks: four matrices of chunk by chunk a head (decays, products of both
    sides of the state, both together, and their copy), both sides of the state a head, seven of the inner width.
    """
    v, decay = around.value, next(tensor for tensor in mixer if _named([tensor], "A_log"))
    projected = sum(t.out_features for t in mixer if t.quantisable and _named([t], "in_proj"))
    inner = sum(t.in_features for t in mixer if t.quantisable and _named([t], "out_proj"))
    per_token, states = around.base(4) + 2 * v * projected, 3 * FP32_BYTES * cache.state_fp32_values
    if len(decay.shape) > 1:
        in_fp32 = FP32_BYTES * (3 * cache.state_fp32_values + 6 * inner)
        return Workspace(per_token=per_token + in_fp32, per_sequence=states + 4 * v * cache.state_values)
    heads, chunk = decay.params, around.habits.state_chunk
    in_fp32 = FP32_BYTES * (heads * (4 * chunk + 2 * cache.state_fp32_values // inner) + 7 * inner)
    padding = (chunk - 1) * in_fp32
    return Workspace(per_token=per_token + in_fp32, per_sequence=padding + states + 4 * v * cache.state_values)


def _with_masks(moments: list[Workspace], around: Surroundings) -> list[Workspace]:
    """The moments with the masks that are alive in them: of layers with a window, and of layers without.

    Fused attention reads a mask of one byte a pair where there is a window, or where a chunk meets a cache that is not
    empty; attention that is not fused always reads one of type v.
    """
    size = around.value if around.scores else 1
    masked = []
    for moment in moments:
        window_pair = moment.per_window_pair + (size if around.windows else 0)
        before = moment.replace(per_window_pair=window_pair)
        after = before.replace(per_token_pair=moment.per_token_pair + size, after_first_chunk=True)
        if around.full and around.scores:
            masked.append(after.replace(after_first_chunk=moment.after_first_chunk))
        elif around.full:
            masked += [after] if moment.after_first_chunk else [before, after]
        else:
            masked.append(before)
    return masked


MIXERS = ("attn", "attention", "indexer", "mixer", "mamba", "short_conv", "conv")
SIZES = ("per_token", "per_context_token", "per_token_pair", "per_window_pair", "per_chunk_pair", "per_sequence")


def _largest(moments: list[Workspace]) -> Workspace:
    """One workspace of those moments that are not below another whatever the numbers of tokens."""
    kept: list[Workspace] = []
    for moment in sorted(moments, key=lambda m: (m.after_first_chunk, *(-getattr(m, size) for size in SIZES))):
        if not any(all(getattr(moment, size) <= getattr(other, size) for size in SIZES) for other in kept):
            kept.append(moment)
    return kept[0].replace(other_moments=tuple(kept[1:]))


def _split(tensors: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """A layer's tensors of attention or what is in its place, and the others."""
    mixer, rest = list[Tensor](), list[Tensor]()
    for tensor in tensors:
        modules = [part for part in tensor.name.split(".") if "norm" not in part or part in ("q_norm", "k_norm")]
        (mixer if any(word in part for part in modules for word in MIXERS) else rest).append(tensor)
    return mixer, rest


def _named(tensors: Iterable[Tensor], *names: str) -> bool:
    """Whether one of `tensors`, or the module it belongs to, has one of `names`."""
    return any(part in names for tensor in tensors for part in tensor.name.split(".")[-2:])


def _width(tensors: list[Tensor]) -> int:
    """The widest inner size of the FFNs that `tensors` make up; 0 where there is none."""
    return max((_inner(tensor) for tensor in tensors if tensor.quantisable), default=0)


def _inner(tensor: Tensor) -> int:
    """The inner width of the FFN that `tensor` belongs to: what its last projection takes, its others give."""
    last = any(word in tensor.name for word in ("down", ".w2", "fc2", "output", "wo."))
    return tensor.in_features if last else tensor.out_features // max(1, tensor.stacked)


def _is_router(tensor: Tensor, experts: RoutedExperts | None) -> bool:
    return (
        experts is not None and len(tensor.shape) == 2 and tensor.shape[0] == experts.count and not tensor.quantisable
    )
