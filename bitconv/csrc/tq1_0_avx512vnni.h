/* TQ1_0 on AVX-512 VNNI, without pulling digits out. A byte is a fraction t; digit n is d = (3 t_n - t_n+1) / 256, t_n+1
 * being 3 t_n without its carry. So sum(d * q) = (3 * sum(t_n * q) - sum(t_n+1 * q)) / 256, with t as it is: vpdpbusd takes
 * unsigned bytes. Each lane sums whole digits, so its division is exact and its sums stay below 255 * 127 * cols.
 *
 * Four rows, which lie far apart, share the activations: 32 bytes of two rows are one register, 16 bytes of four another.
 */

BC_INLINE __m512i tq1_0_times3_avx512vnni(__m512i t) { return _mm512_add_epi8(t, _mm512_add_epi8(t, t)); }

/* a digit: its activations times this step's fractions and the next step's */
BC_INLINE void tq1_0_step_avx512vnni(__m512i *t, __m512i q, __m512i *now, __m512i *next)
{
    *now = _mm512_dpbusd_epi32(*now, *t, q);
    *t = tq1_0_times3_avx512vnni(*t);
    *next = _mm512_dpbusd_epi32(*next, *t, q);
}

/* per lane, (3 * now - next) / 256; what the subtraction loses at the top the exact result does not have */
BC_INLINE __m512i tq1_0_lanes_avx512vnni(__m512i now, __m512i next)
{
    const __m512i three = _mm512_add_epi32(now, _mm512_add_epi32(now, now));
    return _mm512_srai_epi32(_mm512_sub_epi32(three, next), 8);
}

BC_INLINE __m512i tq1_0_join_avx512vnni(const uint8_t *a, const uint8_t *b)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)a)), _mm256_loadu_si256((const __m256i *)b), 1);
}

/* sums of four rows, bytes apart as the pointers say */
BC_INLINE void tq1_0_dot_avx512vnni(const uint8_t *const *row, int64_t cols, const int8_t *q, int32_t *sum)
{
    __m512i now[3], next[3]; /* rows 0 and 1; rows 2 and 3; the second part of all four */
    __m128i last_now = _mm_setzero_si128(), last_next = _mm_setzero_si128(); /* the last four bytes: a lane is a row */
    for (int i = 0; i < 3; i++)
        now[i] = next[i] = _mm512_setzero_si512();
    for (int64_t b = 0; b < cols / 256 * TQ1_0_BLOCK; b += TQ1_0_BLOCK, q += 256) {
        __m512i t0 = tq1_0_join_avx512vnni(row[0] + b, row[1] + b), t1 = tq1_0_join_avx512vnni(row[2] + b, row[3] + b);
#pragma GCC unroll 5
        for (int n = 0; n < 5; n++) {
            const __m512i x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(q + 32 * n)));
            tq1_0_step_avx512vnni(&t0, x, &now[0], &next[0]);
            tq1_0_step_avx512vnni(&t1, x, &now[1], &next[1]);
        }
        __m512i t = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(row[0] + b + 32)));
        t = _mm512_inserti32x4(t, _mm_loadu_si128((const __m128i *)(row[1] + b + 32)), 1);
        t = _mm512_inserti32x4(t, _mm_loadu_si128((const __m128i *)(row[2] + b + 32)), 2);
        t = _mm512_inserti32x4(t, _mm_loadu_si128((const __m128i *)(row[3] + b + 32)), 3);
#pragma GCC unroll 5
        for (int n = 0; n < 5; n++)
            tq1_0_step_avx512vnni(&t, _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(q + 160 + 16 * n))), &now[2], &next[2]);
        int32_t word[4];
        for (int i = 0; i < 4; i++)
            memcpy(word + i, row[i] + b + 48, 4);
        __m128i u = _mm_loadu_si128((const __m128i *)word);
#pragma GCC unroll 4
        for (int n = 0; n < 4; n++) {
            int32_t four;
            memcpy(&four, q + 240 + 4 * n, 4);
            last_now = _mm_dpbusd_epi32(last_now, u, _mm_set1_epi32(four));
            u = _mm_add_epi8(u, _mm_add_epi8(u, u));
            last_next = _mm_dpbusd_epi32(last_next, u, _mm_set1_epi32(four));
        }
    }
    int32_t lanes[3][16], last[4];
    for (int i = 0; i < 3; i++)
        _mm512_storeu_si512(lanes[i], tq1_0_lanes_avx512vnni(now[i], next[i]));
    const __m128i three = _mm_add_epi32(last_now, _mm_add_epi32(last_now, last_now));
    _mm_storeu_si128((__m128i *)last, _mm_srai_epi32(_mm_sub_epi32(three, last_next), 8));
    for (int i = 0; i < 4; i++) {
        sum[i] = last[i];
        for (int j = 0; j < 8; j++)
            sum[i] += lanes[i / 2][i % 2 * 8 + j];
        for (int j = 0; j < 4; j++)
            sum[i] += lanes[2][i * 4 + j];
    }
}

#include "tq1_0_rows.h"

BC_INLINE __m512i tq1_0_digit_avx512vnni(__m512i t)
{
    const __m512i one = _mm512_set1_epi8(1);
    const __m512i digit = _mm512_maskz_mov_epi8(_mm512_cmpgt_epu8_mask(t, _mm512_set1_epi8(85)), one);
    return _mm512_mask_add_epi8(digit, _mm512_cmpgt_epu8_mask(t, _mm512_set1_epi8((char)170)), digit, one);
}

static void tq1_0_panel_avx512vnni(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    for (int64_t first = 0; first < BC_PANEL_ROWS; first += BC_TILE_ROWS)
        for (int64_t k = k0; k < k1; k += 256) {
            __m256i x[16], y[16];
            tq1_0_rows_avx2(w, row0 + first, k, x);
            tq1_0_rows_avx2(w, row0 + first + 8, k, y);
            for (int j = 0; j < 16; j = j == 7 ? 11 : j + 1) {
                int64_t next;
                int digits;
                uint8_t *line = panel + bc_panel_at(first, k - k0 + tq1_0_columns(j, &next, &digits), k1 - k0);
                __m512i t = _mm512_inserti64x4(_mm512_castsi256_si512(x[j]), y[j], 1);
                for (int n = 0; n < digits; n++, t = tq1_0_times3_avx512vnni(t), line += next / 4 * BC_TILE_ROWS * 4)
                    _mm512_storeu_si512(line, tq1_0_digit_avx512vnni(t));
            }
        }
}
