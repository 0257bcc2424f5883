/* TQ2_0 in portable C. A row is blocks of 256 columns in 66 bytes: 64 bytes of codes and an f16 scale, which the engine
 * knows already (it is the same for the whole tensor) and skips. Column h*128 + l*32 + m lies in byte 32h + m, bits 2l.
 */
enum { TQ2_0_BLOCK = 66 };

/* bytes of k columns of TQ2_0, or of I2_S: where the columns from k on begin, a multiple of 128 */
static inline int64_t bc_two_bit_at(int64_t k, int is_i2_s) { return is_i2_s ? k / 4 : k / 256 * TQ2_0_BLOCK + k % 256 / 4; }

static inline int32_t tq2_0_code(const uint8_t *row, int64_t k)
{
    return row[k / 256 * TQ2_0_BLOCK + k % 256 / 128 * 32 + k % 32] >> (k % 128 / 32 * 2) & 3;
}

static void tq2_0_gemv_scalar(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                              const uint8_t *table, int32_t *out)
{
    (void)table;
    for (int64_t r = row0; r < row1; r++) {
        const uint8_t *row = w->data + r * (w->cols / 256 * TQ2_0_BLOCK);
        int32_t sum = 0;
        for (int64_t k = 0; k < w->cols; k++)
            sum += tq2_0_code(row, k) * q[k];
        out[r - row0] = sum - q_sum;
    }
}

static void tq2_0_panel_scalar(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    for (int64_t i = 0; i < BC_PANEL_ROWS; i++) {
        const uint8_t *row = w->data + bc_min(row0 + i, w->rows - 1) * (w->cols / 256 * TQ2_0_BLOCK);
        for (int64_t k = k0; k < k1; k++)
            panel[bc_panel_at(i, k - k0, k1 - k0)] = (uint8_t)tq2_0_code(row, k);
    }
}

static void tq2_0_prefetch(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, int64_t i, int far)
{
    const int64_t row = bc_min(row0 + i, w->rows - 1);
    bc_fetch(w->data + (row * w->cols + k0) / 256 * TQ2_0_BLOCK, (k1 - k0) / 256 * TQ2_0_BLOCK, far);
}

static void tq2_0_begin(const bc_matrix *w, int64_t row0, int64_t row1)
{
    bc_begin_rows(w->data, w->cols / 256 * TQ2_0_BLOCK, row0, row1);
}
