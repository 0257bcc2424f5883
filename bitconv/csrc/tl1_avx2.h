/* TL1 on AVX2: a nibble looks up the sum of a pair of activations under its two weights.
 *
 * Sums reach 254, so a table is two byte planes, value = 17*high + low with |low| <= 8 and |high| <= 15. Bytes are added
 * for 8 pairs (8 * 15 = 120 fits), then one vpmaddubsw by (1, 17) rebuilds exact int16 sums: 8 * 254 = 2032 a round, and
 * a tile of at most 256 columns has 16 rounds in one lane. A step of 64 bytes is
 *   bm = 32: rows 0..15 of columns 0..3 | rows 0..15 of columns 4..7 | rows 16..31 likewise: lanes take tables of their own
 *   bm = 64: rows 0..15 | 16..31 | 32..47 | 48..63 of columns 0..3:                          lanes share a table
 */

static void tl1_prepare_avx2(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table)
{
    for (int64_t k = k0; k < k1; k += 2) {
        const int64_t pair = k / 2;
        /* bm = 32: 128 bytes for 8 columns, as [pairs 0 and 2 low][high][pairs 1 and 3 low][high] */
        uint8_t *low = w->micro_rows == 32 ? table + pair / 4 * 128 + pair % 2 * 64 + pair / 2 % 2 * 16 : table + pair * 32;
        store_planes_avx2(low, w->micro_rows == 32 ? low + 32 : low + 16, pair_sums_avx2(q + k), 17, 1928);
    }
}

/* the two pairs of 32 bytes, added to the byte sums */
BC_INLINE void tl1_step_avx2(const uint8_t *data, __m256i low0, __m256i high0, __m256i low1, __m256i high1, __m256i *low,
                             __m256i *high)
{
    const __m256i mask = _mm256_set1_epi8(15), v = _mm256_loadu_si256((const __m256i *)data);
    const __m256i first = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask), second = _mm256_and_si256(v, mask);
    *low = _mm256_add_epi8(*low, _mm256_shuffle_epi8(low0, first));
    *high = _mm256_add_epi8(*high, _mm256_shuffle_epi8(high0, first));
    *low = _mm256_add_epi8(*low, _mm256_shuffle_epi8(low1, second));
    *high = _mm256_add_epi8(*high, _mm256_shuffle_epi8(high1, second));
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

/* one row block of one tile, 32 or 64 rows x BK columns and contiguous, added to its sums */
BC_INLINE void tl1_block_avx2(const uint8_t *data, const uint8_t *table, int64_t bk, int bm, int16_t *sums)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i *kept = (__m256i *)sums, sum[2][2] = {{kept[0], kept[1]}, {kept[2], kept[3]}};
    const int64_t steps = bk / (256 / bm);
    for (int64_t s = 0; s < steps;) {
        __m256i low[2] = {zero, zero}, high[2] = {zero, zero};
        const int64_t end = bc_min(s + 4, steps);
        for (; s < end; s++, data += 64) {
            const uint8_t *t = table + s * (bm == 32 ? 128 : 64);
            _mm_prefetch((const char *)data + 1024, _MM_HINT_T0);
            __m256i low0, high0, low1, high1;
            if (bm == 32) {
                const __m256i *planes = (const __m256i *)t;
                low0 = _mm256_loadu_si256(planes), high0 = _mm256_loadu_si256(planes + 1);
                low1 = _mm256_loadu_si256(planes + 2), high1 = _mm256_loadu_si256(planes + 3);
            } else {
                low0 = twice_avx2(t), high0 = twice_avx2(t + 16), low1 = twice_avx2(t + 32), high1 = twice_avx2(t + 48);
            }
            tl1_step_avx2(data, low0, high0, low1, high1, &low[0], &high[0]);
            tl1_step_avx2(data + 32, low0, high0, low1, high1, &low[1], &high[1]);
        }
        tl1_fold_avx2(low[0], high[0], sum[0]);
        tl1_fold_avx2(low[1], high[1], sum[1]);
    }
    kept[0] = sum[0][0], kept[1] = sum[0][1], kept[2] = sum[1][0], kept[3] = sum[1][1];
}

/* add the int16 sums of a row block to its int32 ones, and begin anew */
BC_INLINE void tl1_widen_avx2(int16_t *sums, int bm, int32_t *out)
{
    for (int i = 0; i < 4; i++) { /* rows 8 * (i % 2).. of 16 rows, which are both lanes' or one lane's */
        const __m128i *lanes = (const __m128i *)sums + 2 * i;
        if (bm == 32) {
            tl_add_rows_avx2(out + i * 8, _mm_add_epi16(lanes[0], lanes[1]));
        } else {
            tl_add_rows_avx2(out + i / 2 * 32 + i % 2 * 8, lanes[0]);
            tl_add_rows_avx2(out + i / 2 * 32 + 16 + i % 2 * 8, lanes[1]);
        }
    }
    memset(sums, 0, 64 * sizeof *sums);
}

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
    for (int64_t k = k0; k < k1; k += by) {
        const uint8_t *data = w->data + tl1_at(w, row0, k);
        for (int half = 0; half < 2; half++) {
            __m256i lines[2][2];
            if (by == 8) { /* lanes: the same 16 rows, columns k..k+3 and k+4..k+7 */
                tl_pair_lines_avx2(_mm256_loadu_si256((const __m256i *)data + half), lines);
                store_line_avx2(panel + bc_panel_at(half * 16, k - k0, n), lines[0]);
                store_line_avx2(panel + bc_panel_at(half * 16, k - k0 + 4, n), lines[1]);
            } else if (half == 0) { /* lanes: rows 0..15 and 16..31 */
                tl_pair_lines_avx2(_mm256_loadu_si256((const __m256i *)data), lines);
                store_line_avx2(panel + bc_panel_at(0, k - k0, n), lines[0]);
                store_line_avx2(panel + bc_panel_at(16, k - k0, n), lines[1]);
            }
        }
    }
}
