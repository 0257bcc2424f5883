/* I2_S and TQ2_0 on AVX-512 VNNI: the decode of two_bit_avx2.h with exact int32 lanes, so there is no limit to watch.
 *
 * 32 bytes hold 128 columns in four groups; 64 bytes are two such parts, whose activations lie 128 columns apart.
 */

BC_INLINE __m512i two_bit_q_avx512vnni(const int8_t *q)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)q)),
                              _mm256_loadu_si256((const __m256i *)(q + 128)), 1);
}

/* sums of n_rows rows (1 or 4) that start at row[i] */
BC_INLINE void two_bit_dot_avx512vnni(const uint8_t *const *row, int n_rows, int64_t cols, const int8_t *q, int32_t *sum, int is_i2_s)
{
    const __m512i mask3 = _mm512_set1_epi8(3), mask12 = _mm512_set1_epi8(12);
    __m512i acc[BC_STREAMS], acc4[BC_STREAMS];
    for (int i = 0; i < n_rows; i++)
        acc[i] = acc4[i] = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 256 <= cols; k += 256) {
        const __m512i q0 = two_bit_q_avx512vnni(q + k + (is_i2_s ? 96 : 0)), q1 = two_bit_q_avx512vnni(q + k + (is_i2_s ? 64 : 32));
        const __m512i q2 = two_bit_q_avx512vnni(q + k + (is_i2_s ? 32 : 64)), q3 = two_bit_q_avx512vnni(q + k + (is_i2_s ? 0 : 96));
        for (int i = 0; i < n_rows; i++) {
            bc_prefetch_far(row[i] + two_bit_at_avx2(k, is_i2_s) + BC_FAR, 1);
            const __m512i v = _mm512_loadu_si512(row[i] + two_bit_at_avx2(k, is_i2_s)), h = _mm512_srli_epi16(v, 4);
            acc[i] = _mm512_dpbusd_epi32(acc[i], _mm512_and_si512(v, mask3), q0);
            acc4[i] = _mm512_dpbusd_epi32(acc4[i], _mm512_and_si512(v, mask12), q1);
            acc[i] = _mm512_dpbusd_epi32(acc[i], _mm512_and_si512(h, mask3), q2);
            acc4[i] = _mm512_dpbusd_epi32(acc4[i], _mm512_and_si512(h, mask12), q3);
        }
    }
    for (int i = 0; i < n_rows; i++) {
        if (k < cols) { /* one part more, of I2_S only: zeros in the upper half add nothing */
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

#define TWO_BIT_GEMV(type, is_i2_s)                                                                                          \
    static void type##_gemv_avx512vnni(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,       \
                                       const uint8_t *table, int32_t *out)                                                   \
    {                                                                                                                        \
        const int64_t bytes = two_bit_at_avx2(w->cols, is_i2_s), part = (row1 - row0) / BC_STREAMS;                          \
        const uint8_t *base = w->data + row0 * bytes;                                                                        \
        int32_t sum[BC_STREAMS];                                                                                             \
        (void)table;                                                                                                         \
        for (int64_t r = 0; r < part; r++) {                                                                                 \
            const uint8_t *row[BC_STREAMS];                                                                                  \
            for (int i = 0; i < BC_STREAMS; i++)                                                                             \
                row[i] = base + (i * part + r) * bytes;                                                                      \
            two_bit_dot_avx512vnni(row, BC_STREAMS, w->cols, q, sum, is_i2_s);                                               \
            for (int i = 0; i < BC_STREAMS; i++)                                                                             \
                out[i * part + r] = sum[i] - q_sum;                                                                          \
        }                                                                                                                    \
        for (int64_t r = BC_STREAMS * part; r < row1 - row0; r++) {                                                          \
            const uint8_t *row = base + r * bytes;                                                                           \
            two_bit_dot_avx512vnni(&row, 1, w->cols, q, sum, is_i2_s);                                                       \
            out[r] = sum[0] - q_sum;                                                                                         \
        }                                                                                                                    \
    }

TWO_BIT_GEMV(i2_s, 1)
TWO_BIT_GEMV(tq2_0, 0)
