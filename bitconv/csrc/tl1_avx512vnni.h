/* TL1 on AVX-512: the steps of tl1_avx2.h on whole 64-byte steps; tables and sums are the same.
 *
 * The four lanes of a step are rows 0..15 and 16..31 with two tables (bm = 32), or four times 16 rows with one (bm = 64).
 */

/* low and high planes of the first and the second pair of each byte */
BC_INLINE void tl1_tables_avx512vnni(const uint8_t *t, int bm, __m512i table[4])
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        table[i] = bm == 32 ? _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)t + i))
                            : _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)t + i));
}

/* one row block of one tile, added to its sums */
BC_INLINE void tl1_block_avx512vnni(const uint8_t *data, const uint8_t *table, int64_t bk, int bm, int16_t *sums)
{
    const __m512i mask = _mm512_set1_epi8(15), weights = _mm512_set1_epi16(17 << 8 | 1);
    __m256i *kept = (__m256i *)sums; /* in the order of AVX2: bytes 0..7 of lanes 0 and 1, bytes 8..15 of them, of lanes 2 and 3 */
    __m512i first = _mm512_inserti64x4(_mm512_castsi256_si512(kept[0]), kept[2], 1);
    __m512i second = _mm512_inserti64x4(_mm512_castsi256_si512(kept[1]), kept[3], 1);
    const int64_t steps = bk / (256 / bm);
    for (int64_t s = 0; s < steps;) {
        __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
        const int64_t end = bc_min(s + 4, steps);
        for (; s < end; s++, data += 64) {
            __m512i t[4];
            tl1_tables_avx512vnni(table + s * (bm == 32 ? 128 : 64), bm, t);
            _mm_prefetch((const char *)data + 1024, _MM_HINT_T0);
            const __m512i v = _mm512_loadu_si512(data), a = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask), b = _mm512_and_si512(v, mask);
            low = _mm512_add_epi8(low, _mm512_add_epi8(_mm512_shuffle_epi8(t[0], a), _mm512_shuffle_epi8(t[2], b)));
            high = _mm512_add_epi8(high, _mm512_add_epi8(_mm512_shuffle_epi8(t[1], a), _mm512_shuffle_epi8(t[3], b)));
        }
        first = _mm512_add_epi16(first, _mm512_maddubs_epi16(weights, _mm512_unpacklo_epi8(low, high)));
        second = _mm512_add_epi16(second, _mm512_maddubs_epi16(weights, _mm512_unpackhi_epi8(low, high)));
    }
    kept[0] = _mm512_castsi512_si256(first), kept[1] = _mm512_castsi512_si256(second);
    kept[2] = _mm512_extracti64x4_epi64(first, 1), kept[3] = _mm512_extracti64x4_epi64(second, 1);
}

#include "tl1_rows.h"
