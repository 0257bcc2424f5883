/* TL2 on AVX-512 VBMI: 64 rows at a time, and the sign is a fifth bit of the index, so that one vpermb looks up a value
 * with its sign. Otherwise the kernel is that of tl2_avx2.h, whose planes and limits hold here too.
 *
 *   a triple's table (64 bytes): 16 low parts | the same negated | 16 high parts | the same negated
 *   a pair's table (32 bytes):   as on AVX2, whose kernel runs the pairs
 */

enum { TL2_TRIPLE_VBMI = 64 };

static void tl2_prepare_avx512vbmi(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table)
{
    const int64_t three_k = tl2_three_k(w);
    for (int64_t k = k0; k < bc_min(k1, three_k); k += 3) {
        uint8_t *t = table + k / 3 * TL2_TRIPLE_VBMI;
        store_planes_avx2(t, t + 32, tl2_triple_sums_avx2(q + k), 25, 1311);
        for (int plane = 0; plane < 2; plane++) {
            const __m128i v = _mm_loadu_si128((const __m128i *)t + 2 * plane);
            _mm_storeu_si128((__m128i *)t + 2 * plane + 1, _mm_sub_epi8(_mm_setzero_si128(), v));
        }
    }
    tl2_prepare_pairs_avx2(q, three_k, k0, k1, table + three_k / 3 * TL2_TRIPLE_VBMI);
}

/* The sign bits of 8 triples of 64 rows in one byte a row, triple q at bit 7, 5, 3, 1, 6, 4, 2, 0. Rows 0..15 have the
 * odd bits of their words, rows 16..31 the even ones. */
BC_INLINE __m512i tl2_signs_avx512vbmi(const uint8_t *words, const uint8_t *words2)
{
    const __m512i odd = _mm512_set1_epi8((char)0xaa);
    const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)words)),
                                         _mm256_loadu_si256((const __m256i *)words2), 1);
    const __m512i first = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v, 8), _mm512_srli_epi16(v, 1), odd, 0xe4);
    const __m512i second = _mm512_ternarylogic_epi32(_mm512_srli_epi16(v, 7), v, odd, 0xe4);
    /* the low bytes of the words, lane by lane as vpackuswb puts them */
    const __m512i low = _mm512_set1_epi16(0xff);
    return _mm512_packus_epi16(_mm512_and_si512(first, low), _mm512_and_si512(second, low));
}

/* the sign of triple q at bit 4 */
BC_INLINE __m512i tl2_sign_avx512vbmi(__m512i signs, int q)
{
    static const int8_t right[8] = {3, 1, -1, -3, 2, 0, -2, -4};
    return right[q] > 0 ? _mm512_srli_epi16(signs, (unsigned)right[q]) : right[q] < 0 ? _mm512_slli_epi16(signs, (unsigned)-right[q]) : signs;
}

BC_INLINE void tl2_triple_avx512vbmi(__m512i nibble, __m512i sign, const uint8_t *t, __m512i *low, __m512i *high)
{
    /* bits 0..3 of the nibble, the rest of the sign; vpermb looks at six bits, and the table stands there twice */
    const __m512i index = _mm512_ternarylogic_epi32(nibble, sign, _mm512_set1_epi8(15), 0xe4);
    const __m512i low_table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)t));
    const __m512i high_table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)t + 1));
    *low = _mm512_add_epi8(*low, _mm512_permutexvar_epi8(index, low_table));
    *high = _mm512_add_epi8(*high, _mm512_permutexvar_epi8(index, high_table));
}

/* 64 rows x BK columns of triples: row blocks of 32, the second `further` weights behind the first */
BC_INLINE void tl2_block_avx512vbmi(const uint8_t *nibbles, const uint8_t *words, int64_t further, const uint8_t *table, int64_t bk,
                                    int rows, int32_t *out)
{
    const __m512i weights = _mm512_set1_epi16(25 << 8 | 1);
    __m512i first = _mm512_setzero_si512(), second = _mm512_setzero_si512();
    for (int64_t round = 0; round < bk / 24; round++, nibbles += 128, words += 32, table += 8 * TL2_TRIPLE_VBMI) {
        const __m512i signs = tl2_signs_avx512vbmi(words, words + further / 24);
        __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
        bc_prefetch(nibbles + TL2_AHEAD, 128);
        bc_prefetch(nibbles + further / 6 + TL2_AHEAD, 128);
        _mm_prefetch((const char *)words + TL2_AHEAD / 4, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int q = 0; q < 8; q += 2) {
            const uint8_t *from = nibbles + q * 16;
            const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)from)),
                                                 _mm256_loadu_si256((const __m256i *)(from + further / 6)), 1);
            tl2_triple_avx512vbmi(_mm512_srli_epi16(v, 4), tl2_sign_avx512vbmi(signs, q), table + q * TL2_TRIPLE_VBMI, &low, &high);
            tl2_triple_avx512vbmi(v, tl2_sign_avx512vbmi(signs, q + 1), table + (q + 1) * TL2_TRIPLE_VBMI, &low, &high);
        }
        first = _mm512_add_epi16(first, _mm512_maddubs_epi16(weights, _mm512_unpacklo_epi8(low, high)));
        second = _mm512_add_epi16(second, _mm512_maddubs_epi16(weights, _mm512_unpackhi_epi8(low, high)));
    }
    for (int half = 0; half < rows / 32; half++) {
        const __m256i sum[2] = {half ? _mm512_extracti64x4_epi64(first, 1) : _mm512_castsi512_si256(first),
                                half ? _mm512_extracti64x4_epi64(second, 1) : _mm512_castsi512_si256(second)};
        tl2_add_rows_avx2(out + half * 32, sum);
    }
}

static void tl2_gemv_avx512vbmi(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                                const uint8_t *table, int32_t *out)
{
    (void)q, (void)q_sum;
    const int64_t bk = w->tile_cols, three_k = tl2_three_k(w);
    memset(out, 0, (size_t)(row1 - row0) * sizeof *out);
    for (int64_t first = row0; first < row1; first += w->tile_rows) {
        const uint8_t *nibbles = w->data + tl2_nibbles_at(w, first, 0), *words = w->data + tl2_signs_at(w, first, 0);
        for (int64_t k = 0; k < three_k; k += bk)
            for (int64_t r = 0; r < w->tile_rows; r += 64) {
                const int64_t before = k * w->tile_rows + r * bk; /* weights of this row of tiles */
                const uint8_t *t = table + k / 3 * TL2_TRIPLE_VBMI;
                if (r + 64 <= w->tile_rows)
                    tl2_block_avx512vbmi(nibbles + before / 6, words + before / 24, 32 * bk, t, bk, 64, out + (first - row0 + r));
                else
                    tl2_block_avx512vbmi(nibbles + before / 6, words + before / 24, 0, t, bk, 32, out + (first - row0 + r));
            }
        tl2_pairs_avx2(w, first, table + three_k / 3 * TL2_TRIPLE_VBMI, out + (first - row0));
    }
}
