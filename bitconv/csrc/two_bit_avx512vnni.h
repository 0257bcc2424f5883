/* I2_S and TQ2_0 on AVX-512 VNNI: the decode of two_bit_256.h with exact int32 lanes. Each bit pair is multiplied where it
 * lies, without a shift: a lane grows by 4 * 128 * 127 at most in 256 columns, and 8 million columns fit.
 *
 * 32 bytes hold 128 columns in four groups; 64 bytes are two such parts, whose activations lie 128 columns apart.
 */

BC_INLINE __m512i two_bit_q_avx512vnni(const int8_t *q)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)q)),
                              _mm256_loadu_si256((const __m256i *)(q + 128)), 1);
}

/* the sums of the lanes of each of four registers */
BC_INLINE __m128i fold_4_avx512vnni(__m512i *all)
{
    for (int i = 0; i < 4; i += 2)
        all[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(all[i], all[i + 1]), _mm512_unpackhi_epi32(all[i], all[i + 1]));
    const __m512i four = _mm512_add_epi32(_mm512_unpacklo_epi64(all[0], all[2]), _mm512_unpackhi_epi64(all[0], all[2]));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64(four, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* sums of n_rows rows (1 or 4) that start at row[i] */
BC_INLINE void two_bit_dot_avx512vnni(const uint8_t *const *row, int n_rows, int64_t cols, const int8_t *q, int32_t *sum, int is_i2_s)
{
    __m512i acc[BC_STREAMS][4]; /* of each bit pair where it lies: 1, 4, 16 and 64 times the codes */
    for (int i = 0; i < n_rows; i++)
        for (int g = 0; g < 4; g++)
            acc[i][g] = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 256 <= cols; k += 256) {
        __m512i x[4];
        for (int g = 0; g < 4; g++)
            x[g] = two_bit_q_avx512vnni(q + k + 32 * (is_i2_s ? 3 - g : g));
        for (int i = 0; i < n_rows; i++) {
            bc_prefetch_far(row[i] + bc_two_bit_at(k, is_i2_s) + BC_FAR, 1);
            const __m512i v = _mm512_loadu_si512(row[i] + bc_two_bit_at(k, is_i2_s));
            for (int g = 0; g < 4; g++) {
                acc[i][g] = _mm512_dpbusd_epi32(acc[i][g], _mm512_and_si512(v, _mm512_set1_epi8((char)(3 << 2 * g))), x[g]);
                __asm__("" : "+v"(acc[i][g])); /* or gcc copies and spills the sums */
            }
        }
    }
    __m512i all[BC_STREAMS];
    for (int i = 0; i < n_rows; i++) {
        if (k < cols) { /* one part more, of I2_S only: zeros in the upper half add nothing */
            const __m512i v = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(row[i] + k / 4)));
            for (int g = 0; g < 4; g++) {
                const __m512i x = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)(q + k + 32 * (3 - g))));
                acc[i][g] = _mm512_dpbusd_epi32(acc[i][g], _mm512_and_si512(v, _mm512_set1_epi8((char)(3 << 2 * g))), x);
            }
        }
        all[i] = acc[i][0]; /* the others are exact multiples, so the arithmetic shift divides them */
        for (int g = 1; g < 4; g++)
            all[i] = _mm512_add_epi32(all[i], _mm512_srai_epi32(acc[i][g], 2 * g));
    }
    if (n_rows == 1)
        sum[0] = _mm512_reduce_add_epi32(all[0]);
    else
        _mm_storeu_si128((__m128i *)sum, fold_4_avx512vnni(all));
}

/* sums of four rows and n_t tokens, [n_t][4]: the codes are shifted down once for all tokens */
BC_INLINE void two_bit_few_avx512vnni(const uint8_t *const *row, int64_t cols, const int8_t *q, int64_t ldq, const int n_t, int32_t *sum,
                                      int is_i2_s)
{
    const __m512i mask = _mm512_set1_epi8(3);
    __m512i acc[BC_FEW][BC_STREAMS];
    for (int t = 0; t < n_t; t++)
        for (int i = 0; i < BC_STREAMS; i++)
            acc[t][i] = _mm512_setzero_si512();
    for (int64_t k = 0; k < cols; k += 256) {
        const int part = cols - k < 256; /* of I2_S only: zeros in the upper half add nothing */
        __m512i v[BC_STREAMS];
        for (int i = 0; i < BC_STREAMS; i++) {
            const uint8_t *p = row[i] + bc_two_bit_at(k, is_i2_s);
            bc_prefetch_far(p + BC_FAR, 1);
            v[i] = part ? _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)p)) : _mm512_loadu_si512(p);
        }
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            __m512i codes[BC_STREAMS];
#pragma GCC unroll 4
            for (int i = 0; i < BC_STREAMS; i++)
                codes[i] = _mm512_and_si512(_mm512_srli_epi16(v[i], 2 * g), mask);
#pragma GCC unroll 4
            for (int t = 0; t < n_t; t++) {
                const int8_t *at = q + t * ldq + k + 32 * (is_i2_s ? 3 - g : g);
                __m512i x = part ? _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)at)) : two_bit_q_avx512vnni(at);
#pragma GCC unroll 4
                for (int i = 0; i < BC_STREAMS; i++) {
                    acc[t][i] = _mm512_dpbusd_epi32(acc[t][i], codes[i], x);
                    __asm__("" : "+v"(acc[t][i])); /* as above */
                }
            }
        }
    }
    for (int t = 0; t < n_t; t++)
        _mm_storeu_si128((__m128i *)(sum + t * BC_STREAMS), fold_4_avx512vnni(acc[t]));
}

#include "two_bit_rows.h"
BC_TWO_BIT_ROWS(i2_s, 1)
BC_TWO_BIT_ROWS(tq2_0, 0)
