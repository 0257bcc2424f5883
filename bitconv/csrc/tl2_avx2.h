/* TL2 on AVX2: a nibble looks up the sum of three activations under the positive pattern |t|, a sign bit negates it.
 *
 * Sums reach 381 = 25*15 + 6: two byte planes, value = 25*high + low with |low| <= 12 and |high| <= 15, negated by
 * vpsignb. Bytes are added for the 8 triples that share a word of signs (8 * 15 = 120 fits), then one vpmaddubsw by
 * (1, 25) rebuilds exact int16 sums: 8 * 381 = 3048 a round and at most 10 rounds in a tile of 240 columns.
 * Bytes stand in the order rows 0..7, 16..23 | 8..15, 24..31, which unpacking to int16 turns into row order.
 */

/* The bytes of a row of tiles are one run; several far-apart places at a time lost. They are fetched into L2, of the signs a
 * quarter, from 2048 bytes afar. */
enum { tl2_triple_bytes_avx2 = 32 };

BC_INLINE void tl2_fetch_avx2(const uint8_t *nibbles, const uint8_t *words, int64_t ahead)
{
    bc_prefetch_far(nibbles + ahead, 128);
    bc_prefetch_far(words + ahead / 4, 32);
}

/* 8 triples of 32 rows: the sign bits of a row in one byte, triple q at bit 7, 5, 3, 1, 6, 4, 2, 0. Words hold them with bits apart:
 * rows 0..15 have the odd ones, rows 16..31 the even ones; the upper byte, times two, goes between the bits of the lower one. */
BC_INLINE __m256i tl2_signs_avx2(const uint8_t *words)
{
    const __m256i v = _mm256_loadu_si256((const __m256i *)words), every = _mm256_set1_epi16(0x5555), join = _mm256_set1_epi16(2 << 8 | 1);
    const __m256i first = _mm256_and_si256(_mm256_srli_epi16(v, 1), every), second = _mm256_and_si256(v, every);
    return _mm256_packus_epi16(_mm256_maddubs_epi16(first, join), _mm256_maddubs_epi16(second, join));
}

/* The sign of triple q as a byte that vpsignb understands: negative, or positive and not zero. A bit set below the last sign makes
 * them all so, but of that sign itself. */
BC_INLINE __m256i tl2_sign_avx2(__m256i signs, int q)
{
    const __m256i one = _mm256_set1_epi8(1);
    return q == 7 ? _mm256_or_si256(_mm256_slli_epi16(signs, 7), one) : _mm256_slli_epi16(_mm256_or_si256(signs, one), q < 4 ? 2 * q : 2 * q - 7);
}

/* the weights of the 14 patterns |t| */
BC_INLINE void tl2_patterns_avx2(__m256i w[3])
{
    w[0] = _mm256_setr_epi16(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0);
    w[1] = _mm256_setr_epi16(0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0);
    w[2] = _mm256_setr_epi16(0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0);
}

/* 128 times the sum of the weights, which raised activations add */
BC_INLINE __m256i tl2_raise_avx2(const __m256i w[3])
{
    return _mm256_slli_epi16(_mm256_add_epi16(_mm256_add_epi16(w[0], w[1]), w[2]), 7);
}

/* the sums of three weights under the 14 patterns |t| */
BC_INLINE __m256i tl2_triple_sums_avx2(const int8_t *q)
{
    __m256i w[3];
    tl2_patterns_avx2(w);
    const __m256i pair = weighted_pair_avx2(q, pair_weights_avx2(w[0], w[1]));
    const __m256i third = _mm256_maddubs_epi16(_mm256_set1_epi16((uint8_t)q[2] ^ 0x80), pair_weights_avx2(w[2], _mm256_setzero_si256()));
    return _mm256_sub_epi16(_mm256_add_epi16(pair, third), tl2_raise_avx2(w));
}

/* the tables of those of the columns k0..k1 that are pairs */
BC_INLINE void tl2_prepare_pairs_avx2(const int8_t *q, int64_t three_k, int64_t k0, int64_t k1, uint8_t *table)
{
    for (int64_t k = k0 > three_k ? k0 : three_k; k < k1; k += 2) {
        uint8_t *t = table + (k - three_k) / 2 * 32;
        store_planes_avx2(t, t + 16, pair_sums_avx2(q + k), 25, 1311);
    }
}

static void tl2_prepare_avx2(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table)
{
    const int64_t three_k = tl2_three_k(w);
    for (int64_t k = k0; k < bc_min(k1, three_k); k += 3)
        store_planes_avx2(table + k / 3 * tl2_triple_bytes_avx2, table + k / 3 * tl2_triple_bytes_avx2 + 16, tl2_triple_sums_avx2(q + k), 25, 1311);
    tl2_prepare_pairs_avx2(q, three_k, k0, k1, table + three_k / 3 * tl2_triple_bytes_avx2);
}

BC_INLINE void tl2_fold_avx2(__m256i low, __m256i high, __m256i sum[2])
{
    const __m256i weights = _mm256_set1_epi16(25 << 8 | 1);
    sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(weights, _mm256_unpacklo_epi8(low, high)));
    sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(weights, _mm256_unpackhi_epi8(low, high)));
}

BC_INLINE void tl2_add_rows_avx2(int32_t *out, const __m256i sum[2])
{
    for (int half = 0; half < 2; half++) {
        tl_add_rows_avx2(out + half * 16, _mm256_castsi256_si128(sum[half]));
        tl_add_rows_avx2(out + half * 16 + 8, _mm256_extracti128_si256(sum[half], 1));
    }
}

BC_INLINE void tl2_triple_avx2(__m256i index, __m256i sign, const uint8_t *t, __m256i *low, __m256i *high)
{
    *low = _mm256_add_epi8(*low, _mm256_sign_epi8(_mm256_shuffle_epi8(twice_avx2(t), index), sign));
    *high = _mm256_add_epi8(*high, _mm256_sign_epi8(_mm256_shuffle_epi8(twice_avx2(t + 16), index), sign));
    __asm__("" : "+x"(*low), "+x"(*high)); /* as in TL1 */
}

/* 32 rows x BK columns of triples */
BC_INLINE void tl2_block_avx2(const uint8_t *nibbles, const uint8_t *words, const uint8_t *table, int64_t bk, int32_t *out)
{
    const __m256i mask = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    __m256i sum[2] = {zero, zero};
    for (int64_t round = 0; round < bk / 24; round++, nibbles += 128, words += 32, table += 256) {
        const __m256i signs = tl2_signs_avx2(words);
        __m256i low = zero, high = zero;
        tl2_fetch_avx2(nibbles, words, 2048);
#pragma GCC unroll 4
        for (int q = 0; q < 8; q += 2) {
            const __m256i v = _mm256_loadu_si256((const __m256i *)(nibbles + q * 16));
            tl2_triple_avx2(_mm256_and_si256(_mm256_srli_epi16(v, 4), mask), tl2_sign_avx2(signs, q), table + q * 32, &low, &high);
            tl2_triple_avx2(_mm256_and_si256(v, mask), tl2_sign_avx2(signs, q + 1), table + q * 32 + 32, &low, &high);
        }
        tl2_fold_avx2(low, high, sum);
    }
    tl2_add_rows_avx2(out, sum);
}

/* 32 rows x 32 columns of pairs */
BC_INLINE void tl2_pair_block_avx2(const uint8_t *data, const uint8_t *table, int32_t *out)
{
    const __m256i zero = _mm256_setzero_si256(), mask = _mm256_set1_epi8(15);
    __m256i sum[2] = {zero, zero};
    for (int step = 0; step < 8;) {
        __m256i low = zero, high = zero;
        for (int end = step + 4; step < end; step++, data += 32, table += 64) {
            const __m256i v = _mm256_loadu_si256((const __m256i *)data);
            tl_look_up_avx2(_mm256_and_si256(_mm256_srli_epi16(v, 4), mask), twice_avx2(table), twice_avx2(table + 16), &low, &high);
            tl_look_up_avx2(_mm256_and_si256(v, mask), twice_avx2(table + 32), twice_avx2(table + 48), &low, &high);
        }
        tl2_fold_avx2(low, high, sum);
    }
    tl2_add_rows_avx2(out, sum);
}

/* the pairs of a row of tiles */
BC_INLINE void tl2_pairs_avx2(const bc_matrix *w, int64_t row, const uint8_t *table, int32_t *out)
{
    const int64_t two_k = w->cols - tl2_three_k(w);
    const uint8_t *pairs = w->data + tl2_pairs_at(w, row, 0);
    for (int64_t k = 0; k < two_k; k += 32)
        for (int64_t r = 0; r < w->tile_rows; r += 32, pairs += 256)
            tl2_pair_block_avx2(pairs, table + k * 16, out + r);
}

#include "tl2_rows.h"

/* 4 triples of 32 rows -> three panel lines of 4 columns */
BC_INLINE void tl2_lines_avx2(const __m256i *index, const __m256i *sign, uint8_t *panel, int64_t k, int64_t n)
{
    /* trits of the patterns |t| = 0..13 */
    const __m256i digit[3] = {
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0)),
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0)),
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0)),
    };
    __m256i codes[12];
    for (int i = 0; i < 12; i++) {
        const __m256i trit = _mm256_sign_epi8(_mm256_shuffle_epi8(digit[i % 3], index[i / 3]), sign[i / 3]);
        codes[i] = _mm256_add_epi8(trit, _mm256_set1_epi8(1));
    }
    for (int i = 0; i < 3; i++) {
        __m256i x[2][2]; /* bytes 0..7 of the lanes are rows 0..7 and 8..15, bytes 8..15 rows 16..23 and 24..31 */
        interleave4_avx2(codes[4 * i], codes[4 * i + 1], codes[4 * i + 2], codes[4 * i + 3], x);
        const __m256i top[2] = {x[0][0], x[1][0]}, bottom[2] = {x[0][1], x[1][1]};
        store_line_avx2(panel + bc_panel_at(0, k + 4 * i, n), top);
        store_line_avx2(panel + bc_panel_at(16, k + 4 * i, n), bottom);
    }
}

static void tl2_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    const __m256i mask = _mm256_set1_epi8(15);
    const int64_t three_k = tl2_three_k(w), n = k1 - k0;
    for (int64_t tile = k0; tile < bc_min(k1, three_k); tile += w->tile_cols) {
        const uint8_t *nibbles = w->data + tl2_nibbles_at(w, row0, tile), *words = w->data + tl2_signs_at(w, row0, tile);
        for (int64_t k = tile; k < tile + w->tile_cols; k += 24, nibbles += 128, words += 32) {
            const __m256i signs = tl2_signs_avx2(words);
            __m256i index[8], sign[8];
#pragma GCC unroll 8
            for (int q = 0; q < 8; q++) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(nibbles + q / 2 * 32));
                index[q] = _mm256_and_si256(q % 2 ? v : _mm256_srli_epi16(v, 4), mask);
                sign[q] = tl2_sign_avx2(signs, q);
            }
            tl2_lines_avx2(index, sign, panel, k - k0, n);
            tl2_lines_avx2(index + 4, sign + 4, panel, k - k0 + 12, n);
        }
    }
    for (int64_t k = k0 < three_k ? k1 : k0; k < k1; k += 4) {
        __m256i x[2][2];
        tl_pair_lines_avx2(_mm256_loadu_si256((const __m256i *)(w->data + tl2_pairs_at(w, row0, k - three_k))), x);
        const __m256i top[2] = {x[0][0], x[1][0]}, bottom[2] = {x[0][1], x[1][1]};
        store_line_avx2(panel + bc_panel_at(0, k - k0, n), top);
        store_line_avx2(panel + bc_panel_at(16, k - k0, n), bottom);
    }
}
