/* The ternary kernels of an instruction set against the scalar ones. */

typedef struct {
    int32_t type;
    struct { int64_t rows, cols; int32_t tile_rows, tile_cols, micro_rows; } shapes[8];
} ternary_type;

static const ternary_type ternary_types[] = {
    {BC_I2_S, {{1, 128, 0, 0, 0}, {3, 256, 0, 0, 0}, {4, 384, 0, 0, 0}, {37, 1152, 0, 0, 0}, {66, 640, 0, 0, 0}, {5, 8192, 0, 0, 0}}},
    {BC_TL1, {{32, 16, 32, 8, 32}, {64, 16, 64, 4, 64}, {64, 720, 32, 240, 32}, {128, 720, 128, 240, 64}, {96, 240, 96, 40, 32},
              {128, 144, 64, 12, 64}, {64, 1536, 64, 256, 32}, {64, 1024, 64, 256, 64}}},
    {BC_TL2, {{32, 24, 32, 24, 32}, {64, 272, 32, 240, 32}, {64, 1568, 64, 96, 32}}},
    {BC_TQ1_0, {{1, 256, 0, 0, 0}, {37, 768, 0, 0, 0}}},
    {BC_TQ2_0, {{1, 256, 0, 0, 0}, {37, 768, 0, 0, 0}, {5, 8192, 0, 0, 0}}},
};
enum { N_TYPES = sizeof ternary_types / sizeof *ternary_types };

/* n bytes: two nibbles each below `below`, or both below - 1 */
static void fill_nibbles(uint8_t *p, int64_t n, int below, int most)
{
    for (int64_t i = 0; i < n; i++) {
        const int high = random_in(0, below - 1), low = random_in(0, below - 1);
        p[i] = (uint8_t)(most ? 17 * (below - 1) : high << 4 | low);
    }
}

static void fill_two_bits(uint8_t *p, int64_t n, int most)
{
    for (int64_t i = 0; i < n; i++) {
        const int a = random_in(0, 2), b = random_in(0, 2), c = random_in(0, 2), d = random_in(0, 2);
        p[i] = (uint8_t)(most ? 0xaa : a << 6 | b << 4 | c << 2 | d);
    }
}

/* the bytes of a legal weight, random or all trits +1, at the end of readable memory */
static const uint8_t *take_weight(const bc_matrix *w, int most)
{
    const int64_t three_k = w->type == BC_TL2 ? tl2_three_k(w) : 0, n = w->rows * w->cols;
    if (w->type == BC_TQ1_0 || w->type == BC_TQ2_0) {
        const int64_t bytes = n / 256 * (w->type == BC_TQ1_0 ? TQ1_0_BLOCK : TQ2_0_BLOCK);
        uint8_t *p = take_bytes(bytes);
        if (w->type == BC_TQ2_0)
            fill_two_bits(p, bytes, most);
        else if (most)
            memset(p, 255, (size_t)bytes);
        return p;
    }
    const int64_t triples = w->rows * three_k / 6, signs = w->rows * three_k / 24, pairs = (n - w->rows * three_k) / 4;
    uint8_t *p = take_bytes(triples + signs + pairs);
    if (w->type == BC_I2_S) {
        fill_two_bits(p, pairs, most);
        return p;
    }
    fill_nibbles(p, triples, 14, most);
    if (most)
        memset(p + triples, 0, (size_t)signs);
    fill_nibbles(p + triples + signs, pairs, 9, most);
    return p;
}

static void gemv_case(const bc_ternary *kernels, const bc_ternary *scalar, const bc_matrix *w, int64_t row0, int extreme)
{
    int8_t *q = take(w->cols);
    uint8_t *table = kernels->prepare ? take(w->cols * BC_TABLE_BYTES) : NULL;
    int32_t *want = take((w->rows - row0) * 4), *got = take((w->rows - row0) * 4), q_sum = 0;
    for (int64_t k = 0; k < w->cols; k++)
        q_sum += q[k] = (int8_t)(extreme ? extreme * 127 : random_in(-127, 127));
    for (int64_t k = 0; kernels->prepare && k < w->cols; k += 192)
        kernels->prepare(w, q, k, bc_min(k + 192, w->cols), table);
    scalar->gemv(w, row0, w->rows, q, q_sum, NULL, want);
    kernels->gemv(w, row0, w->rows, q, q_sum, table, got);
    expect(!memcmp(want, got, (size_t)(w->rows - row0) * 4));
}

/* every number of tokens that may share a pass; sums lie apart, and nothing is written between or behind them */
static void few_case(const bc_ternary *kernels, const bc_ternary *scalar, const bc_matrix *w, int64_t row0, int extreme)
{
    const int64_t rows = w->rows - row0, ldo = rows + 3;
    int8_t *q = take(BC_FEW * w->cols);
    int32_t *want = take(rows * 4), *got = take(BC_FEW * ldo * 4), q_sum[BC_FEW] = {0}, same = 1;
    for (int64_t i = 0; i < BC_FEW * w->cols; i++)
        q_sum[i / w->cols] += q[i] = (int8_t)(extreme ? extreme * 127 : random_in(-127, 127));
    for (int n = 2; n <= BC_FEW; n++) {
        memset(got, 1, (size_t)(BC_FEW * ldo * 4));
        kernels->few(w, row0, w->rows, q, w->cols, q_sum, n, got, ldo);
        for (int t = 0; t < n; t++) {
            scalar->gemv(w, row0, w->rows, q + t * w->cols, q_sum[t], NULL, want);
            same &= !memcmp(want, got + t * ldo, (size_t)rows * 4);
        }
        for (int64_t i = 0; i < BC_FEW * ldo; i++)
            same &= (i / ldo < n && i % ldo < rows) || got[i] == 0x01010101;
    }
    expect(same);
}

static void check_gemv(const bc_isa *isa, const ternary_type *type)
{
    const bc_ternary *kernels = bc_find_ternary(isa, type->type), *scalar = bc_find_ternary(&isa_scalar, type->type);
    for (int s = 0; s < 8 && type->shapes[s].rows; s++)
        for (int repeat = 0; repeat < 6; repeat++) {
            bc_matrix w = {NULL, type->shapes[s].rows, type->shapes[s].cols, type->type, type->shapes[s].tile_rows,
                           type->shapes[s].tile_cols, type->shapes[s].micro_rows, 1.0f};
            const int64_t step = kernels->row_step(&w), row0 = repeat == 1 ? w.rows / 2 / step * step : 0;
            w.data = take_weight(&w, repeat > 3);
            gemv_case(kernels, scalar, &w, row0, repeat < 2 ? 0 : repeat % 2 ? 1 : -1);
            if (!kernels->few)
                continue;
            w.data = take_weight(&w, repeat > 3);
            few_case(kernels, scalar, &w, row0, repeat < 2 ? 0 : repeat % 2 ? 1 : -1);
        }
    report(isa, kernels->gemv_name);
}

static int same_panel(const bc_ternary *kernels, const bc_ternary *scalar, const bc_matrix *w, int64_t row0, int64_t k0,
                      int64_t k1)
{
    const int64_t n = k1 - k0;
    uint8_t *want = take(BC_PANEL_ROWS * n), *got = take(BC_PANEL_ROWS * n);
    scalar->panel(w, row0, k0, k1, want);
    kernels->panel(w, row0, k0, k1, got);
    for (int64_t i = 0; i < bc_min(BC_PANEL_ROWS, w->rows - row0); i++)
        for (int64_t k = 0; k < n; k++)
            if (want[bc_panel_at(i, k, n)] != got[bc_panel_at(i, k, n)])
                return 0;
    return 1;
}

static void check_panel(const bc_isa *isa, const ternary_type *type)
{
    const bc_ternary *kernels = bc_find_ternary(isa, type->type), *scalar = bc_find_ternary(&isa_scalar, type->type);
    for (int s = 0; s < 8 && type->shapes[s].rows; s++) {
        bc_matrix w = {NULL, type->shapes[s].rows, type->shapes[s].cols, type->type, type->shapes[s].tile_rows,
                       type->shapes[s].tile_cols, type->shapes[s].micro_rows, 1.0f};
        for (int64_t row0 = 0; row0 < w.rows; row0 += BC_PANEL_ROWS)
            for (int64_t k0 = 0, k1; k0 < w.cols; k0 = k1) {
                k1 = kernels->panel_end(&w, k0);
                w.data = take_weight(&w, 0);
                for (int64_t i = 0; i < 32; i++) /* must not fault; it returns nothing */
                    kernels->prefetch(&w, row0, k0, k1, i, i % 2);
                expect(k1 - k0 <= BC_PANEL_COLS && same_panel(kernels, scalar, &w, row0, k0, k1));
            }
    }
    report(isa, kernels->panel_name);
}
