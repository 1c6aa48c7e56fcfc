"""Yuan 2.0-M32 and its family for transformers 4.41 and later, 5 included: inference, fine-tuning, saving.

Shapes: B batch, S new tokens, P = past + S, H hidden, N heads, D head width, R rotated width, T = B x S, E experts,
K chosen, F ffn.

- Queries and keys come from a localized filter (two causal convolutions of width 2), values do not pass through it.
  Padding is zero in both convolutions, so a row's figures do not depend on what it is batched with.
- Parameters have the published names: each expert's matrices are parameters of their own, and views of one tensor
  for all experts, which grouped products read (`YuanExperts`).
- q_proj and k_proj are the upper and lower half of one matrix whose rows alternate between queries and keys by head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from .configuration_yuan import YuanConfig

REACH = 2  # tokens that the filter looks back
CACHE = "cache" if "cache" in MoeModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls the cache: `cache` since 5.24. Either name may be given to the model."""


class YuanCache(DynamicCache):
    """Keys and values of all tokens, and what the filters of each layer still need: the last two of their inputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filter_inputs: dict[int, Tensor] = {}
        """Layer -> [B, 2, H]."""
        self.filtered = 0
        """Tokens whose inputs the filters have seen."""

    def checked_length(self) -> int:
        """Tokens held; an error where some were taken away behind our back, as transformers 4 does without `crop`."""
        if self.get_seq_length() != self.filtered:
            self.crop()
        return self.filtered

    def keep(self, layer: int, filled_BPH: Tensor) -> None:
        """Remember the end of `filled`, past inputs and new ones."""
        self.filter_inputs[layer] = filled_BPH[:, -REACH:]

    def _for_rows(self, change: Any) -> None:
        self.filter_inputs = {layer: change(inputs) for layer, inputs in self.filter_inputs.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in the order of `beam_idx`."""
        super().reorder_cache(beam_idx)
        self._for_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._for_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """The rows of `indices` alone."""
        super().batch_select_indices(indices)
        self._for_rows(lambda x: x[indices])

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Cannot be done: what the filters would need is gone."""
        raise NotImplementedError("Yuan's cache cannot be shortened: assisted generation is not supported")


class YuanRMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class YuanConvolution(nn.Module):
    """Two taps, y[t] = W[..., 0] u[t-1] + W[..., 1] u[t] + b, with the weight of a Conv2d, [out, in, 2, 1]."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size, 2, 1))
        self.bias = nn.Parameter(torch.zeros(out_size))

    def forward(self, u: Tensor) -> Tensor:
        """[B, S + 1, in] -> [B, S, out]: all but the first position."""
        taps = torch.stack((u[:, :-1], u[:, 1:]), dim=-1)
        return F.linear(taps.flatten(-2), self.weight.flatten(1), self.bias)


class YuanLocalizedFilter(nn.Module):
    """RMSNorm(conv2(conv1(u)) + u), H -> H/2 -> H (Yuan 2.0 paper, section 3.1)."""

    def __init__(self, config: YuanConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.conv1 = YuanConvolution(size, size // 2)
        self.conv2 = YuanConvolution(size // 2, size)
        self.output_layernorm = YuanRMSNorm(size, config.rms_norm_eps)

    def forward(self, filled_BSH: Tensor, real_BS1: Tensor) -> Tensor:
        """[B, S + 2, H] and 1 where there is a token, 0 where none -> [B, S, H]."""
        filtered = self.conv2(self.conv1(filled_BSH) * real_BS1[:, 1:])
        return self.output_layernorm(filtered + filled_BSH[:, REACH:])


class YuanAttention(nn.Module):
    """Causal attention; see the head of the file."""

    def __init__(self, config: YuanConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.num_heads, self.head_dim = layer, config.num_attention_heads, config.head_dim
        hidden, all_heads = config.hidden_size, config.attention_projection_size
        self.q_proj = nn.Linear(hidden, all_heads, bias=False)
        self.k_proj = nn.Linear(hidden, all_heads, bias=False)
        self.v_proj = nn.Linear(hidden, all_heads, bias=False)
        self.o_proj = nn.Linear(all_heads, hidden, bias=False)
        self.lf_gate = YuanLocalizedFilter(config)

    def forward(
        self,
        u_BSH: Tensor,
        rotary: tuple[Tensor, Tensor],
        real_BS1: Tensor,
        visible: Tensor | None,
        cache: YuanCache | None,
    ) -> Tensor:
        """Attend from `u` [B, S, H] over it and what the cache holds; `visible`: [B, 1, S, P], None: all the past."""
        B, S, H = u_BSH.shape
        u_BSH = u_BSH * real_BS1[:, REACH:]
        before = cache.filter_inputs.get(self.layer) if cache is not None else None
        before = u_BSH.new_zeros(B, REACH, H) if before is None else before
        filled_BSH = torch.cat((before, u_BSH), dim=1)
        f_BSH = self.lf_gate(filled_BSH, real_BS1)
        qk = torch.cat((self.q_proj(f_BSH), self.k_proj(f_BSH)), dim=-1).view(B, S, self.num_heads, 2, self.head_dim)
        q, k = (rotate(x, *rotary).transpose(1, 2) for x in qk.unbind(3))
        v = self.v_proj(u_BSH).view(B, S, self.num_heads, self.head_dim).transpose(1, 2)
        if cache is not None:
            cache.keep(self.layer, filled_BSH)
            k, v = cache.update(k, v, self.layer)
        causal = visible is None and S > 1
        y_BNSD = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)
        return self.o_proj(y_BNSD.transpose(1, 2).reshape(B, S, -1))


def rotate(x_BSND: Tensor, cos_BSR: Tensor, sin_BSR: Tensor) -> Tensor:
    """Rotate the first R channels of each head, half against half, in float32."""
    cos, sin = cos_BSR.unsqueeze(2), sin_BSR.unsqueeze(2)
    turned, rest = x_BSND[..., : cos.shape[-1]], x_BSND[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated.to(x_BSND.dtype), rest), dim=-1)


def rotary_tables(config: YuanConfig, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, S, R] in float32, rounded as the weights' training rounded them."""
    width, base = config.rotary_dim, config.rotary_base
    if config.rotary_ntk_factor != 1.0:
        base = base * config.rotary_ntk_factor ** (width / (width - 2))
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions_BS.device) / width
    frequencies = 1.0 / base**exponents
    if config.rotary_rounding != "none":
        frequencies = frequencies.bfloat16()
    dtype = torch.bfloat16 if config.rotary_rounding == "all" else torch.float32
    angles = positions_BS.to(dtype).unsqueeze(-1) * frequencies.to(dtype)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().float(), angles.sin().float()


class YuanAttentionRouter(nn.Module):
    """Experts attend to each other before they are scored: P_i = sum_j softmax_j(q_i k_j) v_j, token by token (Yuan
    2.0-M32 paper, section 3)."""

    def __init__(self, config: YuanConfig) -> None:
        super().__init__()
        experts = config.moe_config["moe_num_experts"]
        self.query = nn.Linear(config.hidden_size, experts, bias=False)
        self.key = nn.Linear(config.hidden_size, experts, bias=False)
        self.value = nn.Linear(config.hidden_size, experts, bias=False)

    def forward(self, x_TH: Tensor) -> Tensor:
        """Scores [T, E] in float32."""
        q, k, v = (project(x_TH).float() for project in (self.query, self.key, self.value))
        attention_TEE = torch.softmax(q.unsqueeze(2) * k.unsqueeze(1), dim=2)
        return torch.bmm(attention_TEE, v.unsqueeze(2)).squeeze(2)


class YuanLinearRouter(nn.Linear):
    """The classical router: a linear score an expert."""

    def __init__(self, config: YuanConfig) -> None:
        super().__init__(config.hidden_size, config.moe_config["moe_num_experts"], bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Scores [T, E] in float32."""
        return super().forward(input).float()


ROUTERS = {"attention": YuanAttentionRouter, "softmax": YuanLinearRouter}


class YuanMatrix(nn.Module):
    """A weight that its owner multiplies by. It is asked for by a call, which is when accelerate brings weights that it
    keeps elsewhere."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))

    def forward(self) -> Tensor:
        """The weight."""
        return self.weight


class YuanExpert(nn.Module):
    """SwiGLU: w1 is gate over up, [2F, H]; w2 is down, [H, F]."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.w1 = YuanMatrix(2 * ffn, hidden)
        self.w2 = YuanMatrix(hidden, ffn)


class YuanExperts(nn.ModuleList):
    """All experts over rows sorted by expert: two grouped products."""

    def __init__(self, config: YuanConfig) -> None:
        moe = config.moe_config
        super().__init__(YuanExpert(config.hidden_size, moe["ffn_hidden_size"]) for _ in range(moe["moe_num_experts"]))

    def forward(self, x_RH: Tensor, p_R: Tensor, counts_E: Tensor) -> Tensor:
        """Each of R rows through its expert, times p; `counts` [E] rows an expert, in order."""
        experts: list[Any] = list(self)
        w1 = stacked([expert.w1() for expert in experts])
        w2 = stacked([expert.w2() for expert in experts])
        gate, up = grouped_product(x_RH, w1, counts_E).chunk(2, dim=-1)
        return grouped_product(F.silu(gate) * up * p_R.unsqueeze(1).to(x_RH.dtype), w2, counts_E)


def stacked(parameters: Sequence[nn.Parameter]) -> Tensor:
    """[E, ...] with the parameters as its parts, without a copy: where they do not lie one after another in memory (a
    model just loaded, moved or cast), they are laid so, once."""
    whole = _whole(parameters)
    if whole is None:
        whole = torch.stack([parameter.data for parameter in parameters])
        for parameter, part in zip(parameters, whole.unbind(), strict=True):
            parameter.data = part
    return _Stacked.apply(whole, *parameters)


def _whole(parameters: Sequence[nn.Parameter]) -> Tensor | None:
    first = parameters[0]
    step = first.numel() * first.element_size()
    storage = first.untyped_storage().data_ptr()
    for i, each in enumerate(parameters):
        if each.data_ptr() != first.data_ptr() + i * step or each.untyped_storage().data_ptr() != storage:
            return None
        if each.dtype != first.dtype or not each.is_contiguous():
            return None
    size = (len(parameters), *first.shape)
    return first.data.as_strided(size, (first.numel(), *first.stride()))


class _Stacked(torch.autograd.Function):
    """The whole as it is; its gradient goes to the parts."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, *parts: Tensor) -> Tensor:
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (None, *grad.unbind())


def grouped_product(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """[R, out]: rows of each expert times its matrix. torch's grouped_mm where it can, else one padded batch."""
    if _can_group(x_RI, weight_EOI):
        offsets_E = counts_E.cumsum(0).to(torch.int32)
        return F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=offsets_E)
    ends_E = counts_E.cumsum(0)
    rows = torch.arange(len(x_RI), device=x_RI.device)
    expert_R = torch.searchsorted(ends_E, rows, right=True)
    place_R = rows - (ends_E - counts_E)[expert_R]
    padded = x_RI.new_zeros(len(counts_E), int(counts_E.max()), x_RI.shape[1])
    padded = padded.index_put((expert_R, place_R), x_RI)
    return torch.bmm(padded, weight_EOI.transpose(1, 2))[expert_R, place_R]


def _can_group(x_RI: Tensor, weight_EOI: Tensor) -> bool:
    aligned = all(size * x_RI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    if not hasattr(F, "grouped_mm") or not aligned:
        return False
    if torch.compiler.is_compiling() and x_RI.dtype != torch.bfloat16:
        return False  # torch.compile knows the product's shape in bfloat16 alone
    if not x_RI.is_cuda:
        return x_RI.dtype in (torch.float32, torch.bfloat16)
    return x_RI.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x_RI.device) >= (8, 0)


class YuanMoe(nn.Module):
    """The router's K experts of each token, weighted and summed; none is dropped."""

    def __init__(self, config: YuanConfig) -> None:
        super().__init__()
        self.topk = config.moe_config["moe_top_k"]
        if config.moe_router not in ROUTERS:
            raise ValueError(f"moe_router is {config.moe_router!r}, but must be one of {', '.join(ROUTERS)}")
        self.gate = ROUTERS[config.moe_router](config)
        self.experts = YuanExperts(config)

    def forward(self, x_BSH: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, H] -> the same, and the router's scores [T, E]."""
        x_TH = x_BSH.flatten(0, 1)
        logits_TE = self.gate(x_TH)
        weights_TK, experts_TK = logits_TE.softmax(dim=-1).topk(self.topk, dim=-1)
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        order_R = experts_TK.flatten().argsort(stable=True)
        counts_E = torch.bincount(experts_TK.flatten(), minlength=len(self.experts))
        y_RH = self.experts(x_TH[order_R // self.topk], weights_TK.flatten()[order_R], counts_E)
        y_TKH = y_RH[order_R.argsort()].view(*experts_TK.shape, -1)
        return y_TKH.sum(dim=1).view_as(x_BSH), logits_TE


class YuanDecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + moe(norm(x))."""

    def __init__(self, config: YuanConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = YuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = YuanAttention(config, layer)
        self.post_attention_layernorm = YuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = YuanMoe(config)

    def forward(self, x_BSH: Tensor, *context: Any) -> tuple[Tensor, Tensor]:
        """`context`: what `YuanAttention.forward` takes; returns the state and the router's scores."""
        x_BSH = x_BSH + self.self_attn(self.input_layernorm(x_BSH), *context)
        y_BSH, logits_TE = self.mlp(self.post_attention_layernorm(x_BSH))
        return x_BSH + y_BSH, logits_TE


class YuanPreTrainedModel(PreTrainedModel):
    """What transformers asks of a family."""

    config_class = YuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["YuanDecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_cache_class = True

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding, YuanMatrix, YuanConvolution)):
            nn.init.normal_(module.weight, std=std)
            bias = getattr(module, "bias", None)
            if bias is not None:
                nn.init.zeros_(bias)
        elif isinstance(module, YuanRMSNorm):
            nn.init.ones_(module.weight)


class YuanModel(YuanPreTrainedModel):
    """Embedding, layers, final norm."""

    def __init__(self, config: YuanConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(YuanDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = YuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`attention_mask` [B, P]: 1 where there is a token, 0 where there is padding, on either side."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        x_BSH = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        recompute = self.gradient_checkpointing and self.training
        known = past_key_values if cache is None else cache
        begun = known is not None and as_cache(known).get_seq_length() > 0  # to be gone on from, kept anew or not
        if begun and recompute:
            raise ValueError(f"gradient checkpointing cannot go on from {CACHE}; switch it off, or give all tokens")
        cache = as_cache(known) if begun or (use_cache and not recompute) else None
        B, S = x_BSH.shape[:2]
        past = cache.checked_length() if cache is not None else 0
        real_BP = real_tokens(attention_mask, B, past + S, x_BSH.device)
        if position_ids is None:
            position_ids = (real_BP.cumsum(-1) - 1).clamp(min=0)[:, past:]
        context = (
            rotary_tables(self.config, position_ids),
            F.pad(real_BP, (REACH, 0))[:, past:].unsqueeze(-1).to(x_BSH.dtype),
            None if attention_mask is None and (past == 0 or S == 1) else visible_tokens(real_BP.bool(), past),
            cache,
        )
        hidden_states, router_logits = [], []
        for layer in self.layers:
            hidden_states.append(x_BSH)
            if recompute:
                x_BSH, logits_TE = self._gradient_checkpointing_func(layer.__call__, x_BSH, *context)
            else:
                x_BSH, logits_TE = layer(x_BSH, *context)
            router_logits.append(logits_TE)
        if cache is not None:
            cache.filtered = past + S
        x_BSH = self.norm(x_BSH)
        hidden_states.append(x_BSH)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        found = MoeModelOutputWithPast(
            last_hidden_state=x_BSH,
            **{CACHE: cache},
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            router_logits=tuple(router_logits) if output_router_logits else None,
        )
        return found if return_dict is not False else found.to_tuple()


def as_cache(past: Any) -> YuanCache:
    """`past` if it is ours; a new one where there is none, or an empty one that generate() made."""
    if isinstance(past, YuanCache):
        return past
    if past is not None and (not hasattr(past, "get_seq_length") or past.get_seq_length() > 0):
        raise ValueError(f"{CACHE} is a {type(past).__name__}; pass on what this model returned, a YuanCache")
    return YuanCache()


def real_tokens(attention_mask: Tensor | None, rows: int, length: int, device: torch.device) -> Tensor:
    """[B, P] int64: 1 where there is a token."""
    if attention_mask is None:
        return torch.ones(rows, length, dtype=torch.int64, device=device)
    if attention_mask.dim() != 2 or attention_mask.shape[1] != length:
        raise ValueError(
            f"attention_mask is {list(attention_mask.shape)}, but must be [batch, {length}]: past and new tokens"
        )
    return attention_mask.to(device, torch.int64)


def visible_tokens(real_BP: Tensor, past: int) -> Tensor:
    """[B, 1, S, P]: what each new token may see. Padding sees itself alone, as a softmax over nothing is no number."""
    here_P = torch.arange(real_BP.shape[1], device=real_BP.device)
    seen_SP = here_P <= here_P[past:].unsqueeze(1)
    own_SP = here_P == here_P[past:].unsqueeze(1)
    return ((seen_SP & real_BP.unsqueeze(1)) | own_SP).unsqueeze(1)


class YuanForCausalLM(YuanPreTrainedModel, GenerationMixin):
    """The model and its output head, tied to the embedding unless the config says otherwise."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (its keys are what 4.x wants)

    def __init__(self, config: YuanConfig) -> None:
        super().__init__(config)
        self.model = YuanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Any = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Logits [B, S, V] (of the last `logits_to_keep` tokens, 0: all; or of the positions in it); with `labels`
        [B, S], -100 where none counts, the mean loss of the next tokens, or their sum over `num_items_in_batch`."""
        found = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values if cache is None else cache,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_router_logits,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BSV = self.lm_head(found.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            flat, wanted = logits_BSV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits_BSV.device)
            if num_items_in_batch is None:
                loss = F.cross_entropy(flat, wanted)
            else:
                loss = F.cross_entropy(flat, wanted, reduction="sum") / num_items_in_batch
        output = MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits_BSV,
            **{CACHE: found.get(CACHE)},
            hidden_states=found.hidden_states,
            router_logits=found.router_logits,
        )
        return output if return_dict is not False else output.to_tuple()

    def _contrastive_search(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("contrastive search (penalty_alpha) is not supported: it needs a cache to shorten")

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The tokens that the cache has not seen, with the mask of all."""
        cache = past_key_values if cache is None else cache
        past = cache.get_seq_length() if cache is not None else 0
        if inputs_embeds is not None and past == 0:
            inputs: dict[str, Any] = {"inputs_embeds": inputs_embeds}
        else:
            seen = past
            if inputs_embeds is not None and input_ids.shape[1] <= past:
                seen -= inputs_embeds.shape[1]  # behind embeddings the ids are those of the new tokens alone
            inputs = {"input_ids": input_ids[:, seen:]}
        passed_on = ("logits_to_keep", "output_hidden_states", "output_router_logits")
        kept = {name: kwargs[name] for name in passed_on if name in kwargs}
        return {
            **inputs,
            **kept,
            CACHE: cache,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }


# So that save_pretrained writes this code beside the weights in every version.
YuanModel.register_for_auto_class("AutoModel")
YuanForCausalLM.register_for_auto_class("AutoModelForCausalLM")
