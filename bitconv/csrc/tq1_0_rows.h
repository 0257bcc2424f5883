/* The rows of a TQ1_0 product, for instruction sets with ISA(tq1_0_dot)(row, cols, q, sum), the sums of four rows: no include guard. */
static void ISA(tq1_0_gemv)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, const uint8_t *table,
                            int32_t *out)
{
    (void)table;
    const int64_t bytes = w->cols / 256 * TQ1_0_BLOCK, n = row1 - row0, part = (n + BC_STREAMS - 1) / BC_STREAMS;
    int32_t sum[BC_STREAMS];
    for (int64_t r = 0; r < part; r++) {
        const uint8_t *row[BC_STREAMS];
        for (int i = 0; i < BC_STREAMS; i++) /* past the end, the last row once more */
            row[i] = w->data + (row0 + bc_min(i * part + r, n - 1)) * bytes;
        ISA(tq1_0_dot)(row, w->cols, q, sum);
        for (int i = 0; i < BC_STREAMS; i++)
            if (i * part + r < n)
                out[i * part + r] = sum[i] - q_sum;
    }
}
