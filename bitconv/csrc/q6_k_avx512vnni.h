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
        acc[t] = q6_k_add_avx2(acc[t], block, value);
    }
}

#include "q6_k_dot.h"
