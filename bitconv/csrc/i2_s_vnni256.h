/* I2_S on 256-bit VNNI: the decode of two_bit_avx2.h with exact int32 lanes, so there is no limit to watch.
 *
 * 8 accumulators, 4 registers of activations, 2 masks, the packed bytes and their shift: exactly the 16 registers.
 */

BC_INLINE void ISA(i2_s_dot)(const uint8_t *const *row, int n_rows, int64_t cols, const int8_t *q, int32_t *sum)
{
    const __m256i mask3 = _mm256_set1_epi8(3), mask12 = _mm256_set1_epi8(12);
    __m256i acc[4], acc4[4];
    for (int i = 0; i < n_rows; i++)
        acc[i] = acc4[i] = _mm256_setzero_si256();
    for (int64_t k = 0; k < cols; k += 128) {
        const __m256i *x = (const __m256i *)(q + k);
        const __m256i q0 = _mm256_loadu_si256(x), q1 = _mm256_loadu_si256(x + 1);
        const __m256i q2 = _mm256_loadu_si256(x + 2), q3 = _mm256_loadu_si256(x + 3);
        for (int i = 0; i < n_rows; i++) {
            const __m256i v = _mm256_loadu_si256((const __m256i *)(row[i] + k / 4)), h = _mm256_srli_epi16(v, 4);
            acc[i] = DPBUSD(acc[i], _mm256_and_si256(v, mask3), q3);
            acc4[i] = DPBUSD(acc4[i], _mm256_and_si256(v, mask12), q2);
            acc[i] = DPBUSD(acc[i], _mm256_and_si256(h, mask3), q1);
            acc4[i] = DPBUSD(acc4[i], _mm256_and_si256(h, mask12), q0);
            __asm__("" : "+x"(acc[i]), "+x"(acc4[i])); /* or gcc copies and spills the sums */
        }
    }
    for (int i = 0; i < n_rows; i++) /* each x4 lane is a multiple of 4, so the arithmetic shift is an exact division */
        sum[i] = sum_i32_avx2(_mm256_add_epi32(acc[i], _mm256_srai_epi32(acc4[i], 2)));
}

static void ISA(i2_s_gemv)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, const uint8_t *table,
                           int32_t *out)
{
    (void)table;
    const int64_t bytes = w->cols / 4, quarter = (row1 - row0) / 4;
    const uint8_t *base = w->data + row0 * bytes;
    int32_t sum[4];
    for (int64_t r = 0; r < quarter; r++) {
        const uint8_t *const row[4] = {base + r * bytes, base + (quarter + r) * bytes, base + (2 * quarter + r) * bytes,
                                       base + (3 * quarter + r) * bytes};
        ISA(i2_s_dot)(row, 4, w->cols, q, sum);
        for (int i = 0; i < 4; i++)
            out[i * quarter + r] = sum[i] - q_sum;
    }
    for (int64_t r = 4 * quarter; r < row1 - row0; r++) {
        const uint8_t *row = base + r * bytes;
        ISA(i2_s_dot)(&row, 1, w->cols, q, sum);
        out[r] = sum[0] - q_sum;
    }
}
