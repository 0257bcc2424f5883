/* TQ1_0 on AVX2: bound by the arithmetic of pulling base-3 digits out of bytes.
 *
 * A digit is (3t) >> 8 of the remaining fraction t: 0 below 86, 1 below 171, else 2. Bytes are biased by 128 so that
 * signed compares serve; 3 * (t + 128) = 3t + 128 mod 256, so the bias survives the step to the next digit.
 */

BC_INLINE __m256i tq1_0_digit_avx2(__m256i t)
{
    const __m256i one = _mm256_cmpgt_epi8(t, _mm256_set1_epi8(85 - 128)), two = _mm256_cmpgt_epi8(t, _mm256_set1_epi8(170 - 128));
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
}

BC_INLINE __m256i tq1_0_times3_avx2(__m256i t) { return _mm256_add_epi8(t, _mm256_add_epi8(t, t)); }

/* the codes of a block in column order: 8 vectors of 32 */
BC_INLINE void tq1_0_codes_avx2(const uint8_t *block, __m256i codes[8])
{
    const __m256i bias = _mm256_set1_epi8(-128);
    __m256i t = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)block), bias);
    for (int n = 0; n < 5; n++, t = tq1_0_times3_avx2(t))
        codes[n] = tq1_0_digit_avx2(t);
    /* 16 bytes of five digits: two digits side by side, the fifth beside the digits of the last 4 bytes */
    const __m128i b = _mm_loadu_si128((const __m128i *)(block + 32)), b3 = _mm_add_epi8(b, _mm_add_epi8(b, b));
    t = _mm256_xor_si256(_mm256_set_m128i(b3, b), bias);
    codes[5] = tq1_0_digit_avx2(t);
    t = tq1_0_times3_avx2(tq1_0_times3_avx2(t));
    codes[6] = tq1_0_digit_avx2(t);
    t = tq1_0_times3_avx2(tq1_0_times3_avx2(t));
    int32_t last;
    memcpy(&last, block + 48, 4);
    /* the 4 bytes times 1, 3, 9 and 27: even and odd bytes apart, as products of words */
    const __m128i x = _mm_set1_epi32(last), power = _mm_setr_epi16(1, 1, 3, 3, 9, 9, 27, 27);
    const __m128i even = _mm_and_si128(_mm_mullo_epi16(_mm_and_si128(x, _mm_set1_epi16(0xff)), power), _mm_set1_epi16(0xff));
    const __m128i odd = _mm_slli_epi16(_mm_mullo_epi16(_mm_srli_epi16(x, 8), power), 8);
    const __m128i tail = _mm_xor_si128(_mm_or_si128(even, odd), _mm_set1_epi8(-128));
    codes[7] = tq1_0_digit_avx2(_mm256_inserti128_si256(t, tail, 1));
}

static void tq1_0_gemv_avx2(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                            const uint8_t *table, int32_t *out)
{
    (void)table;
    const __m256i ones = _mm256_set1_epi16(1);
    const int64_t bytes = w->cols / 256 * TQ1_0_BLOCK;
    for (int64_t r = row0; r < row1; r++) {
        const uint8_t *block = w->data + r * bytes;
        __m256i total = _mm256_setzero_si256();
        for (int64_t k = 0; k < w->cols; k += 256, block += TQ1_0_BLOCK) {
            __m256i codes[8], acc = _mm256_setzero_si256(); /* 8 products of at most 508 */
            tq1_0_codes_avx2(block, codes);
            for (int i = 0; i < 8; i++)
                acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes[i], _mm256_loadu_si256((const __m256i *)(q + k) + i)));
            total = _mm256_add_epi32(total, _mm256_madd_epi16(acc, ones));
        }
        out[r - row0] = sum_i32_avx2(total) - q_sum;
    }
}

/* Four bytes of each of 8 rows, side by side: the bytes 0..31 of a block and its bytes 20..51. A dword of digits of x[j] and of
 * x[8 + j] is a part of a panel line. */
BC_INLINE void tq1_0_rows_avx2(const bc_matrix *w, int64_t row0, int64_t k, __m256i x[16])
{
    for (int i = 0; i < 8; i++) {
        const uint8_t *block = w->data + (bc_min(row0 + i, w->rows - 1) * w->cols + k) / 256 * TQ1_0_BLOCK;
        x[i] = _mm256_loadu_si256((const __m256i *)block);
        x[8 + i] = _mm256_loadu_si256((const __m256i *)(block + 20));
    }
    transpose8_avx2(x);
    transpose8_avx2(x + 8);
}

/* the columns of digit 0 of dword j of tq1_0_rows, how many columns further the next digit is, and how many digits there are */
BC_INLINE int64_t tq1_0_columns(int j, int64_t *next, int *digits)
{
    *next = j < 8 ? 32 : j < 15 ? 16 : 4;
    *digits = j < 15 ? 5 : 4;
    return j < 8 ? 4 * j : j < 15 ? 160 + 4 * (j - 11) : 240;
}

static void tq1_0_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    for (int64_t first = 0; first < BC_PANEL_ROWS; first += 8)
        for (int64_t k = k0; k < k1; k += 256) {
            __m256i x[16];
            tq1_0_rows_avx2(w, row0 + first, k, x);
            for (int j = 0; j < 16; j = j == 7 ? 11 : j + 1) {
                int64_t next;
                int digits;
                uint8_t *line = panel + bc_panel_at(first, k - k0 + tq1_0_columns(j, &next, &digits), k1 - k0);
                __m256i t = _mm256_xor_si256(x[j], _mm256_set1_epi8(-128));
                for (int n = 0; n < digits; n++, t = tq1_0_times3_avx2(t), line += next / 4 * BC_TILE_ROWS * 4)
                    _mm256_storeu_si256((__m256i *)line, tq1_0_digit_avx2(t));
            }
        }
}
