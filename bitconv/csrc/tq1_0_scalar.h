/* TQ1_0 in portable C. A row is blocks of 256 columns in 54 bytes: 48 bytes of five base-3 digits each, 4 bytes of four
 * digits, an f16 scale that the engine skips. A byte is a fraction of 256: multiplying it by 3 pushes a digit out at the
 * top. Digit n of byte m: column 32n + m for bytes 0..31, 160 + 16n + m for the next 16, 240 + 4n + m for the last 4.
 */
enum { TQ1_0_BLOCK = 54 };

static inline int32_t tq1_0_code(const uint8_t *row, int64_t k)
{
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    const uint8_t *block = row + k / 256 * TQ1_0_BLOCK;
    const int64_t j = k % 256;
    const uint8_t byte = j < 160 ? block[j % 32] : j < 240 ? block[32 + j % 16] : block[48 + j % 4];
    const int64_t digit = j < 160 ? j / 32 : j < 240 ? (j - 160) / 16 : (j - 240) / 4;
    return ((uint8_t)(byte * power[digit]) * 3) >> 8;
}

static void tq1_0_gemv_scalar(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                              const uint8_t *table, int32_t *out)
{
    (void)table;
    for (int64_t r = row0; r < row1; r++) {
        const uint8_t *row = w->data + r * (w->cols / 256 * TQ1_0_BLOCK);
        int32_t sum = 0;
        for (int64_t k = 0; k < w->cols; k++)
            sum += tq1_0_code(row, k) * q[k];
        out[r - row0] = sum - q_sum;
    }
}

static void tq1_0_panel_scalar(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    for (int64_t i = 0; i < BC_PANEL_ROWS; i++) {
        const uint8_t *row = w->data + bc_min(row0 + i, w->rows - 1) * (w->cols / 256 * TQ1_0_BLOCK);
        for (int64_t k = k0; k < k1; k++)
            panel[bc_panel_at(i, k - k0, k1 - k0)] = (uint8_t)tq1_0_code(row, k);
    }
}

static void tq1_0_prefetch(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, int64_t i, int far)
{
    const int64_t row = bc_min(row0 + i, w->rows - 1);
    bc_fetch(w->data + (row * w->cols + k0) / 256 * TQ1_0_BLOCK, (k1 - k0) / 256 * TQ1_0_BLOCK, far);
}

static void tq1_0_begin(const bc_matrix *w, int64_t row0, int64_t row1)
{
    bc_begin_rows(w->data, w->cols / 256 * TQ1_0_BLOCK, row0, row1);
}
