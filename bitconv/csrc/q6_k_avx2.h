/* Q6_K on AVX2: vpmaddubsw of 32 codes and 32 digits, then vpmaddwd by the scales of their 16-column halves.
 *
 * A lane of vpmaddubsw is at most 2 * 63 * 128 = 16128, and of vpmaddwd 2 * 16128 * 128 < 2^22, of which a block adds 8.
 */

BC_INLINE __m256i q6_k_load_avx2(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* acc + the scale of a block * the step of its digits * (256 * p[0] + p[1]) */
BC_INLINE __m256 q6_k_add_avx2(__m256 acc, const uint8_t *block, const uint8_t *digits, const __m256i p[2])
{
    int16_t half;
    memcpy(&half, block + 208, 2);
    const __m256 scale = _mm256_mul_ps(_mm256_cvtph_ps(_mm_set1_epi16(half)), _mm256_broadcast_ss((const float *)(digits + BC_DIGIT_STEP)));
    return _mm256_fmadd_ps(scale, _mm256_fmadd_ps(_mm256_cvtepi32_ps(p[0]), _mm256_set1_ps(256.0f), _mm256_cvtepi32_ps(p[1])), acc);
}

/* codes of 128 columns, from 64 bytes of low nibbles and 32 of high pairs */
BC_INLINE void q6_k_codes_avx2(const uint8_t *low, const uint8_t *high, __m256i codes[4])
{
    const __m256i nibble = _mm256_set1_epi8(15), pair = _mm256_set1_epi8(0x30);
    const __m256i a = q6_k_load_avx2(low), b = q6_k_load_avx2(low + 32), h = q6_k_load_avx2(high);
    codes[0] = _mm256_or_si256(_mm256_and_si256(a, nibble), _mm256_and_si256(_mm256_slli_epi16(h, 4), pair));
    codes[1] = _mm256_or_si256(_mm256_and_si256(b, nibble), _mm256_and_si256(_mm256_slli_epi16(h, 2), pair));
    codes[2] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 4), nibble), _mm256_and_si256(h, pair));
    codes[3] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 4), nibble), _mm256_and_si256(_mm256_srli_epi16(h, 2), pair));
}

BC_INLINE void q6_k_block_avx2(const uint8_t *block, const uint8_t *digits, int64_t step, int n_t, __m256 *acc)
{
    const __m128i scales = _mm_loadu_si128((const __m128i *)(block + 192));
    /* the scales of even groups of 16 columns in the low lane, of odd ones in the high lane */
    const __m256i pairs = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
    const __m256i minus32 = _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), _mm256_cvtepi8_epi16(scales)), 5);
    __m256i p[BC_DENSE_TOKENS][2], codes[4];
    for (int t = 0; t < n_t; t++)
#pragma GCC unroll 2
        for (int digit = 0; digit < 2; digit++)
            p[t][digit] = _mm256_madd_epi16(minus32, q6_k_load_avx2(digits + t * step + BC_DIGIT_SUMS + digit * 32));
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        if (g % 4 == 0)
            q6_k_codes_avx2(block + g * 16, block + 128 + g * 8, codes);
        const __m256i scale = _mm256_shuffle_epi8(pairs, _mm256_set1_epi16((short)((2 * g + 1) << 8 | 2 * g)));
        for (int t = 0; t < n_t; t++)
#pragma GCC unroll 2
            for (int digit = 0; digit < 2; digit++) {
                const __m256i two = _mm256_maddubs_epi16(codes[g % 4], q6_k_load_avx2(digits + t * step + digit * 256 + g * 32));
                p[t][digit] = _mm256_add_epi32(p[t][digit], _mm256_madd_epi16(two, scale));
                __asm__("" : "+x"(p[t][digit])); /* or gcc adds up later and keeps products in memory */
            }
    }
    for (int t = 0; t < n_t; t++)
        acc[t] = q6_k_add_avx2(acc[t], block, digits + t * step, p[t]);
}

#include "q6_k_dot.h"
