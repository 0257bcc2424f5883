from collections.abc import Sequence

import numpy as np

LANES: int
KEYS: int
SEGMENT: int
CACHE_TYPES: dict[str, int]
MAX_TILE_ROWS: int
GEMM_TOKENS: int
PANEL_COLS: int
MAX_HEAD_DIM: int
SITES: int

Tiles = tuple[int, int, int]
Weight = tuple[np.ndarray, int, int, int, float, Tiles]

def has_openmp() -> bool: ...
def cpu_features() -> dict[str, bool]: ...
def all_isas() -> list[str]: ...
def isas() -> list[str]: ...
def kernel_names(isa: str, type_id: int) -> tuple[str, ...]: ...
def kernel_name(isa: str, type_id: int, tokens: int) -> str: ...

class Engine:
    vocab: int
    def __init__(
        self,
        *,
        isa: str,
        n_layers: int,
        hidden: int,
        ffn: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        relu2: bool,
        interleaved: bool,
        eps: float,
        attention_scale: float,
        output_norm: np.ndarray,
        embedding: Weight,
        head: Weight,
    ) -> None: ...
    def set_layer(
        self,
        index: int,
        *,
        attn_norm: np.ndarray,
        attn_sub_norm: np.ndarray | None,
        ffn_norm: np.ndarray,
        ffn_sub_norm: np.ndarray | None,
        q: Weight,
        k: Weight,
        v: Weight,
        output: Weight,
        gate: Weight,
        up: Weight,
        down: Weight,
    ) -> None: ...
    def weight_bytes(self) -> int: ...
    def scratch_bytes(self, n: int, threads: int) -> int: ...
    def cache_bytes(self, n_ctx: int, type_id: int) -> int: ...

class Cache:
    n_ctx: int
    n_sequences: int
    def __init__(
        self, engine: Engine, n_ctx: int, type_id: int, inv_freq: np.ndarray, n_sequences: int = 1
    ) -> None: ...
    def forward(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: np.ndarray,
        logit_rows: np.ndarray,
        threads: int,
        trace: bool = False,
    ) -> tuple[np.ndarray, int, int, tuple[list[np.ndarray], np.ndarray] | None]: ...
    def extend(
        self, ids: Sequence[int], position: int, n_logits: int, threads: int, trace: bool = False
    ) -> tuple[np.ndarray, int, int, tuple[list[np.ndarray], np.ndarray] | None]: ...

def small_pages(nbytes: int) -> np.ndarray: ...
def first_malformed(weights: list[Weight], threads: int) -> int: ...
def scratch_bytes(n: int, *, hidden: int, ffn: int, n_heads: int, n_kv_heads: int, head_dim: int) -> int: ...
def int8_peak(isa: str, threads: int) -> float: ...
def load_widths() -> list[int]: ...
def read_bandwidth(
    data: np.ndarray, threads: int, streams: int, width: int, ahead: int = 0, chunk: int = 0
) -> float: ...
def weight_bytes(weight: Weight) -> int: ...
def time_linears(weights: list[Weight], codes: np.ndarray, isa: str, threads: int) -> float: ...
def quantise(x: np.ndarray, isa: str) -> tuple[np.ndarray, float, int, bool]: ...
def few(
    data: np.ndarray,
    rows: int,
    cols: int,
    type_id: int,
    q: np.ndarray,
    isa: str,
    row0: int = ...,
    row1: int | None = ...,
) -> np.ndarray | None: ...
def gemv(
    data: np.ndarray,
    rows: int,
    cols: int,
    type_id: int,
    q: np.ndarray,
    isa: str,
    tiles: Tiles = ...,
    row0: int = 0,
    row1: int | None = None,
) -> np.ndarray: ...
def panels(
    data: np.ndarray, rows: int, cols: int, type_id: int, row0: int, isa: str, tiles: Tiles = ...
) -> np.ndarray: ...
def tile(panel: np.ndarray, tokens: np.ndarray, isa: str) -> np.ndarray: ...
def dense(data: np.ndarray, rows: int, cols: int, type_id: int, x: np.ndarray, isa: str) -> np.ndarray: ...
def norm(x: np.ndarray, g: np.ndarray, eps: float, isa: str) -> np.ndarray: ...
def exp(x: np.ndarray, isa: str) -> np.ndarray: ...
def gate_mul(gate: np.ndarray, up: np.ndarray, relu2: bool, isa: str) -> np.ndarray: ...
def cache_block_bytes(head_dim: int, type_id: int) -> int: ...
def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, type_id: int, scale: float, isa: str, split: bool = False
) -> np.ndarray: ...
def rope_table(inv_freq: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]: ...

DENSE_TYPES: tuple[int, ...]
PACKED_TYPES: tuple[int, ...]
STORED_16: int
STORED_32: int
STORED_2BIT: int
STORED_TRITS: int

def packers() -> list[str]: ...
def convert_dense(out: np.ndarray, to: int, data: np.ndarray, type_id: int, packer: str) -> int: ...
def weight_statistics(data: np.ndarray, type_id: int, packer: str) -> tuple[int, int, int]: ...
def pack(
    out: np.ndarray,
    type_id: int,
    rows: int,
    cols: int,
    tiles: Tiles,
    source: np.ndarray,
    stored: int,
    first: int,
    start: int,
    stop: int,
    packer: str,
    threshold: int = 1,
    head_rows: int = 0,
    d: int = 0,
) -> int: ...
