# Limits of the machine, and the kernels one by one: for benchmarks, tests and the self-test of `bitconv doctor`.

def int8_peak(str isa, int threads) -> float:
    """Multiply-adds a second on registers with the arithmetic of the tile kernel, all threads at once; 0 if unknown."""
    cdef const bc_isa *kernels = find_isa(isa)
    cdef double result
    if threads < 1:
        raise ValueError("wrong arguments")
    with nogil:
        result = bc_int8_peak(kernels, threads)
    return result


def load_widths() -> list:
    """Bytes of one load that read_bandwidth can use on this CPU, widest first."""
    return [bc_readers[i].width for i in range(BC_N_READERS) if bc_readers[i].usable()]


def read_bandwidth(const uint8_t[::1] data, int threads, int streams, int width, int64_t ahead=0, int64_t chunk=0) -> float:
    """Bytes a second that threads read.

    They take chunks of so many bytes in turn (0: one each), read each in so many far-apart streams by loads of a width
    out of load_widths(), and prefetch what comes `ahead` bytes later (0: nothing).
    """
    cdef bc_read_job job
    cdef double seconds
    job.reader = NULL
    for i in range(BC_N_READERS):
        if bc_readers[i].width == width and bc_readers[i].usable():
            job.reader = &bc_readers[i]
    if job.reader == NULL or threads < 1 or streams < 1 or ahead < 0 or chunk < 0:
        raise ValueError("wrong arguments")
    job.chunk = (chunk or data.shape[0] // threads) // (streams * BC_READ_STEP) * (streams * BC_READ_STEP)
    if not 0 < job.chunk <= data.shape[0]:
        raise ValueError("too little data for these chunks")
    job.data, job.chunks, job.streams, job.ahead = &data[0], data.shape[0] // job.chunk, streams, ahead
    with nogil:
        seconds = bc_time_team(threads, bc_read_work, &job)
    return job.chunks * job.chunk / seconds


def weight_bytes(weight) -> int:
    """Bytes of a weight, as Engine takes it, that a product with one token reads."""
    cdef bc_matrix m = as_matrix(weight[0], weight[1], weight[2], weight[3], weight[4], weight[5])
    return matrix_bytes(&m)


def time_linears(weights, const int8_t[:, ::1] codes, str isa, int threads) -> float:
    """Seconds that the products of ternary weights of one shape with codes [tokens, cols] take, one after the other.

    weights: as Engine takes them. Memory that the products write was written before: a pass has it mapped too.
    """
    cdef const bc_isa *kernels = find_isa(isa)
    cdef int64_t n = codes.shape[0], cols = codes.shape[1], i
    if not weights or n < 1 or threads < 1:
        raise ValueError("wrong arguments")
    cdef bc_linear_job job
    cdef bc_input given
    cdef double seconds
    cdef int8_t[:, ::1] own = np.array(codes)
    cdef int8_t[::1] packed = np.zeros((n + BC_MAX_TILE) * cols, dtype=np.int8)
    cdef float[::1] scale = np.ones(n, dtype=np.float32), out = np.ones(n * weights[0][1], dtype=np.float32)
    cdef int32_t[::1] total = np.asarray(codes).sum(axis=1, dtype=np.int32)
    cdef uint8_t[::1] tables = np.ones(threads * BC_MAX_LINEARS * BC_GEMM_TOKENS * cols * BC_TABLE_BYTES, dtype=np.uint8)
    cdef bc_matrix *matrices = <bc_matrix *>calloc(len(weights), sizeof(bc_matrix))
    if matrices == NULL:
        raise MemoryError
    try:
        for i, (data, rows, columns, type_id, factor, tiles) in enumerate(weights):
            if (rows, columns) != (weights[0][1], cols) or bc_find_ternary(kernels, type_id) == NULL:
                raise ValueError("wrong weights")
            matrices[i] = as_matrix(data, rows, columns, type_id, factor, tiles)
        given.n, given.cols, given.codes_stride = n, cols, cols
        given.codes, given.tiles, given.scale, given.sum, given.tables = &own[0, 0], &packed[0], &scale[0], &total[0], &tables[0]
        job.isa, job.weights, job.n, job.in_, job.out = kernels, matrices, len(weights), &given, &out[0]
        with nogil:
            seconds = bc_time_linears(&job, threads)
    finally:
        free(matrices)
    return seconds


def quantise(const float[::1] x, str isa) -> tuple:
    """(codes int8 [n], scale, sum, finite) of one activation row."""
    cdef const bc_isa *kernels = find_isa(isa)
    codes = np.empty(bc_round_up(x.shape[0], 128), dtype=np.int8)
    cdef int8_t[::1] q = codes
    cdef float scale
    cdef int32_t total
    cdef int bad = kernels.quantise(&x[0], x.shape[0], q.shape[0], &q[0], &scale, &total)
    if np.any(codes[x.shape[0]:]):
        raise AssertionError("padding codes are not zero")
    return codes[:x.shape[0]], scale, total, not bad


def few(const uint8_t[::1] data, int64_t rows, int64_t cols, int type_id, const int8_t[:, ::1] q, str isa,
        int64_t row0=0, row1=None):
    """int32 [tokens, row1 - row0]: as gemv, for 2 to 4 tokens in one pass; None where the instruction set has no such kernel."""
    cdef const bc_ternary *kernels = find_ternary(isa, type_id)
    cdef bc_matrix m = as_matrix(data, rows, cols, type_id, 1.0, (0, 0, 0))
    cdef int64_t end = rows if row1 is None else row1
    if q.shape[1] != cols or not 2 <= q.shape[0] <= BC_FEW or not 0 <= row0 < end <= rows or row0 % kernels.row_step(&m):
        raise ValueError("wrong arguments")
    if kernels.few == NULL:
        return None
    out = np.empty((q.shape[0], end - row0), dtype=np.int32)
    cdef int32_t[:, ::1] sums = out
    cdef int32_t[::1] q_sum = np.asarray(q).sum(axis=1, dtype=np.int32)
    kernels.few(&m, row0, end, &q[0, 0], cols, &q_sum[0], <int>q.shape[0], &sums[0, 0], end - row0)
    return out


def gemv(const uint8_t[::1] data, int64_t rows, int64_t cols, int type_id, const int8_t[::1] q, str isa,
         tiles=(0, 0, 0), int64_t row0=0, row1=None):
    """int32 [row1 - row0]: exact products of a ternary weight with the codes q of one token."""
    cdef const bc_ternary *kernels = find_ternary(isa, type_id)
    cdef bc_matrix m = as_matrix(data, rows, cols, type_id, 1.0, tiles)
    cdef int64_t end = rows if row1 is None else row1, k
    if q.shape[0] != cols or not 0 <= row0 < end <= rows or row0 % kernels.row_step(&m):
        raise ValueError("wrong arguments")
    out = np.empty(end - row0, dtype=np.int32)
    cdef int32_t[::1] sums = out
    cdef int32_t q_sum = int(np.asarray(q).sum(dtype=np.int64))
    cdef uint8_t[::1] table = np.zeros(BC_TABLE_BYTES * cols, dtype=np.uint8)
    if kernels.prepare != NULL:
        for k in range(0, cols, 192):
            kernels.prepare(&m, &q[0], k, min(k + 192, cols), &table[0])
    kernels.gemv(&m, row0, end, &q[0], q_sum, &table[0], &sums[0])
    return out


def panels(const uint8_t[::1] data, int64_t rows, int64_t cols, int type_id, int64_t row0, str isa, tiles=(0, 0, 0)):
    """uint8 [32, cols]: codes trit + 1 of 32 rows, put back in order from the panels that prefill unpacks."""
    cdef const bc_ternary *kernels = find_ternary(isa, type_id)
    cdef bc_matrix m = as_matrix(data, rows, cols, type_id, 1.0, tiles)
    cdef int64_t k0 = 0, k1
    cdef uint8_t[::1] panel = np.zeros(BC_PANEL_ROWS * BC_PANEL_COLS, dtype=np.uint8)
    if not 0 <= row0 < rows or row0 % BC_PANEL_ROWS:
        raise ValueError("wrong arguments")
    parts = []
    while k0 < cols:
        k1 = kernels.panel_end(&m, k0)
        if not k0 < k1 <= k0 + BC_PANEL_COLS:
            raise AssertionError(f"a panel from {k0} to {k1}")
        kernels.panel(&m, row0, k0, k1, &panel[0])
        codes = np.asarray(panel)[: BC_PANEL_ROWS * (k1 - k0)].reshape(2, -1, BC_TILE_ROWS, 4)
        parts.append(codes.transpose(0, 2, 1, 3).reshape(BC_PANEL_ROWS, -1).copy())
        k0 = k1
    return np.concatenate(parts, axis=1)


def tile(const uint8_t[:, :, :, ::1] panel, const int8_t[:, :, ::1] tokens, str isa):
    """int32 [tile, 16 * row_tiles]: panel [row_tiles, k/4, 16, 4] times tokens [k/4, tile, 4]; tile is 2, 4 or 6, row_tiles 1 or 2."""
    if (panel.shape[1] != tokens.shape[0] or panel.shape[2] != BC_TILE_ROWS or panel.shape[3] != 4 or tokens.shape[2] != 4
            or panel.shape[0] not in (1, 2)):
        raise ValueError("wrong shapes")
    if tokens.shape[1] not in (2, 4, 6) or tokens.shape[0] < 1:
        raise ValueError("wrong tile")
    out = np.zeros((tokens.shape[1], BC_PANEL_ROWS), dtype=np.int32)
    cdef int32_t[:, ::1] sums = out
    cdef int32_t row_tiles = <int32_t>panel.shape[0]
    find_isa(isa).tile(&panel[0, 0, 0, 0], row_tiles, &tokens[0, 0, 0], <int32_t>tokens.shape[1], tokens.shape[0] * 4, &sums[0, 0])
    return out[:, : row_tiles * BC_TILE_ROWS]


def dense(const uint8_t[::1] data, int64_t rows, int64_t cols, int type_id, const float[:, ::1] x, str isa):
    """float32 [tokens, rows]: a dense weight times x [tokens, cols padded to LANES]."""
    cdef bc_matrix m = as_matrix(data, rows, cols, type_id, 1.0, (0, 0, 0))
    if not bc_is_dense(type_id) or x.shape[1] != bc_round_up(cols, BC_LANES):
        raise ValueError("wrong arguments")
    out = np.empty((x.shape[0], rows), dtype=np.float32)
    cdef float[:, ::1] y = out
    cdef const bc_isa *kernels = find_isa(isa)
    cdef int64_t t, each = bc_digits_bytes(cols)
    cdef uint8_t[::1] memory = np.zeros(x.shape[0] * each + 64, dtype=np.uint8)
    cdef uint8_t *digits = aligned(&memory[0])
    for t in range(x.shape[0] if type_id == BC_Q6_K else 0):
        kernels.digits(&x[t, 0], cols, digits + t * each)
    kernels.dense(&m, 0, rows, &x[0, 0], x.shape[1], x.shape[0], &y[0, 0], rows, digits)
    return out


def norm(const float[::1] x, const float[::1] g, float eps, str isa):
    """float32 [n]: RMS norm of one row."""
    if g.shape[0] != x.shape[0]:
        raise ValueError("wrong shapes")
    out = np.empty(bc_round_up(x.shape[0], BC_LANES), dtype=np.float32)
    cdef float[::1] y = out
    find_isa(isa).norm(&x[0], &g[0], eps, x.shape[0], &y[0])
    return out[:x.shape[0]]


def exp(const float[::1] x, str isa):
    """float32 [n]: e^x."""
    out = np.empty(x.shape[0], dtype=np.float32)
    cdef float[::1] y = out
    find_isa(isa).exp(&x[0], x.shape[0], &y[0])
    return out


def gate_mul(const float[::1] gate, const float[::1] up, bint relu2, str isa):
    """float32 [n]: activation(gate) * up, n a multiple of LANES."""
    if gate.shape[0] != up.shape[0] or gate.shape[0] % BC_LANES:
        raise ValueError("wrong shapes")
    out = np.empty(gate.shape[0], dtype=np.float32)
    cdef float[::1] y = out
    cdef const bc_isa *kernels = find_isa(isa)
    if relu2:
        kernels.relu2_mul(&gate[0], &up[0], gate.shape[0], &y[0])
    else:
        kernels.silu_mul(&gate[0], &up[0], gate.shape[0], &y[0])
    return out


def attention(const float[:, ::1] q, const float[:, ::1] k, const float[:, ::1] v, int type_id, float scale, str isa, bint split=False):
    """float32 [queries, head_dim]: some queries over keys and values [n, head_dim], through a cache of the type.

    The last query sees all n keys, each before it one fewer. split: each segment of keys on its own, the last one first.
    """
    cdef const bc_isa *kernels = find_isa(isa)
    cdef int32_t dim = <int32_t>q.shape[1], segment
    cdef int64_t n = k.shape[0], key, i, ld
    if k.shape[1] != dim or v.shape[1] != dim or v.shape[0] != n or n < q.shape[0]:
        raise ValueError("wrong shapes")
    if type_id not in (BC_F16, BC_F32, BC_Q8_0) or dim > BC_MAX_HEAD_DIM or not 1 <= q.shape[0] <= bc_max_queries(dim):
        raise ValueError("wrong arguments")
    cdef int64_t blocks = bc_round_up(n, BC_KEYS) // BC_KEYS
    cdef uint8_t[::1] k_cache = np.zeros(blocks * bc_key_block_bytes(type_id, dim), dtype=np.uint8)
    cdef uint8_t[::1] v_cache = np.zeros(blocks * bc_value_block_bytes(type_id, dim), dtype=np.uint8)
    for key in range(n):
        kernels.store_kv(&k[key, 0], &v[key, 0], dim, type_id, key, &k_cache[0], &v_cache[0])
    out = np.empty((q.shape[0], dim), dtype=np.float32)
    cdef float[:, ::1] y = out
    cdef bc_attention a
    a.n_q, a.head_dim, a.v_stride = <int32_t>q.shape[0], dim, <int32_t>bc_round_up(dim, 16)
    a.k, a.v, a.cache_type, a.scale = &k_cache[0], &v_cache[0], type_id, scale
    a.k_ahead = a.v_ahead = 0
    for i in range(q.shape[0]):
        a.q[i], a.out[i], a.n_keys[i] = &q[i, 0], &y[i, 0], <int32_t>(n - q.shape[0] + 1 + i)
    if not split:
        kernels.attend(&a)
        return out
    segments = -(-n // BC_SEGMENT)
    ld = a.n_q * bc_part_floats(a.v_stride)
    cdef float[::1] parts = np.full(segments * ld, np.nan, dtype=np.float32)
    for segment in reversed(range(segments)):
        kernels.attend_segment(&a, segment, &parts[segment * ld])
    kernels.merge_segments(&a, &parts[0], ld)
    return out


def rope_table(const float[::1] inv_freq, int64_t n) -> tuple:
    """(cos, sin) float32 [n, head_dim / 2] of positions 0..n-1."""
    cos, sin = np.empty((n, inv_freq.shape[0]), np.float32), np.empty((n, inv_freq.shape[0]), np.float32)
    cdef float[:, ::1] c = cos, s = sin
    bc_rope_rows(&inv_freq[0], <int32_t>inv_freq.shape[0], 0, n, &c[0, 0], &s[0, 0])
    return cos, sin


