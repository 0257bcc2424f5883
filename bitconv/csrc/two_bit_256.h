/* I2_S and TQ2_0 on 256-bit registers: four groups of 32 columns in the bit pairs of 32 bytes. I2_S begins in the top bits and
 * its rows are contiguous; TQ2_0 begins in the low bits and has a 2-byte scale after every 64 bytes. Compiled for AVX2, and
 * twice for VNNI; what differs is given before:
 *
 *   ISA(add_products)(&sum, codes, x)  sum += codes * x, in int16 lanes on AVX2 (two products each), in int32 lanes with VNNI
 *   ISA(widened)(sum)                  the same as int32 lanes
 *   ISA(add_quarter)(&sum, sum4)       sum += sum4 / 4, whose lanes are multiples of 4
 *   TWO_BIT_COLS                       columns that lanes hold where codes are multiplied by 4; plain codes twice as many
 *   ISA(two_bit_ahead)                 bytes from what is read to what is fetched into L2: of small matrices the streams are too
 *                                      short for the hardware to notice them in time
 */

/* One token:   v & 3 -> one group       v & 12 -> 4 x the codes of the next       the same of v >> 4 -> the other two
 *
 * One shift serves four groups, and the sums of the x4 groups are exact multiples of 4. Two products are at most
 * 2 * 2 * 127 = 508 in a plain lane and 2032 in an x4 lane, two of each per 128 columns: x4 lanes of int16 hold 1024 columns
 * (16 * 2032 = 32512), plain lanes, with a quarter of those, 2048 (4 * 16 * 508). */
BC_INLINE void ISA(two_bit_step)(const uint8_t *const *row, const int n_rows, int64_t at, const int8_t *q, __m256i *acc, __m256i *acc4,
                                 int is_i2_s)
{
    const __m256i mask3 = _mm256_set1_epi8(3), mask12 = _mm256_set1_epi8(12), *x = (const __m256i *)q;
    const __m256i q0 = _mm256_loadu_si256(x + (is_i2_s ? 3 : 0)), q1 = _mm256_loadu_si256(x + (is_i2_s ? 2 : 1));
    const __m256i q2 = _mm256_loadu_si256(x + (is_i2_s ? 1 : 2)), q3 = _mm256_loadu_si256(x + (is_i2_s ? 0 : 3));
    for (int i = 0; i < n_rows; i++) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(row[i] + at)), h = _mm256_srli_epi16(v, 4);
        ISA(add_products)(&acc[i], _mm256_and_si256(v, mask3), q0);
        ISA(add_products)(&acc4[i], _mm256_and_si256(v, mask12), q1);
        ISA(add_products)(&acc[i], _mm256_and_si256(h, mask3), q2);
        ISA(add_products)(&acc4[i], _mm256_and_si256(h, mask12), q3);
    }
}

BC_INLINE void ISA(two_bit_dot)(const uint8_t *const *row, const int n_rows, int64_t cols, const int8_t *q, int32_t *sum, int is_i2_s)
{
    const __m256i zero = _mm256_setzero_si256();
    const uint8_t *r[4];
    __m256i acc[4] = {zero, zero, zero, zero}, total[4] = {zero, zero, zero, zero};
    for (int i = 0; i < n_rows; i++) {
        r[i] = row[i];
        __asm__("" : "+r"(r[i])); /* or gcc adds up each address anew */
    }
    for (int64_t k = 0; k < cols;) {
        const int64_t end = bc_min(k + TWO_BIT_COLS, cols);
        __m256i acc4[4] = {zero, zero, zero, zero};
        for (; k < end; k += 256) {
            const int64_t at = bc_two_bit_at(k, is_i2_s);
            for (int i = 0; i < n_rows; i++)
                bc_prefetch_far(r[i] + at + ISA(two_bit_ahead), 1);
            ISA(two_bit_step)(r, n_rows, at, q + k, acc, acc4, is_i2_s);
            if (is_i2_s && k + 128 == end) { /* to leave is faster than a condition before what follows */
                k = end;
                break;
            }
            ISA(two_bit_step)(r, n_rows, at + 32, q + k + 128, acc, acc4, is_i2_s);
        }
        for (int i = 0; i < n_rows; i++)
            ISA(add_quarter)(&acc[i], acc4[i]);
        if (k % (2 * TWO_BIT_COLS) == 0 && k < cols)
            for (int i = 0; i < n_rows; i++) {
                total[i] = _mm256_add_epi32(total[i], ISA(widened)(acc[i]));
                acc[i] = zero;
            }
    }
    for (int i = 0; i < n_rows; i++)
        acc[i] = ISA(widened)(acc[i]);
    if (cols > 2 * TWO_BIT_COLS)
        for (int i = 0; i < n_rows; i++)
            acc[i] = _mm256_add_epi32(total[i], acc[i]);
    if (n_rows == 1)
        sum[0] = sum_i32_avx2(acc[0]);
    else
        _mm_storeu_si128((__m128i *)sum, sums_i32_avx2(acc));
}

/* Some tokens: codes are shifted down once for all, so int16 lanes hold twice the columns (64 * 508 = 32512). Sums of four rows
 * and two tokens, or of two rows and more tokens, fit the registers. */
BC_INLINE void ISA(two_bit_few)(const uint8_t *const *row, int64_t cols, const int8_t *q, int64_t ldq, const int n_t, int32_t *sum,
                                int is_i2_s)
{
    const __m256i mask = _mm256_set1_epi8(3), zero = _mm256_setzero_si256();
    const int some = n_t == 2 ? 4 : 2;
    for (int first = 0; first < BC_STREAMS; first += some) {
        __m256i total[8] = {zero, zero, zero, zero, zero, zero, zero, zero}; /* [n_t][some] */
        for (int64_t k = 0; k < cols;) {
            const int64_t end = bc_min(k + 2 * TWO_BIT_COLS, cols);
            __m256i acc[8] = {zero, zero, zero, zero, zero, zero, zero, zero};
            for (; k < end; k += 128) {
                __m256i v[4];
#pragma GCC unroll 4
                for (int i = 0; i < some; i++) {
                    const uint8_t *at = row[first + i] + bc_two_bit_at(k, is_i2_s);
                    bc_prefetch_far(at + BC_FAR, 1);
                    v[i] = _mm256_loadu_si256((const __m256i *)at);
                }
#pragma GCC unroll 4
                for (int g = 0; g < 4; g++) {
                    __m256i codes[4];
#pragma GCC unroll 4
                    for (int i = 0; i < some; i++)
                        codes[i] = _mm256_and_si256(_mm256_srli_epi16(v[i], 2 * g), mask);
#pragma GCC unroll 4
                    for (int t = 0; t < n_t; t++) {
                        const __m256i x = _mm256_loadu_si256((const __m256i *)(q + t * ldq + k + 32 * (is_i2_s ? 3 - g : g)));
#pragma GCC unroll 4
                        for (int i = 0; i < some; i++)
                            ISA(add_products)(&acc[t * some + i], codes[i], x);
                    }
                }
            }
            for (int i = 0; i < n_t * some; i++)
                total[i] = _mm256_add_epi32(total[i], ISA(widened)(acc[i]));
        }
        int32_t all[8];
        _mm_storeu_si128((__m128i *)all, sums_i32_avx2(total));
        _mm_storeu_si128((__m128i *)(all + 4), sums_i32_avx2(total + 4));
        for (int t = 0; t < n_t; t++)
            for (int i = 0; i < some; i++)
                sum[t * BC_STREAMS + first + i] = all[t * some + i];
    }
}

#include "two_bit_rows.h"
BC_TWO_BIT_ROWS(i2_s, 1)
BC_TWO_BIT_ROWS(tq2_0, 0)
#undef TWO_BIT_COLS
