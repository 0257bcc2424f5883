/* I2_S and TQ2_0 on AVX2: four groups of 32 columns in the bit pairs of 32 bytes. I2_S begins in the top bits and its
 * rows are contiguous; TQ2_0 begins in the low bits and has a 2-byte scale after every 64 bytes.
 *
 * Decode is bound by memory: every byte is read once, from four places that lie pages apart, because one or two streams
 * (or adjacent rows) do not fill the memory pipeline. What comes BC_FAR bytes later is fetched into L2: of small matrices
 * the streams are too short for the hardware to notice them in time.
 *
 *   v & 3 -> one group       v & 12 -> 4 x the codes of the next       the same of v >> 4 -> the other two
 *
 * One shift serves four groups; the sums of the x4 groups are exact multiples of 4. vpmaddubsw adds two products:
 * at most 2 * 2 * 127 = 508 in a plain lane and 2032 in an x4 lane, two of each per 128 columns, so that int16 lanes
 * hold 1024 columns (16 * 2032 = 32512) before they are widened.
 */

BC_INLINE int64_t two_bit_at_avx2(int64_t k, int is_i2_s) { return is_i2_s ? k / 4 : k / 256 * TQ2_0_BLOCK + k % 256 / 4; }

/* sums of n_rows rows (1 or 4) that start at row[i] */
BC_INLINE void two_bit_dot_avx2(const uint8_t *const *row, int n_rows, int64_t cols, const int8_t *q, int32_t *sum, int is_i2_s)
{
    const __m256i mask3 = _mm256_set1_epi8(3), mask12 = _mm256_set1_epi8(12), ones = _mm256_set1_epi16(1);
    __m256i total[4], total4[4];
    for (int i = 0; i < n_rows; i++)
        total[i] = total4[i] = _mm256_setzero_si256();
    for (int64_t k = 0; k < cols;) {
        const int64_t end = bc_min(k + 1024, cols);
        __m256i acc[4], acc4[4];
        for (int i = 0; i < n_rows; i++)
            acc[i] = acc4[i] = _mm256_setzero_si256();
        for (; k < end; k += 128) {
            const __m256i *x = (const __m256i *)(q + k);
            const __m256i q0 = _mm256_loadu_si256(x + (is_i2_s ? 3 : 0)), q1 = _mm256_loadu_si256(x + (is_i2_s ? 2 : 1));
            const __m256i q2 = _mm256_loadu_si256(x + (is_i2_s ? 1 : 2)), q3 = _mm256_loadu_si256(x + (is_i2_s ? 0 : 3));
            for (int i = 0; i < n_rows; i++) {
                bc_prefetch_far(row[i] + two_bit_at_avx2(k, is_i2_s) + BC_FAR, 1);
                const __m256i v = _mm256_loadu_si256((const __m256i *)(row[i] + two_bit_at_avx2(k, is_i2_s)));
                const __m256i h = _mm256_srli_epi16(v, 4);
                acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(_mm256_and_si256(v, mask3), q0));
                acc4[i] = _mm256_add_epi16(acc4[i], _mm256_maddubs_epi16(_mm256_and_si256(v, mask12), q1));
                acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(_mm256_and_si256(h, mask3), q2));
                acc4[i] = _mm256_add_epi16(acc4[i], _mm256_maddubs_epi16(_mm256_and_si256(h, mask12), q3));
            }
        }
        for (int i = 0; i < n_rows; i++) {
            total[i] = _mm256_add_epi32(total[i], _mm256_madd_epi16(acc[i], ones));
            total4[i] = _mm256_add_epi32(total4[i], _mm256_madd_epi16(acc4[i], ones));
        }
    }
    for (int i = 0; i < n_rows; i++) /* each x4 lane is a multiple of 4, so the arithmetic shift is an exact division */
        sum[i] = sum_i32_avx2(_mm256_add_epi32(total[i], _mm256_srai_epi32(total4[i], 2)));
}

BC_INLINE void two_bit_gemv_avx2(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, int32_t *out,
                                 int is_i2_s)
{
    const int64_t bytes = two_bit_at_avx2(w->cols, is_i2_s), quarter = (row1 - row0) / 4;
    const uint8_t *base = w->data + row0 * bytes;
    int32_t sum[4];
    for (int64_t r = 0; r < quarter; r++) {
        const uint8_t *row[4];
        for (int i = 0; i < 4; i++)
            row[i] = base + (i * quarter + r) * bytes;
        two_bit_dot_avx2(row, 4, w->cols, q, sum, is_i2_s);
        for (int i = 0; i < 4; i++)
            out[i * quarter + r] = sum[i] - q_sum;
    }
    for (int64_t r = 4 * quarter; r < row1 - row0; r++) {
        const uint8_t *row = base + r * bytes;
        two_bit_dot_avx2(&row, 1, w->cols, q, sum, is_i2_s);
        out[r] = sum[0] - q_sum;
    }
}

/* A dword of a row holds columns 4j..4j+3 of four groups of 32 columns. Transposing 8 rows first puts the dwords of the
 * rows side by side; shifting and masking then gives panel lines without any byte shuffle. */
BC_INLINE void two_bit_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel, int is_i2_s)
{
    const __m256i mask = _mm256_set1_epi8(3);
    for (int64_t first = 0; first < BC_PANEL_ROWS; first += 8) {
        const uint8_t *row[8];
        for (int i = 0; i < 8; i++)
            row[i] = w->data + bc_min(row0 + first + i, w->rows - 1) * two_bit_at_avx2(w->cols, is_i2_s);
        for (int64_t k = k0; k < k1; k += 128) {
            __m256i x[8];
            for (int i = 0; i < 8; i++)
                x[i] = _mm256_loadu_si256((const __m256i *)(row[i] + two_bit_at_avx2(k, is_i2_s)));
            transpose8_avx2(x);
            uint8_t *line = panel + bc_panel_at(first, k - k0, k1 - k0); /* 4 columns of 8 rows */
            for (int group = 0; group < 4; group++)
                for (int j = 0; j < 8; j++, line += BC_TILE_ROWS * 4) {
                    const __m256i bits = _mm256_srli_epi16(x[j], is_i2_s ? 6 - 2 * group : 2 * group);
                    _mm256_storeu_si256((__m256i *)line, _mm256_and_si256(bits, mask));
                }
        }
    }
}

#define TWO_BIT_KERNELS(type, is_i2_s)                                                                                       \
    static void type##_gemv_avx2(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,             \
                                 const uint8_t *table, int32_t *out)                                                         \
    {                                                                                                                        \
        (void)table;                                                                                                         \
        two_bit_gemv_avx2(w, row0, row1, q, q_sum, out, is_i2_s);                                                            \
    }                                                                                                                        \
    static void type##_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)                  \
    {                                                                                                                        \
        two_bit_panel_avx2(w, row0, k0, k1, panel, is_i2_s);                                                                 \
    }

TWO_BIT_KERNELS(i2_s, 1)
TWO_BIT_KERNELS(tq2_0, 0)
