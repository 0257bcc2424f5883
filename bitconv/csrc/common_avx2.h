/* Small integer steps that several AVX2 kernels share. */

/* sum += codes * x, pairs of products in int16 lanes; in place, because gcc copies and spills sums that are many */
BC_INLINE void add_products_avx2(__m256i *sum, __m256i codes, __m256i x)
{
    const __m256i products = _mm256_maddubs_epi16(codes, x);
    __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(products));
}

BC_INLINE int32_t sum_i32_avx2(__m256i x)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtsi128_si32(s);
}

/* the sums of the lanes of each of four registers */
BC_INLINE __m128i sums_i32_avx2(const __m256i x[4])
{
    const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
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

BC_INLINE __m256i twice_avx2(const void *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)); }

/* int16 values = base * high + low with |low| <= base/2; inverse = round(32768 / base) */
BC_INLINE void split_planes_avx2(__m256i v, int base, int inverse, __m256i *low, __m256i *high)
{
    *high = _mm256_mulhrs_epi16(v, _mm256_set1_epi16((int16_t)inverse));
    *low = _mm256_sub_epi16(v, _mm256_mullo_epi16(*high, _mm256_set1_epi16((int16_t)base)));
}

/* weights of two columns side by side, as bytes */
BC_INLINE __m256i pair_weights_avx2(__m256i w0, __m256i w1)
{
    return _mm256_or_si256(_mm256_and_si256(w0, _mm256_set1_epi16(255)), _mm256_slli_epi16(w1, 8));
}

/* the weights of a pair under the 16 patterns 3*(w0+1) + w1+1, side by side, and 128 times their sum, which raised activations add */
BC_INLINE void pair_patterns_avx2(__m256i *weights, __m256i *raise)
{
    const __m256i w0 = _mm256_setr_epi16(-1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0);
    const __m256i w1 = _mm256_setr_epi16(-1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0, 0, 0, 0, 0, 0);
    *weights = pair_weights_avx2(w0, w1);
    *raise = _mm256_slli_epi16(_mm256_add_epi16(w0, w1), 7);
}

/* Look-up tables of two pairs, [low | low][high | high], 16 bytes each. x: the two activations of a pair, raised by 128 to be the
 * unsigned operand of vpmaddubsw, eight times in each lane. Pattern 8 - i is pattern i negated, so that eight sums do, 0..7. */
BC_INLINE void store_pairs_avx2(__m256i x, int base, int inverse, uint8_t *table)
{
    __m256i weights, raise, low, high;
    const __m256i zero = _mm256_setzero_si256();
    pair_patterns_avx2(&weights, &raise);
    weights = _mm256_permute4x64_epi64(weights, 0x44), raise = _mm256_permute4x64_epi64(raise, 0x44);
    split_planes_avx2(_mm256_sub_epi16(_mm256_maddubs_epi16(x, weights), raise), base, inverse, &low, &high);
    _mm256_storeu_si256((__m256i *)table, _mm256_packs_epi16(low, _mm256_sub_epi16(zero, low)));
    _mm256_storeu_si256((__m256i *)table + 1, _mm256_packs_epi16(high, _mm256_sub_epi16(zero, high)));
}

/* the tables of 8 columns, 128 bytes: of pairs 0 and 2, 1 and 3 (apart), or of 0 and 1, 2 and 3 */
BC_INLINE void pair_tables_avx2(const int8_t *q, int apart, int base, int inverse, uint8_t *table)
{
    int64_t columns;
    memcpy(&columns, q, 8);
    const __m256i raised = _mm256_xor_si256(_mm256_set1_epi64x(columns), _mm256_set1_epi8(-128));
    const __m128i low = _mm_set1_epi16(0x0100), step = _mm_set1_epi8(apart ? 4 : 2), next = _mm_set1_epi8(apart ? 2 : 4);
    const __m256i at = _mm256_set_m128i(_mm_add_epi8(low, step), low);
    store_pairs_avx2(_mm256_shuffle_epi8(raised, at), base, inverse, table);
    store_pairs_avx2(_mm256_shuffle_epi8(raised, _mm256_add_epi8(at, _mm256_broadcastsi128_si256(next))), base, inverse, table + 64);
}

/* codes of 4 columns for 2 x 16 rows, in bytes -> dwords of 4 columns: lines[0] is the low lanes' 16 rows, in the order of
 * their bytes, lines[1] the high lanes' */
BC_INLINE void interleave4_avx2(__m256i a, __m256i b, __m256i c, __m256i d, __m256i lines[2][2])
{
    const __m256i ab0 = _mm256_unpacklo_epi8(a, b), ab1 = _mm256_unpackhi_epi8(a, b);
    const __m256i cd0 = _mm256_unpacklo_epi8(c, d), cd1 = _mm256_unpackhi_epi8(c, d);
    const __m256i x0 = _mm256_unpacklo_epi16(ab0, cd0), x1 = _mm256_unpackhi_epi16(ab0, cd0); /* bytes 0..3, 4..7 */
    const __m256i x2 = _mm256_unpacklo_epi16(ab1, cd1), x3 = _mm256_unpackhi_epi16(ab1, cd1); /* 8..11, 12..15 */
    lines[0][0] = _mm256_permute2x128_si256(x0, x1, 0x20);
    lines[0][1] = _mm256_permute2x128_si256(x2, x3, 0x20);
    lines[1][0] = _mm256_permute2x128_si256(x0, x1, 0x31);
    lines[1][1] = _mm256_permute2x128_si256(x2, x3, 0x31);
}
