"""The bundled checkpoint's model in plain torch: BitNet b1.58 2B-4T in small, trainable and exact.

Every linear layer multiplies absmean-ternary weights by absmax-int8 activations. In training the products
are bfloat16 and gradients pass straight through both roundings; in evaluation the products are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Every cols is a multiple of 256 and every rows of 32, which all ternary GGUF types accept."""

    vocab: int = 2048
    hidden: int = 256
    ffn: int = 768
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    context: int = 512
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5


def absmean(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary form of one matrix: float32 [rows, cols] -> trits [rows, cols], multiplier rounded to bfloat16."""
    mean = weight.abs().mean().clamp_(min=1e-5)
    return (weight / mean).round_().clamp_(-1, 1), mean.bfloat16().float()


class TernaryProduct(torch.autograd.Function):
    """y = (codes @ trits.T) / act_scale * multiplier, for several matrices that read the same input.

    x: float32 [tokens, cols], weights: float32 [rows_i, cols] -> float32 [tokens, sum of rows_i].
    Codes and trits are small integers, exact in bfloat16; `dtype` only sets the precision of the product.
    """

    @staticmethod
    def forward(ctx, dtype: torch.dtype, x: Tensor, *weights: Tensor) -> Tensor:  # type: ignore[override]
        act_scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-5)
        codes = (x * act_scale).round_().to(dtype)
        pairs = [absmean(weight) for weight in weights]
        trits = torch.cat([trits for trits, _ in pairs]).to(dtype)
        rows = [len(weight) for weight in weights]
        multiplier = torch.cat([a.expand(n) for (_, a), n in zip(pairs, rows, strict=True)])
        ctx.save_for_backward(codes, act_scale, trits, multiplier)
        ctx.rows = rows
        return (codes @ trits.T).float().div_(act_scale).mul_(multiplier)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        codes, act_scale, trits, multiplier = ctx.saved_tensors
        grad_x = ((grad * multiplier).to(trits.dtype) @ trits).float()
        grad_weight = ((grad / act_scale).to(codes.dtype).T @ codes).float()
        return (None, grad_x, *grad_weight.split(ctx.rows))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    return F.rms_norm(x, weight.shape, weight, eps)


class Layer(nn.Module):
    """One decoder layer of BitNet b1.58 2B-4T: sub-norms and squared ReLU."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        s = self.shape = shape
        heads, kv = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
        sizes = {"q": (heads, s.hidden), "k": (kv, s.hidden), "v": (kv, s.hidden), "o": (s.hidden, heads)}
        sizes |= {"gate": (s.ffn, s.hidden), "up": (s.ffn, s.hidden), "down": (s.hidden, s.ffn)}
        self.weights = nn.ParameterDict({k: nn.Parameter(0.02 * torch.randn(v)) for k, v in sizes.items()})
        norms = {"attn_norm": s.hidden, "attn_sub_norm": heads, "ffn_norm": s.hidden, "ffn_sub_norm": s.ffn}
        self.norms = nn.ParameterDict({k: nn.Parameter(torch.ones(n)) for k, n in norms.items()})
        self.dropout = nn.Dropout(dropout)

    def product(self, x: Tensor, *names: str) -> Tensor:
        """BitLinear of `x` with the named matrices, whose outputs stand side by side."""
        dtype = torch.bfloat16 if self.training else torch.float32
        out = TernaryProduct.apply(dtype, x.flatten(0, -2), *(self.weights[name] for name in names))
        return out.unflatten(0, x.shape[:-1])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self.norms[name], self.shape.rms_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: float32 [batch, tokens, hidden]; cos, sin: float32 [tokens, head_dim]."""
        s = self.shape
        qkv = self.product(self.norm(x, "attn_norm"), "q", "k", "v").unflatten(-1, (-1, s.head_dim))
        q, k, v = qkv.transpose(1, 2).split([s.n_heads, s.n_kv_heads, s.n_kv_heads], dim=1)
        q, k = (z * cos + torch.cat((-z[..., s.head_dim // 2 :], z[..., : s.head_dim // 2]), -1) * sin
                for z in (q, k))  # fmt: skip
        k, v = (z.repeat_interleave(s.n_heads // s.n_kv_heads, dim=1) for z in (k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.product(self.norm(o, "attn_sub_norm"), "o"))
        gate, up = self.product(self.norm(x, "ffn_norm"), "gate", "up").chunk(2, dim=-1)
        g = F.relu(gate).square() * up
        return x + self.dropout(self.product(self.norm(g, "ffn_sub_norm"), "down"))


class TinyBitNet(nn.Module):
    """The whole model; the head is the embedding table."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(0.02 * torch.randn(shape.vocab, shape.hidden))
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.n_layers))
        self.output_norm = nn.Parameter(torch.ones(shape.hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: int64 [batch, tokens] -> logits: float32 [batch, tokens, vocab]."""
        s = self.shape
        inverse = 1.0 / s.rope_theta ** (torch.arange(0, s.head_dim, 2).float() / s.head_dim)
        angles = torch.arange(ids.shape[1]).float()[:, None] * inverse
        angles = torch.cat((angles, angles), dim=-1)
        x = self.dropout(F.embedding(ids, self.embedding))
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        x = rms_norm(x, self.output_norm, s.rms_eps)
        dtype = torch.bfloat16 if self.training else torch.float32
        return (x.to(dtype) @ self.embedding.to(dtype).T).float()


def perplexity(model: TinyBitNet, ids: Tensor, bos: int, chunks: int | None = None) -> float:
    """As `bitconv perplexity`: chunks of the context length, BOS first, positions c/2 to c-2 scored."""
    c = model.shape.context
    model.eval()
    total, scored = 0.0, 0
    with torch.no_grad():
        for chunk in ids[: len(ids) // c * c].view(-1, c)[:chunks]:
            inputs = chunk.clone()
            inputs[0] = bos
            logits = model(inputs[None])[0, c // 2 : c - 1]
            total += F.cross_entropy(logits, chunk[c // 2 + 1 :], reduction="sum").item()
            scored += len(logits)
    model.train()
    return math.exp(total / scored)
