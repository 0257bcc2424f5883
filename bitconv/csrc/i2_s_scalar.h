/* I2_S in portable C: the specification of the type.
 *
 * A row of K columns is K/128 blocks of 32 bytes; byte p of a block holds the codes of columns p, p+32, p+64 and p+96,
 * first in the top bits. A code is trit + 1.
 */

static inline int32_t i2_s_code(const uint8_t *row, int64_t k)
{
    return row[k / 128 * 32 + k % 32] >> (6 - k % 128 / 32 * 2) & 3;
}

static void i2_s_gemv_scalar(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                             const uint8_t *table, int32_t *out)
{
    (void)table;
    for (int64_t r = row0; r < row1; r++) {
        const uint8_t *row = w->data + r * (w->cols / 4);
        int32_t sum = 0;
        for (int64_t b = 0; b < w->cols / 128; b++)
            for (int64_t p = 0; p < 32; p++) {
                const uint8_t codes = row[b * 32 + p];
                const int8_t *x = q + b * 128 + p;
                sum += (codes >> 6) * x[0] + (codes >> 4 & 3) * x[32] + (codes >> 2 & 3) * x[64] + (codes & 3) * x[96];
            }
        out[r - row0] = sum - q_sum;
    }
}

static void i2_s_panel_scalar(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    for (int64_t i = 0; i < BC_PANEL_ROWS; i++) {
        const uint8_t *row = w->data + bc_min(row0 + i, w->rows - 1) * (w->cols / 4);
        for (int64_t k = k0; k < k1; k++)
            panel[bc_panel_at(i, k - k0, k1 - k0)] = (uint8_t)i2_s_code(row, k);
    }
}

static int64_t bc_plain_panel_end(const bc_matrix *w, int64_t k0) { return bc_min(k0 + BC_PANEL_COLS, w->cols); }

static void i2_s_prefetch(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, int64_t i, int far)
{
    bc_fetch(w->data + bc_min(row0 + i, w->rows - 1) * (w->cols / 4) + k0 / 4, (k1 - k0) / 4, far);
}

static int64_t bc_any_row_step(const bc_matrix *w)
{
    (void)w;
    return 4;
}

static void i2_s_begin(const bc_matrix *w, int64_t row0, int64_t row1)
{
    bc_begin_rows(w->data, w->cols / 4, row0, row1);
}
