/* TQ1_0 on AVX2. A byte t is a fraction of 256, and multiplying it by 3 pushes a digit out at the top. Multiplied by 9, as a
 * word, it has its first two digits in the upper byte (3 * d0 + d1, at most 8) and the fraction that remains in the lower one:
 * one vpmaddubsw is two steps for the even bytes, another one for the odd bytes. Two look-ups take the two digits apart.
 *
 * Four rows, which lie far apart, go together: 16 bytes of two rows are one register, 4 bytes of four rows half of one.
 */

/* the upper bytes of the words of even and of odd bytes, as bytes in order */
BC_INLINE __m256i tq1_0_upper_avx2(__m256i even, __m256i odd)
{
    return _mm256_blendv_epi8(_mm256_srli_epi16(even, 8), odd, _mm256_set1_epi16((int16_t)0xff00));
}

/* The first n digits, 4 or 5, of 32 bytes times their activations, added to int16 lanes, which grow by at most n * 508. Of a
 * digit there are 32 activations, or 16 or 4 that are repeated. */
BC_INLINE __m256i tq1_0_add_avx2(__m256i sum, __m256i t, const int n, const int8_t *q, const int repeat)
{
    const __m256i div3 = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0));
    const __m256i mod3 = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0));
    const __m256i three = _mm256_set1_epi16(3), nine = _mm256_set1_epi16(9);
    __m256i even = _mm256_maddubs_epi16(t, nine), odd = _mm256_maddubs_epi16(t, _mm256_set1_epi16(9 << 8));
#pragma GCC unroll 5
    for (int i = 0; i < n; i++) {
        int32_t four;
        memcpy(&four, q + i * repeat, 4);
        const __m256i x = repeat == 32 ? _mm256_loadu_si256((const __m256i *)(q + 32 * i))
                                       : repeat == 16 ? twice_avx2(q + 16 * i) : _mm256_set1_epi32(four);
        const __m256i two = tq1_0_upper_avx2(even, odd); /* of i = 4: one digit */
        const __m256i digit = i == 4 ? two : _mm256_shuffle_epi8(i % 2 ? mod3 : div3, two);
        add_products_avx2(&sum, digit, x);
        if (i % 2) {
            even = _mm256_maddubs_epi16(even, i == 1 ? nine : three);
            odd = _mm256_maddubs_epi16(odd, i == 1 ? nine : three);
        }
    }
    return sum;
}

/* sums of four rows, bytes apart as the pointers say */
BC_INLINE void tq1_0_dot_avx2(const uint8_t *const *row, int64_t cols, const int8_t *q, int32_t *sum)
{
    enum { most = 12 }; /* blocks after which lanes must be widened: 12 * 5 * 508 = 30480 */
    const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi16(1);
    const int64_t end = cols / 256 * TQ1_0_BLOCK;
    __m256i total[7] = {zero, zero, zero, zero, zero, zero, zero}; /* rows 0 to 3; 0 and 1; 2 and 3; all four */
    for (int64_t b = 0; b < end;) {
        __m256i acc[7] = {zero, zero, zero, zero, zero, zero, zero};
        for (const int64_t stop = bc_min(b + most * TQ1_0_BLOCK, end); b < stop; b += TQ1_0_BLOCK, q += 256) {
            int32_t last[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                acc[i] = tq1_0_add_avx2(acc[i], _mm256_loadu_si256((const __m256i *)(row[i] + b)), 5, q, 32);
                memcpy(last + i, row[i] + b + 48, 4);
            }
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                const __m128i *first = (const __m128i *)(row[2 * i] + b + 32), *second = (const __m128i *)(row[2 * i + 1] + b + 32);
                const __m256i t = _mm256_set_m128i(_mm_loadu_si128(second), _mm_loadu_si128(first));
                acc[4 + i] = tq1_0_add_avx2(acc[4 + i], t, 5, q + 160, 16);
            }
            const __m128i t = _mm_setr_epi32(last[0], last[1], last[2], last[3]);
            acc[6] = tq1_0_add_avx2(acc[6], _mm256_inserti128_si256(zero, t, 0), 4, q + 240, 4);
        }
        for (int i = 0; i < 7; i++)
            total[i] = _mm256_add_epi32(total[i], _mm256_madd_epi16(acc[i], ones));
    }
    const __m256i both = _mm256_hadd_epi32(total[4], total[5]), four = _mm256_hadd_epi32(both, both); /* rows 0 2 0 2 | 1 3 1 3 */
    const __m128i second = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    const __m128i rest = _mm_add_epi32(second, _mm256_castsi256_si128(total[6]));
    _mm_storeu_si128((__m128i *)sum, _mm_add_epi32(sums_i32_avx2(total), rest));
}

#include "tq1_0_rows.h"

/* digits as bytes, for panels. A digit is (3t) >> 8 of the remaining fraction t: 0 below 86, 1 below 171, else 2. Bytes are biased
 * by 128 so that signed compares serve; 3 * (t + 128) = 3t + 128 mod 256, so the bias survives the step to the next digit. */
BC_INLINE __m256i tq1_0_digit_avx2(__m256i t)
{
    const __m256i one = _mm256_cmpgt_epi8(t, _mm256_set1_epi8(85 - 128)), two = _mm256_cmpgt_epi8(t, _mm256_set1_epi8(170 - 128));
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
}

BC_INLINE __m256i tq1_0_times3_avx2(__m256i t) { return _mm256_add_epi8(t, _mm256_add_epi8(t, t)); }

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
