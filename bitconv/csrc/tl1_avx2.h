/* TL1 on AVX2: a nibble looks up the sum of a pair of activations under its two weights.
 *
 * Sums reach 254, so a table is two byte planes, value = 17*high + low with |low| <= 8 and |high| <= 15. Bytes are added
 * for 8 pairs (8 * 15 = 120 fits), then one vpmaddubsw by (1, 17) rebuilds exact int16 sums. A step of 64 bytes is
 *   bm = 32: rows 0..15 of columns 0..3 | rows 0..15 of columns 4..7 | rows 16..31 likewise: lanes take tables of their own
 *   bm = 64: rows 0..15 | 16..31 | 32..47 | 48..63 of columns 0..3:                          lanes share a table
 */

static void tl1_prepare_avx2(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table)
{
    for (int64_t k = k0; k < k1; k += 8)
        if (w->micro_rows == 32)
            pair_tables_avx2(q + k, 1, 17, 1928, table + k * 16);
        else
            pair_tables_avx2(q + k, 0, 17, 1928, table + k * 16);
}

/* Sums under an index, added to the byte sums. Without the barrier gcc looks all indices up first and puts what it finds, and the
 * sums, into memory: three quarters of the speed. */
BC_INLINE void tl_look_up_avx2(__m256i index, __m256i low_table, __m256i high_table, __m256i *low, __m256i *high)
{
    *low = _mm256_add_epi8(*low, _mm256_shuffle_epi8(low_table, index));
    *high = _mm256_add_epi8(*high, _mm256_shuffle_epi8(high_table, index));
    __asm__("" : "+x"(*low), "+x"(*high));
}

/* byte sums of 32 rows (or 2 x 16) -> int16: sum[0] has bytes 0..7 of each lane, sum[1] bytes 8..15 */
BC_INLINE void tl1_fold_avx2(__m256i low, __m256i high, __m256i sum[2])
{
    const __m256i weights = _mm256_set1_epi16(17 << 8 | 1);
    sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(weights, _mm256_unpacklo_epi8(low, high)));
    sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(weights, _mm256_unpackhi_epi8(low, high)));
}

BC_INLINE void tl_add_rows_avx2(int32_t *out, __m128i sums)
{
    __m256i *p = (__m256i *)out;
    _mm256_storeu_si256(p, _mm256_add_epi32(_mm256_loadu_si256(p), _mm256_cvtepi16_epi32(sums)));
}

/* 2 x 8 int16 sums of a row block: of the same rows (bm = 32) or of rows 16 apart (bm = 64) */
BC_INLINE void tl1_add_lanes_avx2(int32_t *out, __m256i sum, int bm)
{
    const __m128i first = _mm256_castsi256_si128(sum), second = _mm256_extracti128_si256(sum, 1);
    if (bm == 32) {
        tl_add_rows_avx2(out, _mm_add_epi16(first, second));
    } else {
        tl_add_rows_avx2(out, first);
        tl_add_rows_avx2(out + 16, second);
    }
}

/* int16 sums of the two halves of a step, as tl1_fold_avx2 leaves them */
typedef struct {
    __m256i half[2][2];
} tl1_sums_avx2;

BC_INLINE tl1_sums_avx2 tl1_no_sums_avx2(void)
{
    const __m256i zero = _mm256_setzero_si256();
    return (tl1_sums_avx2){{{zero, zero}, {zero, zero}}};
}

/* n steps of 64 bytes, at most four: byte sums reach 8 * 15; of one or two row blocks that lie apart and share the tables */
BC_INLINE void tl1_steps_avx2(const uint8_t *data, int64_t apart, int blocks, const uint8_t *table, int bm, int n, tl1_sums_avx2 *sums)
{
    const __m256i mask = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    __m256i low[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
#pragma GCC unroll 4
    for (int s = 0; s < n; s++, data += 64, table += bm == 32 ? 128 : 64)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) { /* upper, lower nibbles */
            const __m256i *planes = (const __m256i *)table + 2 * i;
            const __m256i low_table = bm == 32 ? _mm256_loadu_si256(planes) : twice_avx2(table + i * 16);
            const __m256i high_table = bm == 32 ? _mm256_loadu_si256(planes + 1) : twice_avx2(table + 32 + i * 16);
#pragma GCC unroll 4
            for (int j = 0; j < 2 * blocks; j++) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(data + j / 2 * apart + j % 2 * 32));
                const __m256i index = _mm256_and_si256(i ? v : _mm256_srli_epi16(v, 4), mask);
                tl_look_up_avx2(index, low_table, high_table, &low[j], &high[j]);
            }
        }
#pragma GCC unroll 4
    for (int j = 0; j < 2 * blocks; j++)
        tl1_fold_avx2(low[j], high[j], sums[j / 2].half[j % 2]);
}

BC_INLINE void tl1_add_rows_avx2(int32_t *out, const tl1_sums_avx2 *sums, int bm)
{
    for (int i = 0; i < 2; i++) {
        tl1_add_lanes_avx2(out + 8 * i, sums->half[0][i], bm);
        tl1_add_lanes_avx2(out + 8 * i + bm / 2, sums->half[1][i], bm);
    }
}

enum { tl1_together_avx2 = 2 };
#include "tl1_rows.h"

/* 2 x 16 bytes of pairs -> panel lines: 4 columns of 16 rows for each lane */
BC_INLINE void tl_pair_lines_avx2(__m256i v, __m256i lines[2][2])
{
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i div3 = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0));
    const __m256i mod3 = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0));
    const __m256i first = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask), second = _mm256_and_si256(v, mask);
    interleave4_avx2(_mm256_shuffle_epi8(div3, first), _mm256_shuffle_epi8(mod3, first), _mm256_shuffle_epi8(div3, second),
                     _mm256_shuffle_epi8(mod3, second), lines);
}

BC_INLINE void store_line_avx2(uint8_t *panel, const __m256i line[2])
{
    _mm256_storeu_si256((__m256i *)panel, line[0]);
    _mm256_storeu_si256((__m256i *)panel + 1, line[1]);
}

static void tl1_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    const int64_t by = 256 / w->micro_rows, n = k1 - k0;
    for (int64_t k = k0; k < k1;) {
        const uint8_t *data = w->data + tl1_at(w, row0, k);
        for (const int64_t end = bc_min(k1, (k / w->tile_cols + 1) * w->tile_cols); k < end; k += by, data += 64)
            for (int half = 0; half < by / 4; half++) {
                __m256i lines[2][2];
                tl_pair_lines_avx2(_mm256_loadu_si256((const __m256i *)data + half), lines);
                /* by = 8: the lanes are the same 16 rows, columns k..k+3 and k+4..k+7; by = 4: rows 0..15 and 16..31 */
                store_line_avx2(panel + bc_panel_at(half * 16, k - k0, n), lines[0]);
                store_line_avx2(panel + (by == 8 ? bc_panel_at(half * 16, k - k0 + 4, n) : bc_panel_at(16, k - k0, n)), lines[1]);
            }
    }
}
