/* I2_S on AVX-512 VNNI: the decode of two_bit_avx2.h with exact int32 lanes, so there is no limit to watch.
 *
 * 32 bytes hold 128 columns in four groups; 64 bytes are two such blocks, whose activations lie 128 columns apart.
 */

BC_INLINE __m512i i2_s_codes_of(const int8_t *q)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)q)),
                              _mm256_loadu_si256((const __m256i *)(q + 128)), 1);
}

BC_INLINE void i2_s_dot_avx512vnni(const uint8_t *const *row, int n_rows, int64_t cols, const int8_t *q, int32_t *sum)
{
    const __m512i mask3 = _mm512_set1_epi8(3), mask12 = _mm512_set1_epi8(12);
    __m512i acc[4], acc4[4];
    for (int i = 0; i < n_rows; i++)
        acc[i] = acc4[i] = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 256 <= cols; k += 256) {
        const __m512i q0 = i2_s_codes_of(q + k), q1 = i2_s_codes_of(q + k + 32);
        const __m512i q2 = i2_s_codes_of(q + k + 64), q3 = i2_s_codes_of(q + k + 96);
        for (int i = 0; i < n_rows; i++) {
            const __m512i v = _mm512_loadu_si512(row[i] + k / 4), h = _mm512_srli_epi16(v, 4);
            acc[i] = _mm512_dpbusd_epi32(acc[i], _mm512_and_si512(v, mask3), q3);
            acc4[i] = _mm512_dpbusd_epi32(acc4[i], _mm512_and_si512(v, mask12), q2);
            acc[i] = _mm512_dpbusd_epi32(acc[i], _mm512_and_si512(h, mask3), q1);
            acc4[i] = _mm512_dpbusd_epi32(acc4[i], _mm512_and_si512(h, mask12), q0);
        }
    }
    for (int i = 0; i < n_rows; i++) {
        if (k < cols) { /* one block more: zeros in the upper half add nothing */
            const __m512i v = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(row[i] + k / 4)));
            for (int group = 0; group < 4; group++) {
                const __m512i x = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(q + k + 32 * group)));
                const __m512i codes = _mm512_and_si512(_mm512_srl_epi16(v, _mm_cvtsi32_si128(6 - 2 * group)), mask3);
                acc[i] = _mm512_dpbusd_epi32(acc[i], codes, x);
            }
        }
        sum[i] = _mm512_reduce_add_epi32(_mm512_add_epi32(acc[i], _mm512_srai_epi32(acc4[i], 2)));
    }
}

static void i2_s_gemv_avx512vnni(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                                 const uint8_t *table, int32_t *out)
{
    (void)table;
    const int64_t bytes = w->cols / 4, quarter = (row1 - row0) / 4;
    const uint8_t *base = w->data + row0 * bytes;
    int32_t sum[4];
    for (int64_t r = 0; r < quarter; r++) {
        const uint8_t *row[4];
        for (int i = 0; i < 4; i++)
            row[i] = base + (i * quarter + r) * bytes;
        i2_s_dot_avx512vnni(row, 4, w->cols, q, sum);
        for (int i = 0; i < 4; i++)
            out[i * quarter + r] = sum[i] - q_sum;
    }
    for (int64_t r = 4 * quarter; r < row1 - row0; r++) {
        const uint8_t *row = base + r * bytes;
        i2_s_dot_avx512vnni(&row, 1, w->cols, q, sum);
        out[r] = sum[0] - q_sum;
    }
}
