/* Q6_K on AVX-512 VNNI: as on AVX2, 64 codes at a time, and vpdpwssd adds as it multiplies by the scales. The two digits are two
 * chains of additions side by side: one after another, each waits for the last before it. */

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

BC_INLINE void q6_k_block_avx512vnni(const uint8_t *block, const uint8_t *digits, int64_t step, int n_t, __m256 *acc)
{
    const int64_t each = 0x0001000100010001;
    const __m512i first = _mm512_setr_epi64(0, 0, each, each, 2 * each, 2 * each, 3 * each, 3 * each); /* 16 columns have one scale */
    const __m256i scales = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(block + 192)));
    const __m256i minus32 = _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), scales), 5);
    __m512i p[BC_DENSE_TOKENS][2];
    for (int t = 0; t < n_t; t++)
#pragma GCC unroll 2
        for (int digit = 0; digit < 2; digit++) {
            const uint8_t *sums = digits + t * step + BC_DIGIT_SUMS + digit * 32;
            p[t][digit] = _mm512_zextsi256_si512(_mm256_madd_epi16(minus32, _mm256_loadu_si256((const __m256i *)sums)));
        }
    __m512i codes[2];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        if (g % 2 == 0)
            q6_k_codes_avx512vnni(block + g * 32, block + 128 + g * 16, codes);
        const __m512i scale = _mm512_permutexvar_epi16(_mm512_add_epi16(first, _mm512_set1_epi16((short)(4 * g))), _mm512_castsi256_si512(scales));
        for (int t = 0; t < n_t; t++)
#pragma GCC unroll 2
            for (int digit = 0; digit < 2; digit++) {
                const uint8_t *x = digits + t * step + digit * 256 + g * 64;
                p[t][digit] = _mm512_dpwssd_epi32(p[t][digit], _mm512_maddubs_epi16(codes[g % 2], _mm512_loadu_si512(x)), scale);
            }
    }
    for (int t = 0; t < n_t; t++) {
        __m256i folded[2];
#pragma GCC unroll 2
        for (int digit = 0; digit < 2; digit++)
            folded[digit] = _mm256_add_epi32(_mm512_castsi512_si256(p[t][digit]), _mm512_extracti64x4_epi64(p[t][digit], 1));
        acc[t] = q6_k_add_avx2(acc[t], block, digits + t * step, folded);
    }
}

#include "q6_k_dot.h"
