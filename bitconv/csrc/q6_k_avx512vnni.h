/* Q6_K on AVX-512 VNNI: as on AVX2, 64 codes at a time, and vpdpwssd adds as it multiplies by the scales. */

/* codes of 128 columns; one shift per half of a register puts the high pairs of both groups in place */
BC_INLINE void q6_k_codes_avx512vnni(const uint8_t *low, const uint8_t *high, __m512i codes[2])
{
    const __m512i nibble = _mm512_set1_epi8(15), pair = _mm512_set1_epi8(0x30);
    const __m512i up = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
    const __m512i down = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
    const __m512i l = _mm512_loadu_si512(low), h = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)high));
    codes[0] = _mm512_or_si512(_mm512_and_si512(l, nibble), _mm512_and_si512(_mm512_sllv_epi16(h, up), pair));
    codes[1] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(l, 4), nibble), _mm512_and_si512(_mm512_srlv_epi16(h, down), pair));
}

BC_INLINE void q6_k_block_avx512vnni(const uint8_t *block, int64_t cols, int64_t b, const uint8_t *digits, int64_t step, int n_t,
                                     __m256 *acc)
{
    const __m128i scales = _mm_loadu_si128((const __m128i *)(block + 192));
    /* lane i of four gets the scales of the groups i, i + 4, i + 8 and i + 12 of 16 columns */
    const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 0, 0, 0, 0, 1, 5, 9, 13, 0, 0, 0, 0, 2, 6, 10, 14, 0, 0, 0, 0, 3, 7, 11, 15, 0, 0, 0, 0);
    const __m512i fours = _mm512_cvtepi8_epi16(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(scales), order));
    const __m256i in_order = _mm256_cvtepi8_epi16(scales);
    __m512i codes[4], scale[4];
    q6_k_codes_avx512vnni(block, block + 128, codes);
    q6_k_codes_avx512vnni(block + 64, block + 160, codes + 2);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++)
        scale[g] = _mm512_shuffle_epi8(fours, _mm512_set1_epi16((short)((2 * g + 1) << 8 | 2 * g)));
    int16_t half;
    memcpy(&half, block + 208, 2);
    const __m256 d = _mm256_cvtph_ps(_mm_set1_epi16(half));
    for (int t = 0; t < n_t; t++) {
        const uint8_t *x = digits + t * step, *sums = x + 3 * cols;
        __m256 value[3];
#pragma GCC unroll 3
        for (int digit = 0; digit < 3; digit++) {
            const __m256i minus = _mm256_madd_epi16(in_order, _mm256_loadu_si256((const __m256i *)(sums + (digit * (cols / 16) + b * 16) * 2)));
            __m512i p = _mm512_setzero_si512();
#pragma GCC unroll 4
            for (int g = 0; g < 4; g++)
                p = _mm512_dpwssd_epi32(p, _mm512_maddubs_epi16(codes[g], _mm512_loadu_si512(x + digit * cols + b * 256 + g * 64)), scale[g]);
            const __m256i both = _mm256_add_epi32(_mm512_castsi512_si256(p), _mm512_extracti64x4_epi64(p, 1));
            value[digit] = _mm256_cvtepi32_ps(_mm256_sub_epi32(both, _mm256_slli_epi32(minus, 5)));
        }
        const __m256 lower = _mm256_fmadd_ps(value[1], _mm256_set1_ps(256.0f), value[2]);
        acc[t] = _mm256_fmadd_ps(d, _mm256_fmadd_ps(value[0], _mm256_set1_ps(65536.0f), lower), acc[t]);
    }
}

/* the arguments are those of q6_k_portable.h */
BC_INLINE void q6_k_dot_avx512vnni(const uint8_t *row, int64_t row_step, int n_r, int64_t cols, const uint8_t *digits, int64_t step,
                                   int n_t, float *sum)
{
    __m256 acc[8];
    for (int i = 0; i < n_r * n_t; i++)
        acc[i] = _mm256_setzero_ps();
    for (int64_t b = 0; b < cols / 256; b++)
        for (int r = 0; r < n_r; r++)
            q6_k_block_avx512vnni(row + r * row_step + b * 210, cols, b, digits, step, n_t, acc + r);
    for (int i = 0; i < n_r * n_t; i++) {
        float inverse;
        memcpy(&inverse, digits + (n_t > 1 ? i : 0) * step + 3 * cols + cols / 16 * 6, 4);
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(acc[i]), _mm256_extractf128_ps(acc[i], 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        sum[i] = _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1))) * inverse;
    }
}
