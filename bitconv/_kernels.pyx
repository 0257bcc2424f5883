# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=False
"""The typed door to the C kernels: checks every buffer and index, then calls C without the GIL."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free

import contextlib
import math
import mmap

import numpy as np

include "_kernels_c.pxi"

LANES = BC_LANES
KEYS = BC_KEYS
SEGMENT = BC_SEGMENT
CACHE_TYPES = {"f16": BC_F16, "f32": BC_F32, "q8_0": BC_Q8_0}
MAX_TILE_ROWS = BC_MAX_ROWS
GEMM_TOKENS = BC_GEMM_TOKENS
PANEL_COLS = BC_PANEL_COLS
MAX_HEAD_DIM = BC_MAX_HEAD_DIM
SITES = BC_SITES


def has_openmp() -> bool:
    """Whether this build runs more than one thread."""
    return bool(BC_OPENMP)


def cpu_features() -> dict:
    """The CPU features that kernels look for, by name."""
    cdef bc_cpu_feature features[BC_MAX_FEATURES]
    cdef int n = bc_cpu_features(features)
    return {features[i].name.decode(): bool(features[i].present) for i in range(n)}


def all_isas() -> list:
    """The instruction sets that this build has kernels for, best first."""
    return [bc_isas[i].name.decode() for i in range(BC_N_ISAS)]


def isas() -> list:
    """Those of all_isas() that this CPU can run."""
    return [bc_isas[i].name.decode() for i in range(BC_N_ISAS) if bc_isas[i].usable()]


cdef const bc_isa *find_isa(str name) except NULL:
    for i in range(BC_N_ISAS):
        if bc_isas[i].name.decode() == name and bc_isas[i].usable():
            return bc_isas[i]
    raise ValueError(f"no instruction set {name!r} on this CPU; there is {', '.join(isas())}")


cdef const bc_ternary *find_ternary(str isa, int type_id) except NULL:
    cdef const bc_ternary *kernels = bc_find_ternary(find_isa(isa), type_id)
    if kernels == NULL:
        raise ValueError(f"no {isa} kernels for tensor type {type_id}")
    return kernels


def kernel_names(str isa, int type_id) -> tuple:
    """The C functions (decode, prefill) that execute a ternary type, or () when it is not executed natively."""
    cdef const bc_ternary *kernels = bc_find_ternary(find_isa(isa), type_id)
    return () if kernels == NULL else (kernels.gemv_name.decode(), kernels.panel_name.decode())


def kernel_name(str isa, int type_id, int64_t tokens) -> str:
    """The C functions that multiply a ternary type with so many tokens, where all products of an input are of it."""
    cdef const bc_ternary *kernels = find_ternary(isa, type_id)
    if bc_by_panels(kernels, tokens):
        return f"{kernels.panel_name.decode()} + {find_isa(isa).tile_name.decode()}"
    return (kernels.gemv_name if tokens == 1 or kernels.few == NULL else kernels.few_name).decode()


cdef int64_t ternary_bytes(int64_t rows, int64_t cols, int type_id, tiles, int64_t highest) except -1:
    """Bytes of the codes of a legal ternary weight, without what follows them; ValueError when it is not legal.

    highest: rows that a tile may have.
    """
    if type_id == BC_I2_S and cols % 128 == 0:
        return rows * cols // 4
    if type_id == BC_TQ1_0 and cols % 256 == 0:
        return rows * cols // 256 * 54
    if type_id == BC_TQ2_0 and cols % 256 == 0:
        return rows * cols // 256 * 66
    if type_id in (BC_TL1, BC_TL2):
        bm_tile, bk, bm = tiles
        if not 0 < bm_tile <= highest or rows % bm_tile or bk <= 0:
            raise ValueError(f"tiles of {bm_tile} rows x {bk} columns in a weight of {rows} x {cols}")
        if type_id == BC_TL1:
            if bm in (32, 64) and bm_tile % bm == 0 and cols % bk == 0 and bk % (256 // bm) == 0 and bk <= 256 and cols % 16 == 0:
                return rows * cols // 4
        elif bm_tile % 32 == 0 and bk % 24 == 0 and bk <= 240 and cols % bk % 32 == 0 and cols % bk <= 256 and cols >= bk:
            three_k = cols // bk * bk
            return rows * three_k // 6 + rows * three_k // 24 + rows * (cols - three_k) // 4
    raise ValueError(f"tensor type {type_id} cannot hold {rows} x {cols} (tiles {tiles}), or has no kernels")


cdef int64_t matrix_bytes(const bc_matrix *m) except -1:
    """Bytes that one product with a vector reads."""
    if bc_is_dense(m.type):
        return m.rows * bc_dense_bytes(m.type, m.cols)
    return ternary_bytes(m.rows, m.cols, m.type, (m.tile_rows, m.tile_cols, m.micro_rows), BC_MAX_ROWS)


cdef bc_matrix as_matrix(const uint8_t[::1] data, int64_t rows, int64_t cols, int type_id, float scale, tiles) except *:
    cdef bc_matrix m
    cdef int64_t need
    if rows <= 0 or cols <= 0:
        raise ValueError(f"a matrix of {rows} x {cols}")
    if bc_is_dense(type_id):
        need = rows * bc_dense_bytes(type_id, cols)
        if need == 0:
            raise ValueError(f"tensor type {type_id} cannot hold rows of {cols}")
        if type_id in (BC_F32, BC_F16, BC_BF16) and (<size_t>&data[0]) % (4 if type_id == BC_F32 else 2):
            raise ValueError("the data of a dense matrix is not aligned")
    else:
        need = ternary_bytes(rows, cols, type_id, tiles, BC_MAX_ROWS)
    if data.shape[0] < need:
        raise ValueError(f"a matrix of {rows} x {cols} needs {need} bytes, not {data.shape[0]}")
    m.data, m.rows, m.cols, m.type, m.scale = &data[0], rows, cols, type_id, scale
    m.tile_rows, m.tile_cols, m.micro_rows = tiles
    return m


cdef class Engine:
    """A model ready to run: its dimensions, the kernels of one instruction set, and pointers into the mapped file.

    Weights are (data uint8, rows, cols, type id, scale, (BM, BK, bm)) tuples, the last all 0 but for TL1 and TL2; norms
    are float32 arrays. Everything given is kept alive by the engine. A model is complete once `set_layer` was called for each layer.
    """

    cdef bc_model model
    cdef bc_layer *layers
    cdef list keep
    cdef readonly int vocab
    cdef int n_set

    def __cinit__(self, *, str isa, int n_layers, int hidden, int ffn, int n_heads, int n_kv_heads, int head_dim, bint relu2,
                  bint interleaved, float eps, float attention_scale, output_norm, embedding, head):
        if min(n_layers, hidden, ffn, n_heads, n_kv_heads, head_dim) < 1 or n_heads % n_kv_heads or head_dim % 2:
            raise ValueError("impossible model dimensions")
        if head_dim > BC_MAX_HEAD_DIM:
            raise ValueError(f"head_dim {head_dim} is larger than {BC_MAX_HEAD_DIM}")
        self.keep = []
        self.n_set = 0
        self.layers = <bc_layer *>calloc(n_layers, sizeof(bc_layer))
        if self.layers == NULL:
            raise MemoryError
        self.model.isa = find_isa(isa)
        self.model.n_layers, self.model.hidden, self.model.ffn = n_layers, hidden, ffn
        self.model.n_heads, self.model.n_kv_heads, self.model.head_dim = n_heads, n_kv_heads, head_dim
        self.model.relu2, self.model.interleaved = relu2, interleaved
        self.model.eps, self.model.attention_scale = eps, attention_scale
        self.model.layers = self.layers
        self.model.output_norm = self.norm(output_norm, hidden)
        self.model.embedding = self.matrix(embedding, embedding[1], hidden)
        self.model.head = self.matrix(head, embedding[1], hidden)
        if not bc_is_dense(self.model.embedding.type) or not bc_is_dense(self.model.head.type):
            raise ValueError("embedding and head must be of a dense type")
        self.vocab = embedding[1]

    def __dealloc__(self):
        free(self.layers)

    cdef const float *norm(self, array, int64_t n) except NULL:
        cdef const float[::1] values = array
        if values.shape[0] != n:
            raise ValueError(f"a norm of {values.shape[0]} weights, expected {n}")
        self.keep.append(array)
        return &values[0]

    cdef bc_matrix matrix(self, weight, int64_t rows, int64_t cols) except *:
        cdef bc_matrix m = as_matrix(weight[0], weight[1], weight[2], weight[3], weight[4], weight[5])
        if m.rows != rows or m.cols != (bc_round_up(cols, 128) if m.type == BC_I2_S else cols):
            raise ValueError(f"a weight of {m.rows} x {m.cols}, expected {rows} x {cols}")
        if not bc_is_dense(m.type) and bc_find_ternary(self.model.isa, m.type) == NULL:
            raise ValueError(f"no kernel for tensor type {m.type}")
        self.keep.append(weight[0])
        return m

    def set_layer(self, int index, *, attn_norm, attn_sub_norm, ffn_norm, ffn_sub_norm, q, k, v, output, gate, up, down):
        """Give a layer its weights; sub-norms may be None."""
        if not 0 <= index < self.model.n_layers:
            raise IndexError(index)
        cdef bc_layer *l = self.layers + index
        cdef int64_t hidden = self.model.hidden, ffn = self.model.ffn
        cdef int64_t q_width = self.model.n_heads * self.model.head_dim, kv_width = self.model.n_kv_heads * self.model.head_dim
        if l.attn_norm == NULL:
            self.n_set += 1
        l.attn_norm, l.ffn_norm = self.norm(attn_norm, hidden), self.norm(ffn_norm, hidden)
        if attn_sub_norm is not None:
            l.attn_sub_norm = self.norm(attn_sub_norm, q_width)
        if ffn_sub_norm is not None:
            l.ffn_sub_norm = self.norm(ffn_sub_norm, ffn)
        l.q, l.k, l.v = self.matrix(q, q_width, hidden), self.matrix(k, kv_width, hidden), self.matrix(v, kv_width, hidden)
        l.output = self.matrix(output, hidden, q_width)
        l.gate, l.up, l.down = self.matrix(gate, ffn, hidden), self.matrix(up, ffn, hidden), self.matrix(down, hidden, ffn)
        # a task takes the same rows of both, so it takes whole tiles of both
        if math.lcm(max(l.gate.tile_rows, 1), max(l.up.tile_rows, 1), BC_LANES) > BC_MAX_ROWS:
            raise ValueError(f"tiles of {l.gate.tile_rows} and {l.up.tile_rows} rows in the two matrices of a gate")

    def weight_bytes(self) -> int:
        """Bytes of the matrices that each decoded token reads: those of the layers, and the head."""
        cdef int64_t total = matrix_bytes(&self.model.head)
        cdef bc_layer *l
        cdef int i
        for i in range(self.model.n_layers):
            l = self.layers + i
            total += matrix_bytes(&l.q) + matrix_bytes(&l.k) + matrix_bytes(&l.v) + matrix_bytes(&l.output)
            total += matrix_bytes(&l.gate) + matrix_bytes(&l.up) + matrix_bytes(&l.down)
        return total

    def scratch_bytes(self, int64_t n, int threads) -> int:
        """Working memory of a batch of n tokens."""
        cdef bc_scratch s
        return bc_scratch_layout(&self.model, n, threads, NULL, &s)

    def cache_bytes(self, int64_t n_ctx, int type_id) -> int:
        """Memory of a key/value cache of n_ctx positions, for one sequence."""
        return (bc_round_up(n_ctx, BC_KEYS) // BC_KEYS * self.model.n_layers * self.model.n_kv_heads
                * cache_block_bytes(self.model.head_dim, type_id))


def cache_block_bytes(int64_t head_dim, int type_id) -> int:
    """Bytes of the keys and values of KEYS positions of one key/value head."""
    return bc_key_block_bytes(type_id, head_dim) + bc_value_block_bytes(type_id, head_dim)


cdef uint8_t *aligned(uint8_t *p) noexcept:
    """The next address that begins a cache line."""
    return p + (64 - <size_t>p % 64) % 64


def small_pages(nbytes) -> np.ndarray:
    """Zeros, uint8 [nbytes], that become memory page by page as they are touched; OSError when the system refuses.

    NumPy asks for huge pages. The first position alone touches one in every head of every layer: nearly the whole cache.
    """
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)


cdef class Cache:
    """Keys and values of some sequences, with the RoPE table of their positions.

    inv_freq: float32 [head_dim / 2]. Memory is reserved at once and used as positions are.
    """

    cdef bc_cache cache
    cdef Engine engine
    cdef object k, v, cos, sin, inv_freq, scratch, parts, parts_done
    cdef readonly int64_t n_ctx
    cdef readonly int n_sequences
    cdef int64_t rope_rows

    def __cinit__(self, Engine engine, int64_t n_ctx, int type_id, inv_freq, int n_sequences=1):
        if engine.n_set != engine.model.n_layers:
            raise ValueError("the engine has layers without weights")
        if n_ctx < 1 or n_sequences < 1 or n_ctx > 2**31 - 64 or type_id not in (BC_F16, BC_F32, BC_Q8_0):
            raise ValueError("impossible cache")
        self.engine, self.n_ctx, self.n_sequences = engine, n_ctx, n_sequences
        cdef int64_t half = engine.model.head_dim // 2, heads = engine.model.n_layers * engine.model.n_kv_heads * n_sequences
        self.inv_freq = np.ascontiguousarray(inv_freq, dtype=np.float32)
        if self.inv_freq.shape != (half,):
            raise ValueError(f"inv_freq must have {half} values")
        self.cache.type, self.cache.n_ctx = type_id, bc_round_up(n_ctx, BC_KEYS)
        cdef int64_t blocks = heads * (self.cache.n_ctx // BC_KEYS)
        self.k = small_pages(blocks * bc_key_block_bytes(type_id, engine.model.head_dim) + 64)
        self.v = small_pages(blocks * bc_value_block_bytes(type_id, engine.model.head_dim) + 64)
        self.parts, self.parts_done = np.empty(0, dtype=np.float32), np.zeros(BC_MAX_SPLIT, dtype=np.int32)
        self.cos = np.empty((n_ctx, half), dtype=np.float32)
        self.sin = np.empty((n_ctx, half), dtype=np.float32)
        cdef uint8_t[::1] k = self.k, v = self.v
        cdef float[:, ::1] cos = self.cos, sin = self.sin
        cdef int32_t[::1] done = self.parts_done
        self.cache.k, self.cache.v, self.cache.parts_done = aligned(&k[0]), aligned(&v[0]), &done[0]
        self.cache.cos, self.cache.sin = &cos[0, 0], &sin[0, 0]
        self.scratch = np.zeros(0, dtype=np.uint8)
        self.rope_rows = 0

    cdef void fill_rope(self, int64_t rows) except *:
        cdef float[:, ::1] cos = self.cos, sin = self.sin
        cdef const float[::1] inv_freq = self.inv_freq
        if rows > self.rope_rows:
            rows = min(bc_round_up(rows, 256), self.n_ctx)
            bc_rope_rows(&inv_freq[0], <int32_t>inv_freq.shape[0], self.rope_rows, rows, &cos[0, 0], &sin[0, 0])
            self.rope_rows = rows

    cdef void make_parts(self, int64_t n, int64_t n_keys, int threads) except *:
        """Room for the segments of n tokens' queries, if they are to be tasks of their own."""
        cdef int64_t need = bc_split_floats(&self.engine.model, n, n_keys, threads)
        cdef float[::1] parts
        if need > self.parts.shape[0]:
            self.parts = np.empty(need * 2, dtype=np.float32)
        parts = self.parts
        self.cache.parts = &parts[0] if need else NULL

    def forward(self, const int32_t[::1] tokens, const int32_t[::1] positions, const int32_t[::1] sequences,
                const int32_t[::1] logit_rows, int threads, bint trace=False):
        """Run a batch of (token, position, sequence); positions of a sequence must ascend and follow its cached ones.

        Returns (logits float32 [wanted, vocab], threads that took part, first bad site or -1, trace or None), where
        trace is ([codes int8 [layers, tokens, padded cols] for each site], scale float32 [layers, sites, tokens]) and
        a bad site is layer * SITES + site, layers * SITES for the last norm, or one more for the logits.
        """
        cdef bc_batch batch
        cdef int64_t n = tokens.shape[0]
        if n < 1 or positions.shape[0] != n or sequences.shape[0] != n or logit_rows.shape[0] > n:
            raise ValueError("batch arrays of unequal length")
        batch.n, batch.token, batch.position, batch.sequence = n, &tokens[0], &positions[0], &sequences[0]
        batch.n_logits = logit_rows.shape[0]
        batch.logit_rows = &logit_rows[0] if batch.n_logits else NULL
        return self.run(&batch, threads, trace)

    def extend(self, ids not None, int64_t position, int64_t n_logits, int threads, bint trace=False):
        """`forward` of the tokens of sequence 0 from a position on, with the logits of the last n_logits.

        A step of decode does little but read weights, so what Python and NumPy would do around it can be measured.
        """
        cdef bc_batch batch
        cdef int64_t n = len(ids), i
        if not 0 <= n_logits <= n or n < 1 or position < 0 or position > self.n_ctx - n:
            raise ValueError("the tokens do not fit")
        cdef int32_t *plan = <int32_t *>calloc(4 * n, sizeof(int32_t))
        if plan == NULL:
            raise MemoryError
        try:
            for i in range(n):
                plan[i], plan[n + i] = ids[i], <int32_t>(position + i)
            for i in range(n_logits):
                plan[3 * n + i] = <int32_t>(n - n_logits + i)
            batch.n, batch.token, batch.position, batch.sequence = n, plan, plan + n, plan + 2 * n
            batch.n_logits, batch.logit_rows = n_logits, plan + 3 * n
            return self.run(&batch, threads, trace)
        finally:
            free(plan)

    cdef object run(self, bc_batch *batch, int threads, bint trace):
        cdef int64_t n = batch.n, i, last = 0
        cdef int32_t bad, size
        cdef bc_model *model = &self.engine.model
        if threads < 1:
            raise ValueError("no threads")
        for i in range(n):
            if not 0 <= batch.token[i] < self.engine.vocab:
                raise ValueError(f"token {batch.token[i]} is outside the vocabulary of {self.engine.vocab}")
            if not 0 <= batch.position[i] < self.n_ctx or not 0 <= batch.sequence[i] < self.n_sequences:
                raise ValueError(f"position {batch.position[i]} of sequence {batch.sequence[i]} is outside the cache")
            last = max(last, batch.position[i])
        for i in range(batch.n_logits):
            if not 0 <= batch.logit_rows[i] < n:
                raise ValueError("a wanted row is outside the batch")
        self.fill_rope(last + 1)
        cdef int64_t need = self.engine.scratch_bytes(n, threads) + 64
        if self.scratch.shape[0] < need:
            self.scratch = np.zeros(need, dtype=np.uint8)
        cdef uint8_t[::1] scratch = self.scratch
        cdef uint8_t *base = aligned(&scratch[0])
        self.make_parts(n, last + 1, threads)
        logits = np.empty((batch.n_logits, self.engine.vocab), dtype=np.float32)
        cdef float[:, ::1] logits_view = logits
        batch.logits = &logits_view[0, 0] if batch.n_logits else NULL
        cdef int8_t[:, :, ::1] codes
        cdef float[:, :, ::1] scales
        for i in range(BC_SITES):
            batch.trace_codes[i] = NULL
        batch.trace_scale = NULL
        traced = None
        if trace:
            traced = ([np.zeros((model.n_layers, n, bc_round_up(bc_site_width(model, i), 128)), dtype=np.int8)
                       for i in range(BC_SITES)], np.zeros((model.n_layers, BC_SITES, n), dtype=np.float32))
            scales = traced[1]
            batch.trace_scale = &scales[0, 0, 0]
            for i in range(BC_SITES):
                codes = traced[0][i]
                batch.trace_codes[i] = &codes[0, 0, 0]
        with nogil:
            size = bc_forward(model, &self.cache, batch, base, threads, &bad)
        return logits, size, (-1 if bad == 2**31 - 1 else bad), traced


def first_malformed(list weights not None, int threads) -> int:
    """Index of the first ternary weight (tuples that Engine takes) with a code that no weight has, or -1; reads all once."""
    cdef int64_t n = len(weights), i, found
    if threads < 1:
        raise ValueError("wrong arguments")
    cdef bc_matrix *matrices = <bc_matrix *>calloc(n + 1, sizeof(bc_matrix))
    if matrices == NULL:
        raise MemoryError
    try:
        for i in range(n):
            weight = weights[i]
            matrices[i] = as_matrix(weight[0], weight[1], weight[2], weight[3], weight[4], weight[5])
        with nogil:
            found = bc_first_malformed(matrices, n, threads)
    finally:
        free(matrices)
    return found if found < n else -1


def scratch_bytes(int64_t n, *, int hidden, int ffn, int n_heads, int n_kv_heads, int head_dim) -> int:
    """Working memory of a batch of n tokens in a model of these dimensions."""
    cdef bc_model model
    cdef bc_scratch s
    model.hidden, model.ffn, model.n_heads, model.n_kv_heads, model.head_dim = hidden, ffn, n_heads, n_kv_heads, head_dim
    return bc_scratch_layout(&model, n, 1, NULL, &s)


include "_kernels_single.pxi"
include "_kernels_pack.pxi"
