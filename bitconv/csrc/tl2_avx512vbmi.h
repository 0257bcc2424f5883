/* TL2 on AVX-512 VBMI: the nibble and the sign bit of a triple are one index into 32 sums, so nothing is negated.
 *
 * A register holds 64 bytes of nibbles: 32 rows of two columns of bytes. Of four triples, the upper nibbles are triples 0
 * and 2, the lower ones triples 1 and 3. The sums are the byte planes of tl2_avx2.h, and tables of four triples are
 *   [0 low | 2 low] [0 high | 2 high] [1 low | 3 low] [1 high | 3 high]        each half: 16 sums, 16 negated sums
 * so that an index is nibble + 16 * sign + 32 * half, and every register of tables is loaded as it stands: loads that
 * broadcast half a register take a slot of the shuffle unit, which is what limits this kernel.
 */

enum { tl2_triple_bytes_avx512vbmi = 64 };

/* tables of four triples, 12 columns */
BC_INLINE void tl2_tables_avx512vbmi(const int8_t *q, uint8_t *table)
{
    __m256i w[3];
    tl2_patterns_avx2(w);
    const __m512i first_two = _mm512_broadcast_i64x4(pair_weights_avx2(w[0], w[1])), raise = _mm512_broadcast_i64x4(tl2_raise_avx2(w));
    const __m512i third = _mm512_broadcast_i64x4(pair_weights_avx2(w[2], _mm256_setzero_si256()));
    const __m512i pairs = _mm512_inserti64x4(_mm512_set1_epi16(0x0100), _mm256_set1_epi16(0x0706), 1);
    const __m512i thirds = _mm512_inserti64x4(_mm512_set1_epi16(0x0202), _mm256_set1_epi16(0x0808), 1);
    /* 16 sums of the first triple as bytes low 0..7, high 0..7, low 8..15, high 8..15, then of the second */
    const __m512i lows = _mm512_setr_epi64(0, 2, 8, 10, 4, 6, 12, 14), highs = _mm512_setr_epi64(1, 3, 9, 11, 5, 7, 13, 15);
    const __m128i raised = _mm_xor_si128(_mm_maskz_loadu_epi8(0xfff, q), _mm_set1_epi8(-128)); /* unsigned: q + 128 */
    const __m512i x = _mm512_castsi128_si512(raised);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++, table += 128) {
        const __m512i skip = _mm512_set1_epi8((char)(3 * i));
        const __m512i two = _mm512_permutexvar_epi8(_mm512_add_epi8(pairs, skip), x), one = _mm512_permutexvar_epi8(_mm512_add_epi8(thirds, skip), x);
        const __m512i sum = _mm512_add_epi16(_mm512_maddubs_epi16(two, first_two), _mm512_maddubs_epi16(one, third));
        const __m512i v = _mm512_sub_epi16(sum, raise);
        const __m512i high = _mm512_mulhrs_epi16(v, _mm512_set1_epi16(1311));
        const __m512i low = _mm512_sub_epi16(v, _mm512_mullo_epi16(high, _mm512_set1_epi16(25)));
        const __m512i positive = _mm512_packs_epi16(low, high), negative = _mm512_sub_epi8(_mm512_setzero_si512(), positive);
        _mm512_storeu_si512(table, _mm512_permutex2var_epi64(positive, lows, negative));
        _mm512_storeu_si512(table + 64, _mm512_permutex2var_epi64(positive, highs, negative));
    }
}

static void tl2_prepare_avx512vbmi(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table)
{
    const int64_t three_k = tl2_three_k(w);
    for (int64_t k = k0; k < bc_min(k1, three_k); k += 12)
        tl2_tables_avx512vbmi(q + k, table + k / 3 * tl2_triple_bytes_avx512vbmi);
    tl2_prepare_pairs_avx2(q, three_k, k0, k1, table + three_k / 3 * tl2_triple_bytes_avx512vbmi);
}

/* constants of a block, which stay in registers */
typedef struct {
    __m512i early, late; /* where the bytes of the words are that hold the signs of the first and of the last four triples */
    __m512i own;         /* their bits that are signs of the row: 7, 5, 3, 1 of rows 0..15 and 6, 4, 2, 0 of rows 16..31 */
    __m512i half;        /* the half, which the other bits become, so that each sign has it as its upper neighbour */
    __m512i bit[2];      /* where eight bits begin whose fifth is the sign, for the upper and the lower nibbles */
} tl2_constants;

BC_INLINE tl2_constants tl2_constants_avx512vbmi(void)
{
    /* the order of rows is 0..7, 16..23, 8..15, 24..31 */
    const __m512i late = _mm512_setr_epi64(0x0e0c0a0806040200, 0x0e0c0a0806040200, 0x1e1c1a1816141210, 0x1e1c1a1816141210,
                                           0x0e0c0a0806040200, 0x0e0c0a0806040200, 0x1e1c1a1816141210, 0x1e1c1a1816141210);
    const int64_t odd = (int64_t)0xaaaaaaaaaaaaaaaa, even = 0x5555555555555555, ones = 0x0101010101010101;
    const __m512i first = _mm512_sub_epi8(_mm512_set1_epi64(0x3b332b231b130b03),
                                          _mm512_setr_epi64(0, ones, 0, ones, 4 * ones, 5 * ones, 4 * ones, 5 * ones));
    return (tl2_constants){
        .early = _mm512_or_si512(late, _mm512_set1_epi8(1)),
        .late = late,
        .own = _mm512_setr_epi64(odd, even, odd, even, odd, even, odd, even),
        .half = _mm512_setr_epi64(0, 0, 0, 0, -1, -1, -1, -1),
        .bit = {first, _mm512_sub_epi8(first, _mm512_set1_epi8(2))},
    };
}

/* 24 columns of 32 rows, added to the byte sums */
BC_INLINE void tl2_round_avx512vbmi(const uint8_t *nibbles, const uint8_t *words, const uint8_t *table, const tl2_constants *c,
                                    __m512i *low, __m512i *high)
{
    const __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)words)), mask = _mm512_set1_epi8(15);
    for (int pages = 1; pages <= 2; pages++) /* with one of the two, or from nearer, many came too late on a Zen 4 */
        tl2_fetch_avx2(nibbles, words, pages * 4096);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, table += 128) {
        __m512i v = _mm512_loadu_si512(nibbles + i / 2 * 64);
        __asm__("" : "+v"(v)); /* one load: gcc would put a second one into the shift */
        const __m512i signs = _mm512_ternarylogic_epi64(c->own, _mm512_permutexvar_epi8(i / 2 ? c->late : c->early, both), c->half, 0xca);
        const __m512i sign = _mm512_multishift_epi64_epi8(c->bit[i % 2], signs);
        const __m512i index = _mm512_ternarylogic_epi64(mask, i % 2 ? v : _mm512_srli_epi16(v, 4), sign, 0xca);
        *low = _mm512_add_epi8(*low, _mm512_permutexvar_epi8(index, _mm512_loadu_si512(table)));
        *high = _mm512_add_epi8(*high, _mm512_permutexvar_epi8(index, _mm512_loadu_si512(table + 64)));
    }
}

/* n rounds of 24 columns, at most two: byte sums reach 8 * 15 */
BC_INLINE void tl2_rounds_avx512vbmi(const uint8_t *nibbles, const uint8_t *words, const uint8_t *table, int n, const tl2_constants *c,
                                     __m512i sum[2])
{
    const __m512i weights = _mm512_set1_epi16(25 << 8 | 1);
    __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int i = 0; i < n; i++)
        tl2_round_avx512vbmi(nibbles + i * 128, words + i * 32, table + i * 8 * tl2_triple_bytes_avx512vbmi, c, &low, &high);
    sum[0] = _mm512_add_epi16(sum[0], _mm512_maddubs_epi16(weights, _mm512_unpacklo_epi8(low, high)));
    sum[1] = _mm512_add_epi16(sum[1], _mm512_maddubs_epi16(weights, _mm512_unpackhi_epi8(low, high)));
}

/* 32 rows x BK columns of triples */
BC_INLINE void tl2_block_avx512vbmi(const uint8_t *nibbles, const uint8_t *words, const uint8_t *table, int64_t bk, int32_t *out)
{
    const tl2_constants c = tl2_constants_avx512vbmi();
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    int64_t left = bk / 24;
    for (; left >= 2; left -= 2, nibbles += 256, words += 64, table += 16 * tl2_triple_bytes_avx512vbmi)
        tl2_rounds_avx512vbmi(nibbles, words, table, 2, &c, sum);
    if (left)
        tl2_rounds_avx512vbmi(nibbles, words, table, 1, &c, sum);
    for (int i = 0; i < 2; i++) { /* both halves are the same rows */
        const __m256i rows = _mm256_add_epi16(_mm512_castsi512_si256(sum[i]), _mm512_extracti64x4_epi64(sum[i], 1));
        int32_t *to = out + 16 * i;
        _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), _mm512_cvtepi16_epi32(rows)));
    }
}

#include "tl2_rows.h"

/* the codes of 13 +- |t|, two bits each */
#define TL2_CODES(t) (uint8_t)((t) / 9 % 3 | (t) / 3 % 3 << 2 | (t) % 3 << 4)
static const uint8_t tl2_codes[32] = {
    TL2_CODES(13), TL2_CODES(14), TL2_CODES(15), TL2_CODES(16), TL2_CODES(17), TL2_CODES(18), TL2_CODES(19), TL2_CODES(20),
    TL2_CODES(21), TL2_CODES(22), TL2_CODES(23), TL2_CODES(24), TL2_CODES(25), TL2_CODES(26), 0,             0,
    TL2_CODES(13), TL2_CODES(12), TL2_CODES(11), TL2_CODES(10), TL2_CODES(9),  TL2_CODES(8),  TL2_CODES(7),  TL2_CODES(6),
    TL2_CODES(5),  TL2_CODES(4),  TL2_CODES(3),  TL2_CODES(2),  TL2_CODES(1),  TL2_CODES(0),  0,             0,
};

/* Panel lines of 24 columns of 32 rows. Each row gets a dword of four triples: first nibble + 16 * sign, then six bits of codes,
 * from which the bytes of three lines are cut. */
BC_INLINE void tl2_lines_avx512vbmi(const uint8_t *nibbles, const uint8_t *words, uint8_t *panel, int64_t k, int64_t n)
{
    const __m512i codes = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)tl2_codes));
    const __m512i signs = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)words));
    const __m512i nibble = _mm512_set1_epi64(0x3834282418140804), second = _mm512_set1_epi32(0x20200000);
    /* where eight bits begin whose fifth is the sign of triples 0..3 of rows 0..15: 15 - 2 * triple - 4 */
    const __m512i bit = _mm512_set1_epi64(0x2527292b0507090b);
    const __m512i cut[3] = {_mm512_set1_epi64(0x2824222008040200), _mm512_set1_epi64(0x32302c2a12100c0a), _mm512_set1_epi64(0x3c3a38341c1a1814)};
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const __m512i spread = _mm512_add_epi8(half ? tl_spread_avx512vbmi(8, 24) : tl_spread_avx512vbmi(0, 16), second);
#pragma GCC unroll 2
        for (int part = 0; part < 2; part++) { /* of 12 columns */
            const __m512i rows = _mm512_permutexvar_epi8(spread, _mm512_loadu_si512(nibbles + 64 * part));
            const __m512i magnitude = _mm512_multishift_epi64_epi8(nibble, rows);
            const __m512i sign = _mm512_multishift_epi64_epi8(_mm512_sub_epi8(bit, _mm512_set1_epi8((char)(8 * part + half))), signs);
            const __m512i index = _mm512_ternarylogic_epi64(_mm512_set1_epi8(15), magnitude, sign, 0xca);
            const __m512i triples = _mm512_permutexvar_epi8(index, codes);
#pragma GCC unroll 3
            for (int i = 0; i < 3; i++)
                _mm512_storeu_si512(panel + bc_panel_at(16 * half, k + 12 * part + 4 * i, n),
                                    _mm512_and_si512(_mm512_multishift_epi64_epi8(cut[i], triples), _mm512_set1_epi8(3)));
        }
    }
}

static void tl2_panel_avx512vbmi(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    const int64_t three_k = tl2_three_k(w), n = k1 - k0;
    for (int64_t tile = k0; tile < bc_min(k1, three_k); tile += w->tile_cols) {
        const uint8_t *nibbles = w->data + tl2_nibbles_at(w, row0, tile), *words = w->data + tl2_signs_at(w, row0, tile);
        for (int64_t k = 0; k < w->tile_cols; k += 24, nibbles += 128, words += 32)
            tl2_lines_avx512vbmi(nibbles, words, panel, tile - k0 + k, n);
    }
    for (int64_t k = k0 < three_k ? k1 : k0; k < k1; k += 4) {
        const uint8_t *pairs = w->data + tl2_pairs_at(w, row0, k - three_k);
        const __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)pairs));
        _mm512_storeu_si512(panel + bc_panel_at(0, k - k0, n), tl_pair_line_avx512vbmi(v, tl_spread_avx512vbmi(0, 16)));
        _mm512_storeu_si512(panel + bc_panel_at(16, k - k0, n), tl_pair_line_avx512vbmi(v, tl_spread_avx512vbmi(8, 24)));
    }
}
