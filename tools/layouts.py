"""The layouts of published models and of the bitnet.cpp report's dummy models, as data for tools."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """What decides the shapes of a model's ternary matrices."""

    name: str
    hidden: int
    ffn: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the (rows, cols) of the seven linears of a block."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return {
            "attn_q": (q, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, q),
            "ffn_gate": (self.ffn, self.hidden),
            "ffn_up": (self.ffn, self.hidden),
            "ffn_down": (self.hidden, self.ffn),
        }


def _dummy(size: str, hidden: int, ffn: int, n_layers: int, n_heads: int) -> Layout:
    """Return a layout of arXiv 2410.16144v2, appendix A, which names no key/value heads: as many as heads."""
    return Layout(f"dummy {size}", hidden, ffn, n_layers, n_heads, n_heads, hidden // n_heads)


DUMMIES = (
    _dummy("125M", 768, 3072, 11, 12),
    _dummy("350M", 1024, 3072, 24, 16),
    _dummy("700M", 1536, 4096, 24, 16),
    _dummy("1B", 2048, 3584, 24, 32),
    _dummy("1.5B", 1536, 9216, 28, 32),
    _dummy("2.5B", 2560, 6912, 30, 20),
    _dummy("3.8B", 3840, 8192, 24, 32),
    _dummy("7B", 4096, 12032, 32, 32),
    _dummy("13B", 5120, 13824, 40, 40),
    _dummy("30B", 6656, 16384, 60, 52),
    _dummy("70B", 8192, 24576, 80, 64),
    _dummy("100B", 8192, 45568, 72, 64),
)

PUBLISHED = (
    Layout("bitnet-b1.58-2B-4T", 2560, 6912, 30, 20, 5, 128),
    Layout("bitnet_b1_58-large", 1536, 4096, 24, 16, 16, 96),
    Layout("bitnet_b1_58-3B", 3200, 8640, 26, 32, 32, 100),
    Layout("Llama3-8B-1.58-100B-tokens", 4096, 14336, 32, 32, 8, 128),
    Layout("Falcon3-7B-Instruct-1.58bit", 3072, 23040, 28, 12, 4, 256),
    Layout("Falcon3-10B-Instruct-1.58bit", 3072, 23040, 40, 12, 4, 256),
    Layout("bitnet-embedding-0.6b", 1024, 3072, 28, 16, 8, 128),
    Layout("bitnet-embedding-270m", 640, 2048, 18, 4, 1, 256),
)

LAYOUTS = DUMMIES + PUBLISHED
