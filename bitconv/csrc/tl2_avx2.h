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

/* Triples are taken in the order of their sign bits, which is 0, 4, 1, 5, 2, 6, 3, 7: then each sign is the one before, doubled. */
BC_INLINE int tl2_in_turn_avx2(int i) { return i / 2 + i % 2 * 4; }

/* The i-th sign in this order, after `before`, as a byte that vpsignb understands: negative, or positive and not zero. A bit set
 * below makes them all so; where it was the last sign's own place, that one is fetched again. Doubling is an addition, because
 * shifts share the two units of look-ups. */
BC_INLINE __m256i tl2_sign_avx2(__m256i signs, __m256i before, int i)
{
    const __m256i one = _mm256_set1_epi8(1);
    return i == 0 ? _mm256_or_si256(signs, one) : i == 7 ? _mm256_or_si256(_mm256_slli_epi16(signs, 7), one) : _mm256_add_epi8(before, before);
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

/* The sums of a triple in each lane under the patterns 0..7 (half = 0) or 8..15. two: its first two activations, side by side,
 * one: its third, both raised by 128. */
BC_INLINE __m256i tl2_half_sums_avx2(__m256i two, __m256i one, int half)
{
    __m256i w[3];
    tl2_patterns_avx2(w);
    for (int i = 0; i < 3; i++)
        w[i] = half ? _mm256_permute4x64_epi64(w[i], 0xee) : _mm256_permute4x64_epi64(w[i], 0x44);
    const __m256i pair = _mm256_maddubs_epi16(two, pair_weights_avx2(w[0], w[1]));
    const __m256i third = _mm256_maddubs_epi16(one, pair_weights_avx2(w[2], _mm256_setzero_si256()));
    return _mm256_sub_epi16(_mm256_add_epi16(pair, third), tl2_raise_avx2(w));
}

/* Look-up tables of two triples side by side, [low | low][high | high], 16 bytes each; x: raised activations, the same in both
 * lanes, first: where the first triple begins */
BC_INLINE void tl2_two_tables_avx2(__m256i x, int first, uint8_t *table)
{
    const __m256i pairs = _mm256_set_m128i(_mm_set1_epi16(0x0403), _mm_set1_epi16(0x0100));
    const __m256i thirds = _mm256_set_m128i(_mm_set1_epi8(5), _mm_set1_epi8(2)), from = _mm256_set1_epi8((char)first);
    const __m256i two = _mm256_shuffle_epi8(x, _mm256_add_epi8(pairs, from)), one = _mm256_shuffle_epi8(x, _mm256_add_epi8(thirds, from));
    __m256i low[2], high[2];
    for (int half = 0; half < 2; half++)
        split_planes_avx2(tl2_half_sums_avx2(two, one, half), 25, 1311, low + half, high + half);
    _mm256_storeu_si256((__m256i *)table, _mm256_packs_epi16(low[0], low[1]));
    _mm256_storeu_si256((__m256i *)table + 1, _mm256_packs_epi16(high[0], high[1]));
}

/* 8 triples, 24 columns */
BC_INLINE void tl2_triple_tables_avx2(const int8_t *q, uint8_t *table)
{
    const __m256i raise = _mm256_set1_epi8(-128);
    const __m256i early = _mm256_xor_si256(twice_avx2(q), raise), late = _mm256_xor_si256(twice_avx2(q + 8), raise);
    tl2_two_tables_avx2(early, 0, table);
    tl2_two_tables_avx2(early, 6, table + 64);
    tl2_two_tables_avx2(late, 4, table + 128);
    tl2_two_tables_avx2(late, 10, table + 192);
}

/* the tables of those of the columns k0..k1 that are pairs */
BC_INLINE void tl2_prepare_pairs_avx2(const int8_t *q, int64_t three_k, int64_t k0, int64_t k1, uint8_t *table)
{
    for (int64_t k = k0 > three_k ? k0 : three_k; k < k1; k += 8)
        pair_tables_avx2(q + k, 0, 25, 1311, table + (k - three_k) * 16);
}

static void tl2_prepare_avx2(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table)
{
    const int64_t three_k = tl2_three_k(w);
    for (int64_t k = k0; k < bc_min(k1, three_k); k += 24)
        tl2_triple_tables_avx2(q + k, table + k / 3 * tl2_triple_bytes_avx2);
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

/* the patterns of triple q: upper nibbles of even, lower ones of odd triples */
BC_INLINE __m256i tl2_index_avx2(const uint8_t *nibbles, int q)
{
    const __m256i v = _mm256_loadu_si256((const __m256i *)(nibbles + q / 2 * 32));
    return _mm256_and_si256(q % 2 ? v : _mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}

/* t: the low plane of a triple; that of its neighbour comes next, then the high ones */
BC_INLINE void tl2_triple_avx2(__m256i index, __m256i sign, const uint8_t *t, __m256i *low, __m256i *high)
{
    *low = _mm256_add_epi8(*low, _mm256_sign_epi8(_mm256_shuffle_epi8(twice_avx2(t), index), sign));
    *high = _mm256_add_epi8(*high, _mm256_sign_epi8(_mm256_shuffle_epi8(twice_avx2(t + 32), index), sign));
    __asm__("" : "+x"(*low), "+x"(*high)); /* as in TL1 */
}

/* 32 rows x BK columns of triples */
BC_INLINE void tl2_block_avx2(const uint8_t *nibbles, const uint8_t *words, const uint8_t *table, int64_t bk, int32_t *out)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i sum[2] = {zero, zero};
    for (int64_t round = 0; round < bk / 24; round++, nibbles += 128, words += 32, table += 256) {
        const __m256i signs = tl2_signs_avx2(words);
        __m256i low = zero, high = zero, sign = zero;
        tl2_fetch_avx2(nibbles, words, 2048);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const int q = tl2_in_turn_avx2(i);
            sign = tl2_sign_avx2(signs, sign, i);
            tl2_triple_avx2(tl2_index_avx2(nibbles, q), sign, table + q / 2 * 64 + q % 2 * 16, &low, &high);
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
            tl_look_up_avx2(_mm256_and_si256(_mm256_srli_epi16(v, 4), mask), twice_avx2(table), twice_avx2(table + 32), &low, &high);
            tl_look_up_avx2(_mm256_and_si256(v, mask), twice_avx2(table + 16), twice_avx2(table + 48), &low, &high);
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
    const int64_t three_k = tl2_three_k(w), n = k1 - k0;
    for (int64_t tile = k0; tile < bc_min(k1, three_k); tile += w->tile_cols) {
        const uint8_t *nibbles = w->data + tl2_nibbles_at(w, row0, tile), *words = w->data + tl2_signs_at(w, row0, tile);
        for (int64_t k = tile; k < tile + w->tile_cols; k += 24, nibbles += 128, words += 32) {
            const __m256i signs = tl2_signs_avx2(words);
            __m256i index[8], sign[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const int q = tl2_in_turn_avx2(i);
                index[q] = tl2_index_avx2(nibbles, q);
                sign[q] = tl2_sign_avx2(signs, i ? sign[tl2_in_turn_avx2(i - 1)] : signs, i);
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
