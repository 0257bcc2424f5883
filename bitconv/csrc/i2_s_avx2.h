/* I2_S on AVX2. Decode is bound by memory: every byte is read once, from four places that lie pages apart, because one
 * or two streams (or adjacent rows) do not fill the memory pipeline.
 *
 *   32 bytes v of a row:  v & 3 -> columns 96..127      v & 12 -> 4 x the codes of columns 64..95
 *                         the same of v >> 4 -> columns 32..63 and 0..31
 *
 * One shift serves four groups; the sums of the x4 groups are exact multiples of 4. vpmaddubsw adds two products:
 * at most 2 * 2 * 127 = 508 in a plain lane and 2032 in an x4 lane, two of each per 128 columns, so that int16 lanes
 * hold 1024 columns (16 * 2032 = 32512) before they are widened.
 */

/* sums of n_rows rows (1 or 4) that start at row[i] */
BC_INLINE void i2_s_dot_avx2(const uint8_t *const *row, int n_rows, int64_t cols, const int8_t *q, int32_t *sum)
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
            const __m256i q0 = _mm256_loadu_si256(x), q1 = _mm256_loadu_si256(x + 1);
            const __m256i q2 = _mm256_loadu_si256(x + 2), q3 = _mm256_loadu_si256(x + 3);
            for (int i = 0; i < n_rows; i++) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(row[i] + k / 4));
                const __m256i h = _mm256_srli_epi16(v, 4);
                acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(_mm256_and_si256(v, mask3), q3));
                acc4[i] = _mm256_add_epi16(acc4[i], _mm256_maddubs_epi16(_mm256_and_si256(v, mask12), q2));
                acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(_mm256_and_si256(h, mask3), q1));
                acc4[i] = _mm256_add_epi16(acc4[i], _mm256_maddubs_epi16(_mm256_and_si256(h, mask12), q0));
            }
        }
        for (int i = 0; i < n_rows; i++) {
            total[i] = _mm256_add_epi32(total[i], _mm256_madd_epi16(acc[i], ones));
            total4[i] = _mm256_add_epi32(total4[i], _mm256_madd_epi16(acc4[i], ones));
        }
    }
    for (int i = 0; i < n_rows; i++) {
        /* each x4 lane is a multiple of 4, so the arithmetic shift is an exact division */
        const __m256i both = _mm256_add_epi32(total[i], _mm256_srai_epi32(total4[i], 2));
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        sum[i] = _mm_cvtsi128_si32(s);
    }
}

static void i2_s_gemv_avx2(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, int32_t *out)
{
    const int64_t bytes = w->cols / 4, quarter = (row1 - row0) / 4;
    const uint8_t *base = w->data + row0 * bytes;
    int32_t sum[4];
    for (int64_t r = 0; r < quarter; r++) {
        const uint8_t *row[4];
        for (int i = 0; i < 4; i++)
            row[i] = base + (i * quarter + r) * bytes;
        i2_s_dot_avx2(row, 4, w->cols, q, sum);
        for (int i = 0; i < 4; i++)
            out[i * quarter + r] = sum[i] - q_sum;
    }
    for (int64_t r = 4 * quarter; r < row1 - row0; r++) {
        const uint8_t *row = base + r * bytes;
        i2_s_dot_avx2(&row, 1, w->cols, q, sum);
        out[r] = sum[0] - q_sum;
    }
}

/* 8x8 dwords: dword j of x[i] becomes dword i of x[j] */
BC_INLINE void transpose8_avx2(__m256i x[8])
{
    __m256i t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
        x[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
}

/* A dword of a row holds columns 4j..4j+3 of four groups of 32 columns. Transposing 8 rows first puts the dwords of the
 * rows side by side; shifting and masking then gives panel lines without any byte shuffle. */
static void i2_s_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    const __m256i mask = _mm256_set1_epi8(3);
    for (int64_t first = 0; first < BC_PANEL_ROWS; first += 8) {
        const uint8_t *row[8];
        for (int i = 0; i < 8; i++)
            row[i] = w->data + bc_min(row0 + first + i, w->rows - 1) * (w->cols / 4);
        for (int64_t k = k0; k < k1; k += 128) {
            __m256i x[8];
            for (int i = 0; i < 8; i++)
                x[i] = _mm256_loadu_si256((const __m256i *)(row[i] + k / 4));
            transpose8_avx2(x);
            uint8_t *line = panel + (k - k0) * BC_PANEL_ROWS + first * 4; /* one line: 4 columns of 16 rows */
            for (int group = 0; group < 4; group++)
                for (int j = 0; j < 8; j++, line += BC_PANEL_ROWS * 4)
                    _mm256_storeu_si256((__m256i *)line, _mm256_and_si256(_mm256_srli_epi16(x[j], 6 - 2 * group), mask));
        }
    }
}

static const bc_ternary ternary_avx2[] = {
    {BC_I2_S, "i2_s_gemv_avx2", "i2_s_panel_avx2", i2_s_gemv_avx2, i2_s_panel_avx2},
};
