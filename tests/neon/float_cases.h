/* The float kernels and the int8 tile of an instruction set against the scalar ones. */

static const int64_t lengths[] = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257, 1000};
enum { N_LENGTHS = sizeof lengths / sizeof *lengths };

#define FOR_LENGTHS_AND_KINDS               \
    for (int l = 0; l < N_LENGTHS; l++)     \
        for (int kind = 0; kind < N_KINDS; kind++)

static void check_norm(const bc_isa *isa)
{
    FOR_LENGTHS_AND_KINDS
    {
        const int64_t n = lengths[l], pad = bc_round_up(n, BC_LANES);
        const float *x = take_floats(n, n, kind), *g = take_floats(n, n, NORMAL);
        float *want = take(pad * 4), *got = take(pad * 4);
        const float a = isa_scalar.norm(x, g, 1e-5f, n, want), b = isa->norm(x, g, 1e-5f, n, got);
        expect(same_floats(&a, &b, 1) && same_floats(want, got, pad));
    }
    report(isa, "norm");
}

static void check_quantise(const bc_isa *isa)
{
    FOR_LENGTHS_AND_KINDS
    {
        const int64_t n = lengths[l], pad = bc_round_up(n, 128);
        const float *x = take_floats(n, n, kind);
        int8_t *want = (int8_t *)take_bytes(pad), *got = (int8_t *)take_bytes(pad);
        float scale[2];
        int32_t sum[2];
        const int bad = isa_scalar.quantise(x, n, pad, want, &scale[0], &sum[0]);
        expect(bad == isa->quantise(x, n, pad, got, &scale[1], &sum[1]) && same_floats(&scale[0], &scale[1], 1) &&
               sum[0] == sum[1] && !memcmp(want, got, (size_t)pad));
    }
    report(isa, "quantise");
}

static void check_activations(const bc_isa *isa)
{
    for (int relu2 = 0; relu2 < 2; relu2++) {
        FOR_LENGTHS_AND_KINDS
        {
            const int64_t n = lengths[l], pad = bc_round_up(n, BC_LANES);
            const float *gate = take_floats(n, pad, kind), *up = take_floats(n, pad, kind == ANY_BITS ? ANY_BITS : NORMAL);
            float *want = take(pad * 4), *got = take(pad * 4);
            (relu2 ? isa_scalar.relu2_mul : isa_scalar.silu_mul)(gate, up, n, want);
            (relu2 ? isa->relu2_mul : isa->silu_mul)(gate, up, n, got);
            expect(same_floats(want, got, n));
        }
        report(isa, relu2 ? "relu2_mul" : "silu_mul");
    }
}

static void check_exp(const bc_isa *isa)
{
    FOR_LENGTHS_AND_KINDS
    {
        const int64_t n = lengths[l];
        float *x = take_floats(n, n, kind), *want = take(n * 4), *got = take(n * 4);
        for (int64_t i = 0; i < n && kind == NORMAL; i++) /* all the range, with the edges of the clamp */
            x[i] = random_float(120.0f);
        isa_scalar.exp(x, n, want);
        isa->exp(x, n, got);
        expect(same_floats(want, got, n));
    }
    report(isa, "exp");
}

static void check_rope(const bc_isa *isa)
{
    for (int32_t dim = 2; dim <= 130; dim += dim < 20 ? 2 : 10)
        for (int32_t interleaved = 0; interleaved < 2; interleaved++) {
            float *want = take_floats(dim, dim, NORMAL), *got = take(dim * 4);
            const float *cos = take_floats(dim / 2, dim / 2, NORMAL), *sin = take_floats(dim / 2, dim / 2, NORMAL);
            memcpy(got, want, (size_t)dim * 4);
            isa_scalar.rope(want, cos, sin, dim, interleaved);
            isa->rope(got, cos, sin, dim, interleaved);
            expect(same_floats(want, got, dim));
        }
    report(isa, "rope");
}

static const int32_t cache_types[] = {BC_F16, BC_F32, BC_Q8_0};

static void check_store_kv(const bc_isa *isa)
{
    static const int32_t dims[] = {2, 4, 6, 18, 64, 100, 128};
    for (int repeat = 0; repeat < 40; repeat++)
        for (int i = 0; i < 7; i++)
            for (int t = 0; t < 3; t++) {
                const int32_t dim = dims[i], type = cache_types[t];
                const int kind = repeat % 2 ? ANY_BITS : NORMAL; /* NaN, too: a conversion has one right result */
                const int64_t key = random_in(0, 63), bytes = 2 * bc_value_block_bytes(type, dim);
                float *k = take_floats(dim, dim, kind), *v = take_floats(dim, dim, kind);
                for (int d = 0; d < dim && repeat % 4 == 3; d++) { /* finite, from scales of 0 to those beyond f16 */
                    const float power = ldexpf(1.0f, repeat * 2 - 60);
                    k[d] = random_float(power), v[d] = random_float(power);
                }
                void *want[2] = {take(bytes), take(bytes)}, *got[2] = {take(bytes), take(bytes)};
                isa_scalar.store_kv(k, v, dim, type, key, want[0], want[1]);
                isa->store_kv(k, v, dim, type, key, got[0], got[1]);
                expect(!memcmp(want[0], got[0], (size_t)bytes) && !memcmp(want[1], got[1], (size_t)bytes));
            }
    report(isa, "store_kv");
}

/* n halves */
static uint8_t *take_halves(int64_t n)
{
    uint8_t *p = take(n * 2);
    for (int64_t i = 0; i < n; i++) {
        const uint16_t half = bc_f32_to_f16(random_float(4.0f));
        memcpy(p + 2 * i, &half, 2);
    }
    return p;
}

/* Keys and values of n_keys positions; what stands behind them in the last block was stored from any bits. */
static void take_cache(bc_attention *a, int32_t n_keys)
{
    const int64_t n = bc_round_up(n_keys, BC_KEYS);
    uint8_t *k = take(n / BC_KEYS * bc_key_block_bytes(a->cache_type, a->head_dim));
    uint8_t *v = take(n / BC_KEYS * bc_value_block_bytes(a->cache_type, a->head_dim));
    for (int64_t key = 0; key < n; key++) {
        float x[2][BC_MAX_HEAD_DIM];
        for (int32_t d = 0; d < 2 * a->head_dim; d++)
            x[d % 2][d / 2] = key < n_keys ? random_float(8.0f) : bc_bits_float(random_u32());
        isa_scalar.store_kv(x[0], x[1], a->head_dim, a->cache_type, key, k, v);
    }
    a->k = k;
    a->v = v;
}

/* The last query sees all keys, the others fewer, down to a third; each segment on its own gives what the whole gives. */
static void attend_case(const bc_isa *isa, int32_t dim, int32_t n_keys, int32_t n_q, int32_t type, int kind)
{
    bc_attention a = {.n_q = n_q, .head_dim = dim, .v_stride = (int32_t)bc_round_up(dim, 16), .cache_type = type,
                      .scale = kind == LARGE ? 50.0f : 0.125f};
    take_cache(&a, n_keys);
    for (int i = 0; i < n_q; i++) {
        a.n_keys[i] = n_keys - (n_keys - 1) * (n_q - 1 - i) / (n_q < 3 ? 3 : n_q * 3 / 2);
        a.q[i] = take_floats(dim, dim, kind == LARGE ? NORMAL : kind);
        a.out[i] = take(dim * 4);
    }
    bc_attention b = a, c = a;
    for (int i = 0; i < n_q; i++)
        b.out[i] = take(dim * 4), c.out[i] = take(dim * 4);
    isa_scalar.attend(&a);
    isa->attend(&b);
    const int64_t ld = n_q * bc_part_floats(a.v_stride), segments = (n_keys + BC_SEGMENT - 1) / BC_SEGMENT;
    float *parts = take(segments * ld * 4);
    for (int64_t i = segments - 1; i >= 0; i--)
        isa->attend_segment(&c, (int32_t)i, parts + i * ld);
    isa->merge_segments(&c, parts, ld);
    int same = 1;
    for (int i = 0; i < n_q; i++)
        same &= same_floats(a.out[i], b.out[i], dim) && same_floats(a.out[i], c.out[i], dim);
    expect(same);
}

static void check_attend(const bc_isa *isa)
{
    static const int32_t dims[] = {2, 20, 64, 72, 128}, keys[] = {1, 3, 32, 33, 100, 300};
    static const int kinds[] = {NORMAL, LARGE, ZEROS, ONE_NAN};
    for (int d = 0; d < 5; d++)
        for (int k = 0; k < 6; k++)
            for (int i = 0; i < 4; i++)
                for (int32_t n_q = 1; n_q <= BC_QUERIES; n_q += 1 + n_q / 4)
                    for (int t = 0; t < 3; t++)
                        attend_case(isa, dims[d], keys[k], n_q, cache_types[t], kinds[i]);
    attend_case(isa, BC_MAX_HEAD_DIM, 600, bc_max_queries(BC_MAX_HEAD_DIM), BC_F16, NORMAL);
    report(isa, "attend");
}

static void check_dense(const bc_isa *isa)
{
    static const struct { int32_t type; const char *name; int64_t cols[6]; } dense[] = {
        {BC_F32, "dense F32", {1, 31, 32, 33, 100, 288}}, {BC_F16, "dense F16", {1, 31, 32, 33, 100, 288}},
        {BC_BF16, "dense BF16", {1, 31, 32, 33, 100, 288}}, {BC_Q8_0, "dense Q8_0", {32, 64, 96, 128, 256, 288}},
        {BC_Q6_K, "dense Q6_K", {256, 512, 768, 0, 0, 0}},
    };
    for (int i = 0; i < 5; i++) {
        for (int c = 0; c < 6 && dense[i].cols[c]; c++)
            for (int64_t n = 1; n <= 5; n++)
                for (int kind = 0; kind < N_KINDS; kind++) {
                    const int64_t rows = 6, cols = dense[i].cols[c], ldx = bc_round_up(cols, BC_LANES);
                    const bc_matrix w = {.data = take_bytes(rows * bc_dense_bytes(dense[i].type, cols)), .rows = rows,
                                         .cols = cols, .type = dense[i].type};
                    float *x = take(n * ldx * 4), *want = take(n * rows * 4), *got = take(n * rows * 4);
                    for (int64_t t = 0; t < n; t++)
                        memcpy(x + t * ldx, take_floats(cols, cols, kind), (size_t)cols * 4);
                    const int64_t each = dense[i].type == BC_Q6_K ? bc_digits_bytes(cols) : 0;
                    uint8_t *digits[2] = {take(n * each), take(n * each)};
                    for (int64_t t = 0; t < n && each; t++) {
                        isa_scalar.digits(x + t * ldx, cols, digits[0] + t * each);
                        isa->digits(x + t * ldx, cols, digits[1] + t * each);
                    }
                    isa_scalar.dense(&w, 1, rows, x, ldx, n, want, rows, digits[0]);
                    isa->dense(&w, 1, rows, x, ldx, n, got, rows, digits[1]);
                    expect(same_floats(want, got, n * rows) && !memcmp(digits[0], digits[1], (size_t)(n * each)));
                }
        report(isa, dense[i].name);
    }
}

static void check_widen(const bc_isa *isa)
{
    for (int tail = 0; tail < 40; tail++) { /* every half, and every tail */
        const int64_t n = 65536 - tail;
        uint16_t *halves = take(n * 2);
        float *want = take(n * 4), *got = take(n * 4);
        for (int64_t i = 0; i < n; i++)
            halves[i] = (uint16_t)(i + tail);
        const int32_t type = tail % 2 ? BC_F16 : BC_BF16;
        isa_scalar.widen(halves, type, n, want);
        isa->widen(halves, type, n, got);
        expect(!memcmp(want, got, (size_t)n * 4));
    }
    for (int i = 0; i < 40; i++) {
        const int32_t type = i % 4 == 0 ? BC_F32 : i % 2 ? BC_Q8_0 : BC_Q6_K;
        const int64_t n = 256 * (i / 4 + 1);
        const uint8_t *row = take_bytes(bc_dense_bytes(type, n));
        float *want = take(n * 4), *got = take(n * 4);
        isa_scalar.widen(row, type, n, want);
        isa->widen(row, type, n, got);
        expect(same_floats(want, got, n));
    }
    report(isa, "widen");
}

static void check_finish(const bc_isa *isa)
{
    for (int i = 0; i < 200; i++) {
        const int64_t tokens = random_in(1, 10), n = random_in(1, tokens > 1 ? BC_PANEL_ROWS : 70), ld = n + random_in(0, 3);
        const int64_t all = (tokens - 1) * ld + n, n_sums = (tokens - 1) * BC_PANEL_ROWS + n;
        int32_t *sums = take(n_sums * 4), *minus = take(tokens * 4);
        const float *residual = i % 2 ? take_floats(all, all, NORMAL) : NULL;
        float *want = take(all * 4), *got = take(all * 4), *act_scale = take(tokens * 4);
        const float scale = random_float(1.0f);
        for (int64_t j = 0; j < n_sums; j++)
            sums[j] = random_in(-20000000, 20000000);
        for (int64_t t = 0; t < tokens; t++) {
            minus[t] = random_in(-100000, 100000);
            act_scale[t] = 127 / (1e-5f + (float)random_in(0, 1000));
        }
        memset(want, 0, (size_t)all * 4); /* between the rows too, where nothing may be written */
        memset(got, 0, (size_t)all * 4);
        isa_scalar.finish(sums, n, tokens, i % 3 ? minus : NULL, act_scale, scale, residual, want, ld);
        isa->finish(sums, n, tokens, i % 3 ? minus : NULL, act_scale, scale, residual, got, ld);
        expect(same_floats(want, got, all));
    }
    report(isa, "finish");
}

static void check_tile(const bc_isa *isa)
{
    for (int32_t tile = 2; tile <= BC_MAX_TILE; tile += 2)
        for (int64_t k = 4; k <= 1024; k = k < 40 ? k + 4 : k * 2)
            for (int mode = 0; mode < 6; mode++) {
                const int extreme = mode % 3 - 1; /* all codes 2 times all -127 or 127; or random ones */
                const int32_t row_tiles = 1 + mode / 3;
                const int64_t bytes = tile * BC_PANEL_ROWS * 4;
                uint8_t *panel = take(k * BC_TILE_ROWS * row_tiles);
                int8_t *tokens = take(k * tile);
                int32_t *want = (int32_t *)take_bytes(bytes), *got = take(bytes);
                for (int64_t i = 0; i < k * BC_TILE_ROWS * row_tiles; i++)
                    panel[i] = extreme ? 2 : (uint8_t)random_in(0, 2);
                for (int64_t i = 0; i < k * tile; i++)
                    tokens[i] = (int8_t)(extreme ? extreme * 127 : random_in(-127, 127));
                for (int64_t i = 0; i < bytes / 4; i++)
                    got[i] = want[i] /= 2; /* any sums so far, with room for these */
                isa_scalar.tile(panel, row_tiles, tokens, tile, k, want);
                isa->tile(panel, row_tiles, tokens, tile, k, got);
                expect(!memcmp(want, got, (size_t)bytes));
            }
    report(isa, "tile");
    if (isa->peak) {
        expect(isa->peak(100) > 0);
        report(isa, "peak");
    }
}
