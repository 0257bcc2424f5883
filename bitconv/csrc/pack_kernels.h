/* The kernels of pack.h, in loops that a compiler vectorises; included once per instruction set. */

/* Weights of one block, whose magnitudes are first looked at and then summed: 4 or 8 KiB, which stay in L1. */
enum { ISA(BLOCK) = 2048, ISA(LANES) = 16 };

/* A float64 sum of BLOCK = 2^11 values below 2^(e + 1), all multiples of 2^u, is exact when e + 12 - u <= 53. */
static int ISA(sums_exactly)(uint32_t largest, uint32_t smallest, int mantissa_bits)
{
    return smallest >= 0x00800000 && (int)(largest >> 23) - (int)(smallest >> 23) + mantissa_bits + 12 <= 53;
}

/* Sum of at most BLOCK magnitudes, float32 bits whose sign does not count, in the order of virtual lanes. */
static double ISA(sum)(const uint32_t *w, int64_t n)
{
    double lanes[ISA(LANES)] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + ISA(LANES) <= n; i += ISA(LANES))
        for (int j = 0; j < ISA(LANES); j++)
            lanes[j] += (double)bc_bits_float(w[i + j] & 0x7fffffff);
    for (; i < n; i++)
        sum += (double)bc_bits_float(w[i] & 0x7fffffff);
    for (int j = 0; j < ISA(LANES); j++)
        sum += lanes[j];
    return sum;
}

static void ISA(widen_bf16)(const uint16_t *w, int64_t n, uint32_t *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (uint32_t)w[i] << 16;
}

/* Finite float16 to float32 times 2^24, which needs no subnormal numbers: a CPU may be told to flush those. */
static void ISA(widen_f16)(const uint16_t *w, int64_t n, uint32_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = w[i] & 0x7fff, sign = (uint32_t)(w[i] & 0x8000) << 16, is_subnormal = 0u - (bits < 0x400);
        const uint32_t normal = (bits << 13) + ((112u + 24u) << 23), subnormal = bc_float_bits((float)(int32_t)bits);
        out[i] = sign | (subnormal & is_subnormal) | (normal & ~is_subnormal);
    }
}

/* largest = max magnitude, smallest = min of magnitude - 1, where 0 wraps to the largest pattern */
static void ISA(extrema16)(const uint16_t *w, int64_t n, uint16_t *largest, uint16_t *smallest)
{
    uint16_t most = 0, least = 0xffff;
    for (int64_t i = 0; i < n; i++) {
        const uint16_t bits = w[i] & 0x7fff, below = (uint16_t)(bits - 1);
        most = bits > most ? bits : most;
        least = below < least ? below : least;
    }
    *largest = most;
    *smallest = least;
}

static void ISA(extrema32)(const uint32_t *w, int64_t n, uint32_t *largest, uint32_t *smallest)
{
    uint32_t most = 0, least = 0xffffffff;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = w[i] & 0x7fffffff, below = bits - 1;
        most = bits > most ? bits : most;
        least = below < least ? below : least;
    }
    *largest = most;
    *smallest = least;
}

/* float32 bits of the largest magnitude, and of the smallest that is not 0 */
static void ISA(extrema)(const void *data, int32_t type, int64_t n, uint32_t *largest, uint32_t *smallest)
{
    if (type == BC_F32) {
        uint32_t below;
        ISA(extrema32)(data, n, largest, &below);
        *smallest = below + 1;
    } else {
        uint16_t most, below;
        ISA(extrema16)(data, n, &most, &below);
        const uint16_t ends[2] = {most, (uint16_t)(below + 1)};
        *largest = bc_magnitude(ends, type, 0);
        *smallest = bc_magnitude(ends, type, 1);
    }
}

static void ISA(block_statistics)(const void *data, int32_t type, int64_t n, bc_statistics *s)
{
    uint32_t largest, smallest, widened[ISA(BLOCK)];
    ISA(extrema)(data, type, n, &largest, &smallest);
    if (largest > s->largest)
        s->largest = largest;
    if (smallest && smallest - 1 < s->smallest)
        s->smallest = smallest - 1;
    if (!largest || largest >= 0x7f800000)
        return;
    /* first to float32 in L1, then to float64: two loops are faster than one with both conversions */
    if (type == BC_F16) { /* 2048 values below 2^16 in multiples of 2^-24 */
        ISA(widen_f16)(data, n, widened);
        bc_add_double(s->sum, ISA(sum)(widened, n) * 0x1p-24);
    } else if (!ISA(sums_exactly)(largest, smallest, type == BC_BF16 ? 7 : 23)) {
        bc_add_by_exponent(data, type, n, s->sum);
    } else if (type == BC_BF16) {
        ISA(widen_bf16)(data, n, widened);
        bc_add_double(s->sum, ISA(sum)(widened, n));
    } else {
        bc_add_double(s->sum, ISA(sum)(data, n));
    }
}

static void ISA(statistics)(const void *data, int32_t type, int64_t n, bc_statistics *s)
{
    const int64_t size = type == BC_F32 ? 4 : 2;
    for (int64_t i = 0; i < n; i += ISA(BLOCK))
        ISA(block_statistics)((const uint8_t *)data + i * size, type, bc_min(ISA(BLOCK), n - i), s);
}

static void ISA(narrow_bf16)(const uint32_t *w, int64_t n, uint16_t *out)
{
    for (int64_t i = 0; i < n; i++) /* half to even */
        out[i] = (uint16_t)((w[i] + 0x7fff + (w[i] >> 16 & 1)) >> 16);
}

static void ISA(narrow_f16)(const uint32_t *w, int64_t n, uint16_t *out)
{
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps((const float *)(w + i)), 0));
#endif
    for (; i < n; i++)
        out[i] = bc_f32_to_f16(bc_bits_float(w[i]));
}

/* undo the 2^24 of widen_f16 */
static void ISA(scale_f16)(uint32_t *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        w[i] = bc_float_bits(bc_bits_float(w[i]) * 0x1p-24f);
}

static int64_t ISA(convert)(const void *data, int32_t from, int64_t n, int32_t to, void *out)
{
    const int64_t from_size = from == BC_F32 ? 4 : 2, to_size = to == BC_F32 ? 4 : 2;
    /* the least magnitude that rounds to infinity */
    const uint32_t limit = to == BC_F16 ? 0x477ff000 : to == BC_BF16 ? 0x7f7f8000 : 0x7f800000;
    uint32_t widened[ISA(BLOCK)], largest, smallest;
    for (int64_t i = 0; i < n; i += ISA(BLOCK)) {
        const int64_t here = bc_min(ISA(BLOCK), n - i);
        const uint8_t *block = (const uint8_t *)data + i * from_size;
        uint8_t *result = (uint8_t *)out + i * to_size;
        ISA(extrema)(block, from, here, &largest, &smallest);
        if (largest >= limit)
            return i;
        if (from == to) {
            memcpy(result, block, here * to_size);
            continue;
        }
        if (from == BC_BF16) {
            ISA(widen_bf16)((const uint16_t *)block, here, widened);
        } else if (from == BC_F16) {
            ISA(widen_f16)((const uint16_t *)block, here, widened);
            ISA(scale_f16)(widened, here);
        }
        const uint32_t *w = from == BC_F32 ? (const uint32_t *)block : widened;
        if (to == BC_F32)
            memcpy(result, w, here * 4);
        else if (to == BC_BF16)
            ISA(narrow_bf16)(w, here, (uint16_t *)result);
        else
            ISA(narrow_f16)(w, here, (uint16_t *)result);
    }
    return n;
}

/* codes trit + 1 of n columns of a row, from column k on; *bad becomes non-zero when there is a code 3 */
static void ISA(codes)(const bc_source *s, int64_t row, int64_t k, int64_t n, uint8_t *restrict codes, uint8_t *bad)
{
    if (s->head_rows) { /* row 2i + j of a head is row j * D/2 + i of the source */
        const int64_t in_head = row % s->head_rows;
        row += in_head % 2 * (s->head_rows / 2) + in_head / 2 - in_head;
    }
    if (s->stored == BC_STORED_16) {
        const uint16_t *w = (const uint16_t *)s->data + (row - s->first) * s->cols + k;
        const uint16_t threshold = (uint16_t)s->threshold;
        for (int64_t i = 0; i < n; i++)
            codes[i] = (uint8_t)((w[i] & 0x7fff) < threshold ? 1 : 2 - (w[i] >> 15) * 2);
    } else if (s->stored == BC_STORED_32) {
        const uint32_t *w = (const uint32_t *)s->data + (row - s->first) * s->cols + k;
        const uint32_t threshold = s->threshold;
        for (int64_t i = 0; i < n; i++)
            codes[i] = (uint8_t)((w[i] & 0x7fffffff) < threshold ? 1 : 2 - (w[i] >> 31) * 2);
    } else if (s->stored == BC_STORED_2BIT) {
        const uint8_t *w = s->data + row % s->quarter * s->cols + k;
        const int shift = (int)(row / s->quarter) * 2;
        uint8_t any = 0;
        for (int64_t i = 0; i < n; i++) {
            codes[i] = (uint8_t)(w[i] >> shift & 3);
            any |= codes[i] & codes[i] >> 1;
        }
        *bad |= any;
    } else {
        const uint8_t *w = s->data + (row - s->first) * s->cols + k;
        for (int64_t i = 0; i < n; i++)
            codes[i] = (uint8_t)(w[i] + 1);
    }
}

/* how many codes are not 1 */
static int32_t ISA(count)(const uint8_t *codes, int64_t n)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += abs(codes[i] - 1); /* written as the sum of absolute differences that CPUs have an instruction for */
    return sum;
}

/* four codes a byte: out[h * width + p] of each group of 4 * width codes; the first is the lowest or the highest */
static void ISA(two_bits)(const uint8_t *codes, int64_t n, int lowest_first, uint8_t *out)
{
    for (int64_t at = 0; at < n; at += 128)
        for (int p = 0; p < 32; p++) {
            const uint8_t *c = codes + at + p;
            out[at / 4 + p] = lowest_first ? (uint8_t)(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6)
                                           : (uint8_t)(c[0] << 6 | c[32] << 4 | c[64] << 2 | c[96]);
        }
}

/* one group of base 3 numbers of TQ1_0: n bytes of 5 digits each, or of 4 and a 0 */
static void ISA(base3)(const uint8_t *codes, int n, int digits, uint8_t *out)
{
    for (int p = 0; p < n; p++) {
        const uint8_t *c = codes + p;
        const unsigned last = digits == 5 ? c[4 * n] : 0;
        const unsigned value = 81u * c[0] + 27u * c[n] + 9u * c[2 * n] + 3u * c[3 * n] + last;
        out[p] = (uint8_t)((256 * value + 242) / 243);
    }
}

/* I2_S and TQ: row after row */
static int64_t ISA(pack_by_row)(const bc_source *s, int64_t row0, int64_t row1, const bc_target *t)
{
    uint8_t codes[BC_PACK_COLS], bad = 0;
    const int64_t cols = t->cols;
    int64_t used = 0;
    for (int64_t row = row0; row < row1; row++)
        for (int64_t k = 0; k < cols; k += BC_PACK_COLS) {
            const int64_t n = bc_min(BC_PACK_COLS, cols - k), at = row * cols + k;
            ISA(codes)(s, row, k, n, codes, &bad);
            const int32_t here = ISA(count)(codes, n);
            const uint16_t d = here ? t->d : 0;
            used += here;
            uint8_t *out;
            if (t->type == BC_I2_S) {
                ISA(two_bits)(codes, n, 0, t->data + at / 4);
            } else if (t->type == BC_TQ2_0) {
                out = t->data + at / 256 * 66;
                ISA(two_bits)(codes, n, 1, out);
                memcpy(out + 64, &d, 2);
            } else {
                out = t->data + at / 256 * 54;
                ISA(base3)(codes, 32, 5, out);
                ISA(base3)(codes + 160, 16, 5, out + 32);
                ISA(base3)(codes + 240, 4, 4, out + 48);
                memcpy(out + 52, &d, 2);
            }
        }
    return bad ? -1 : used;
}

/* codes of 32 rows, and the same column after column */
typedef struct {
    _Alignas(32) uint8_t rows[BC_PACK_ROWS][BC_PACK_COLS];
    _Alignas(32) uint8_t columns[BC_PACK_COLS][BC_PACK_ROWS];
} ISA(group);

static void ISA(transpose16)(const uint8_t *from, int64_t from_step, uint8_t *to, int64_t to_step)
{
#if defined(__SSE2__)
    __m128i a[16], b[16];
    for (int i = 0; i < 16; i++)
        a[i] = _mm_loadu_si128((const __m128i *)(from + i * from_step));
    /* after each step the pairs of rows i and i + 8 are interleaved; four steps rotate all 4 bits of the row number */
    for (int step = 0; step < 4; step++) {
        for (int i = 0; i < 8; i++) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        memcpy(a, b, sizeof a);
    }
    for (int i = 0; i < 16; i++)
        _mm_storeu_si128((__m128i *)(to + i * to_step), a[i]);
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++)
            to[j * to_step + i] = from[i * from_step + j];
#endif
}

/* Read n columns of 32 rows. TL2 wants rows 8 to 15 and 16 to 23 to change places. */
static int64_t ISA(read_group)(const bc_source *s, int64_t row, int64_t k, int64_t n, int swap, ISA(group) *g, uint8_t *bad)
{
    int64_t used = 0;
    for (int i = 0; i < BC_PACK_ROWS; i++) {
        uint8_t *codes = g->rows[swap && (i / 8 == 1 || i / 8 == 2) ? i ^ 24 : i];
        ISA(codes)(s, row + i, k, n, codes, bad);
        used += ISA(count)(codes, n);
    }
    for (int64_t c = 0; c < n; c += 16) /* past n: what lies there, and nobody reads */
        for (int i = 0; i < BC_PACK_ROWS; i += 16)
            ISA(transpose16)(&g->rows[i][c], BC_PACK_COLS, &g->columns[c][i], BC_PACK_ROWS);
    return used;
}

#define BC_TRIPLE(x) ((x) + (x) + (x)) /* bytes can be added many at a time, but not multiplied */

/* bytes of two pairs: four columns of codes, `lanes` rows each */
static void ISA(quads)(const uint8_t (*restrict columns)[BC_PACK_ROWS], int lane0, int lanes, uint8_t *restrict out)
{
    for (int i = 0; i < lanes; i++)
        out[i] = (uint8_t)(BC_TRIPLE(columns[0][lane0 + i]) + columns[1][lane0 + i]) << 4 |
                 (uint8_t)(BC_TRIPLE(columns[2][lane0 + i]) + columns[3][lane0 + i]);
}

static int64_t ISA(pack_tl1)(const bc_source *s, int64_t row0, int64_t row1, const bc_target *t)
{
    ISA(group) g = {0};
    uint8_t bad = 0;
    int64_t used = 0;
    const int64_t bm = t->micro_rows, by = 256 / bm, width = t->tile_cols;
    const int64_t span = BC_PACK_COLS / width * width; /* whole tiles, read together */
    for (int64_t row = row0; row < row1; row += BC_PACK_ROWS) {
        const int64_t in_tile = row % t->tile_rows, first = row - in_tile;
        for (int64_t k = 0; k < t->cols; k += width) {
            if (k % span == 0)
                used += ISA(read_group)(s, row, k, bc_min(span, t->cols - k), 0, &g, &bad);
            const uint8_t(*columns)[BC_PACK_ROWS] = (const uint8_t(*)[BC_PACK_ROWS])&g.columns[k % span];
            uint8_t *tile = t->data + (first * t->cols + t->tile_rows * k) / 4 + in_tile / bm * (bm * width / 4);
            for (int64_t c = 0; c < width; c += 4)
                for (int half = 0; half < 2; half++) {
                    const int64_t lane_group = in_tile % bm / 16 + half;
                    const int64_t chunk = (c / by * (bm / 16) + lane_group) * (by / 4) + c % by / 4;
                    ISA(quads)(columns + c, half * 16, 16, tile + chunk * 16);
                }
        }
    }
    return bad ? -1 : used;
}

/* bits i of bytes -> bits 2i of words */
static inline uint16_t ISA(spread)(uint8_t bits)
{
    uint16_t word = bits;
    word = (uint16_t)((word | word << 4) & 0x0f0f);
    word = (uint16_t)((word | word << 2) & 0x3333);
    return (uint16_t)((word | word << 1) & 0x5555);
}

/* 24 columns of triples: four chunks of 32 nibble bytes, and 16 words of signs */
static void ISA(triples)(const uint8_t (*restrict columns)[BC_PACK_ROWS], uint8_t *restrict nibbles, uint8_t *restrict signs)
{
    uint8_t negative[BC_PACK_ROWS] = {0};
    uint16_t words[16];
    for (int q = 0; q < 8; q += 2) {
        const uint8_t(*restrict c)[BC_PACK_ROWS] = columns + 3 * q;
        for (int i = 0; i < BC_PACK_ROWS; i++) { /* t is a triple + 13 */
            const uint8_t pair0 = BC_TRIPLE(c[0][i]) + c[1][i], t0 = BC_TRIPLE(pair0) + c[2][i];
            const uint8_t pair1 = BC_TRIPLE(c[3][i]) + c[4][i], t1 = BC_TRIPLE(pair1) + c[5][i];
            const uint8_t size0 = t0 < 13 ? 13 - t0 : t0 - 13, size1 = t1 < 13 ? 13 - t1 : t1 - 13;
            nibbles[q * 16 + i] = (uint8_t)(size0 << 4) | size1;
            const uint8_t before = negative[i] + negative[i] + (t0 < 13);
            negative[i] = before + before + (t1 < 13);
        }
    }
    for (int half = 0; half < 2; half++) /* rows w and w + 16 lie 8 apart */
        for (int i = 0; i < 8; i++)
            words[8 * half + i] =
                (uint16_t)(ISA(spread)(negative[16 * half + i]) << 1 | ISA(spread)(negative[16 * half + 8 + i]));
    memcpy(signs, words, sizeof words);
}

static int64_t ISA(pack_tl2)(const bc_source *s, int64_t row0, int64_t row1, const bc_target *t)
{
    ISA(group) g = {0};
    uint8_t bad = 0;
    int64_t used = 0;
    const int64_t width = t->tile_cols, pairs_cols = t->cols % width, triple_cols = t->cols - pairs_cols;
    const int64_t span = BC_PACK_COLS / width * width; /* whole tiles, read together */
    uint8_t *signs = t->data + t->rows * triple_cols / 6, *pairs = signs + t->rows * triple_cols / 24;
    for (int64_t row = row0; row < row1; row += BC_PACK_ROWS) {
        const int64_t in_tile = row % t->tile_rows, first = row - in_tile;
        for (int64_t k = 0; k < triple_cols; k += width) {
            if (k % span == 0)
                used += ISA(read_group)(s, row, k, bc_min(span, triple_cols - k), 1, &g, &bad);
            const uint8_t(*columns)[BC_PACK_ROWS] = (const uint8_t(*)[BC_PACK_ROWS])&g.columns[k % span];
            const int64_t at = first * triple_cols + t->tile_rows * k + in_tile * width; /* weights before this group */
            for (int64_t c = 0; c < width; c += 24)
                ISA(triples)(columns + c, t->data + at / 6 + c / 6 * 32,
                             signs + at / 24 + c / 24 * 32);
        }
        if (pairs_cols)
            used += ISA(read_group)(s, row, triple_cols, pairs_cols, 1, &g, &bad);
        for (int64_t c = 0; c < pairs_cols; c += 4) {
            const int64_t tile = first * pairs_cols + t->tile_rows * (c & ~31) + in_tile * 32;
            ISA(quads)((const uint8_t(*)[BC_PACK_ROWS])&g.columns[c], 0, 32, pairs + tile / 4 + c % 32 / 4 * 32);
        }
    }
    return bad ? -1 : used;
}

#undef BC_TRIPLE

static int64_t ISA(pack)(const bc_source *s, int64_t row0, int64_t row1, const bc_target *t)
{
    if (t->type == BC_TL1)
        return ISA(pack_tl1)(s, row0, row1, t);
    return t->type == BC_TL2 ? ISA(pack_tl2)(s, row0, row1, t) : ISA(pack_by_row)(s, row0, row1, t);
}
