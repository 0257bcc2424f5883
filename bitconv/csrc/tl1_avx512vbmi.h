/* TL1 on AVX-512 VBMI: the sums and the tables of tl1_avx2.h, looked up across a whole register.
 *
 * A line of 64 bytes of tables is, for bm = 32, [pair 0 low][pair 2 low][pair 0 high][pair 2 high] and then the same of pairs
 * 1 and 3; for bm = 64 [pair 0 low][pair 0 high][pair 1 low][pair 1 high]. A plane of a line is loaded into the low part of a
 * register, and an index adds 16 to the nibble where a lane wants the second pair: to broadcast parts takes slots of the
 * shuffle unit, and indices that tell planes apart take two more instructions a nibble.
 */

/* two lines of tables, 8 columns */
BC_INLINE void tl1_lines_avx512vbmi(const int8_t *q, int bm, uint8_t *table)
{
    __m256i weights, raise;
    pair_patterns_avx2(&weights, &raise);
    const __m512i order = bm == 32 ? _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7) : _mm512_setr_epi64(0, 2, 1, 3, 4, 6, 5, 7);
    const __m128i raised = _mm_xor_si128(_mm_loadl_epi64((const __m128i *)q), _mm_set1_epi8(-128)); /* unsigned: q + 128 */
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++, table += 64) {
        const int a = bm == 32 ? i : 2 * i, b = bm == 32 ? i + 2 : 2 * i + 1; /* the pairs of the line */
        const __m512i at = _mm512_inserti64x4(_mm512_set1_epi16((int16_t)(2 * a | (2 * a + 1) << 8)),
                                              _mm256_set1_epi16((int16_t)(2 * b | (2 * b + 1) << 8)), 1);
        const __m512i x = _mm512_permutexvar_epi8(at, _mm512_castsi128_si512(raised));
        const __m512i v = _mm512_sub_epi16(_mm512_maddubs_epi16(x, _mm512_broadcast_i64x4(weights)), _mm512_broadcast_i64x4(raise));
        const __m512i high = _mm512_mulhrs_epi16(v, _mm512_set1_epi16(1928));
        const __m512i low = _mm512_sub_epi16(v, _mm512_mullo_epi16(high, _mm512_set1_epi16(17)));
        _mm512_storeu_si512(table, _mm512_permutexvar_epi64(order, _mm512_packs_epi16(low, high)));
    }
}

static void tl1_prepare_avx512vbmi(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table)
{
    for (int64_t k = k0; k < k1; k += 8)
        if (w->micro_rows == 32)
            tl1_lines_avx512vbmi(q + k, 32, table + k * 16);
        else
            tl1_lines_avx512vbmi(q + k, 64, table + k * 16);
}

/* int16 sums of the bytes 0..7 and 8..15 of each lane */
typedef struct {
    __m512i half[2];
} tl1_sums_avx512vbmi;

BC_INLINE tl1_sums_avx512vbmi tl1_no_sums_avx512vbmi(void)
{
    return (tl1_sums_avx512vbmi){{_mm512_setzero_si512(), _mm512_setzero_si512()}};
}

/* n steps of 64 bytes, at most four: byte sums reach 8 * 15 */
BC_INLINE void tl1_steps_avx512vbmi(const uint8_t *data, int64_t apart, int blocks, const uint8_t *table, int bm, int n,
                                    tl1_sums_avx512vbmi *sums)
{
    (void)apart, (void)blocks; /* one: two were measured on AVX2 only */
    const __m512i mask = _mm512_set1_epi8(15), weights = _mm512_set1_epi16(17 << 8 | 1), zero = _mm512_setzero_si512();
    const int64_t second = 0x1010101010101010;
    const __m512i lane = bm == 32 ? _mm512_setr_epi64(0, 0, second, second, 0, 0, second, second) : zero;
    __m512i planes[2] = {zero, zero};
#pragma GCC unroll 4
    for (int s = 0; s < n; s++, data += 64, table += bm == 32 ? 128 : 64) {
        __m512i v = _mm512_loadu_si512(data);
        __asm__("" : "+v"(v)); /* one load: gcc would put a second one into the shift */
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) { /* upper, lower nibbles */
            const __m512i index = _mm512_ternarylogic_epi64(mask, i ? v : _mm512_srli_epi16(v, 4), lane, 0xca);
#pragma GCC unroll 2
            for (int plane = 0; plane < 2; plane++) {
                const uint8_t *at = table + (2 * i + plane) * (bm == 32 ? 32 : 16);
                const __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)at)); /* bm = 32: of two pairs */
                const __m512i one = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)at));
                planes[plane] = _mm512_add_epi8(planes[plane], _mm512_permutexvar_epi8(index, bm == 32 ? both : one));
            }
        }
    }
    sums->half[0] = _mm512_add_epi16(sums->half[0], _mm512_maddubs_epi16(weights, _mm512_unpacklo_epi8(planes[0], planes[1])));
    sums->half[1] = _mm512_add_epi16(sums->half[1], _mm512_maddubs_epi16(weights, _mm512_unpackhi_epi8(planes[0], planes[1])));
}

/* bm = 32: lanes 0 and 1 are rows 0..15, lanes 2 and 3 rows 16..31; bm = 64: each is 16 rows */
BC_INLINE void tl1_add_rows_avx512vbmi(int32_t *out, const tl1_sums_avx512vbmi *sums, int bm)
{
    for (int i = 0; i < 2; i++) {
        const __m256i low = _mm512_castsi512_si256(sums->half[i]), high = _mm512_extracti64x4_epi64(sums->half[i], 1);
        tl1_add_lanes_avx2(out + 8 * i, low, bm);
        tl1_add_lanes_avx2(out + 8 * i + bm / 2, high, bm);
    }
}

enum { tl1_together_avx512vbmi = 1 };
#include "tl1_rows.h"

/* Bytes of pairs -> a panel line of 4 columns of 16 rows. spread: where the byte of each row is in v, for the four bytes of its dword. */
BC_INLINE __m512i tl_pair_line_avx512vbmi(__m512i v, __m512i spread)
{
    const __m512i mask = _mm512_set1_epi8(15), odd = _mm512_set1_epi16(0x1000), nibble = _mm512_set1_epi64(0x2020242400000404);
    const __m128i div3 = _mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0);
    const __m128i mod3 = _mm_setr_epi8(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0);
    const __m512i codes = _mm512_castsi256_si512(_mm256_set_m128i(mod3, div3)); /* of even and of odd columns */
    const __m512i nibbles = _mm512_multishift_epi64_epi8(nibble, _mm512_permutexvar_epi8(spread, v));
    return _mm512_permutexvar_epi8(_mm512_ternarylogic_epi64(mask, nibbles, odd, 0xca), codes);
}

/* the numbers from..from+7 and then..then+7, each four times: a place for the bytes of 16 rows */
BC_INLINE __m512i tl_spread_avx512vbmi(int from, int then)
{
    const __m512i rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, then - from, then - from + 1, then - from + 2, then - from + 3,
                                           then - from + 4, then - from + 5, then - from + 6, then - from + 7);
    return _mm512_mullo_epi32(_mm512_add_epi32(rows, _mm512_set1_epi32(from)), _mm512_set1_epi32(0x01010101));
}

static void tl1_panel_avx512vbmi(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    const int64_t by = 256 / w->micro_rows, n = k1 - k0;
    __m512i spread[4];
    for (int i = 0; i < 4; i++)
        spread[i] = tl_spread_avx512vbmi(16 * i, 16 * i + 8);
    for (int64_t k = k0; k < k1;) {
        const uint8_t *data = w->data + tl1_at(w, row0, k);
        for (const int64_t end = bc_min(k1, (k / w->tile_cols + 1) * w->tile_cols); k < end; k += by, data += 64)
            if (by == 8) { /* rows 0..15 of columns k..k+3 and k+4..k+7, then rows 16..31 */
                const __m512i v = _mm512_loadu_si512(data);
                for (int i = 0; i < 4; i++)
                    _mm512_storeu_si512(panel + bc_panel_at(i / 2 * 16, k - k0 + i % 2 * 4, n), tl_pair_line_avx512vbmi(v, spread[i]));
            } else {
                const __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)data));
                for (int i = 0; i < 2; i++)
                    _mm512_storeu_si512(panel + bc_panel_at(i * 16, k - k0, n), tl_pair_line_avx512vbmi(v, spread[i]));
            }
    }
}
