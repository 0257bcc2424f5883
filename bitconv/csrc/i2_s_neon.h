/* I2_S on NEON, over the dot of gemm_neon.h: 16 bytes hold 64 columns, four groups of 16 that lie 32 columns apart, first
 * in the top bits. Decode reads four rows that lie pages apart, which share the activations, as on AVX2.
 */

/* sum += the codes of 16 bytes times x, the activations of the four groups */
BC_INLINE int32x4_t ISA(i2_s_add)(int32x4_t sum, uint8x16_t v, const int8x16_t x[4])
{
    const uint8x16_t mask = vdupq_n_u8(3);
    const int8x16_t c0 = vreinterpretq_s8_u8(vshrq_n_u8(v, 6)), c1 = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), mask));
    const int8x16_t c2 = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), mask)), c3 = vreinterpretq_s8_u8(vandq_u8(v, mask));
#ifdef BC_NEON_DOT
    return vdotq_s32(vdotq_s32(vdotq_s32(vdotq_s32(sum, c0, x[0]), c1, x[1]), c2, x[2]), c3, x[3]);
#else
    /* eight products a lane, each at most 3 * 127, so int16 holds them */
    int16x8_t products = vmull_high_s8(c0, x[0]);
    products = vmlal_s8(products, vget_low_s8(c0), vget_low_s8(x[0]));
    products = vmlal_high_s8(vmlal_s8(products, vget_low_s8(c1), vget_low_s8(x[1])), c1, x[1]);
    products = vmlal_high_s8(vmlal_s8(products, vget_low_s8(c2), vget_low_s8(x[2])), c2, x[2]);
    products = vmlal_high_s8(vmlal_s8(products, vget_low_s8(c3), vget_low_s8(x[3])), c3, x[3]);
    return vpadalq_s16(sum, products);
#endif
}

/* sums of n_rows rows (1 or 4) that start at row[i] */
BC_INLINE void ISA(i2_s_dot)(const uint8_t *const *row, const int n_rows, int64_t cols, const int8_t *q, int32_t *sum)
{
    int32x4_t acc[4];
#pragma GCC unroll 4
    for (int i = 0; i < n_rows; i++)
        acc[i] = vdupq_n_s32(0);
    for (int64_t k = 0; k < cols; k += 128)
#pragma GCC unroll 2
        for (int half = 0; half < 32; half += 16) {
            const int8_t *at = q + k + half;
            const int8x16_t x[4] = {vld1q_s8(at), vld1q_s8(at + 32), vld1q_s8(at + 64), vld1q_s8(at + 96)};
#pragma GCC unroll 4
            for (int i = 0; i < n_rows; i++)
                acc[i] = ISA(i2_s_add)(acc[i], vld1q_u8(row[i] + k / 4 + half), x);
        }
#pragma GCC unroll 4
    for (int i = 0; i < n_rows; i++)
        sum[i] = vaddvq_s32(acc[i]);
}

static void ISA(i2_s_gemv)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                           const uint8_t *table, int32_t *out)
{
    (void)table;
    const int64_t bytes = w->cols / 4, quarter = (row1 - row0) / 4;
    const uint8_t *base = w->data + row0 * bytes;
    int32_t sum[4];
    for (int64_t r = 0; r < quarter; r++) {
        const uint8_t *row[4];
        for (int i = 0; i < 4; i++)
            row[i] = base + (i * quarter + r) * bytes;
        ISA(i2_s_dot)(row, 4, w->cols, q, sum);
        for (int i = 0; i < 4; i++)
            out[i * quarter + r] = sum[i] - q_sum;
    }
    for (int64_t r = 4 * quarter; r < row1 - row0; r++) {
        const uint8_t *row = base + r * bytes;
        ISA(i2_s_dot)(&row, 1, w->cols, q, sum);
        out[r] = sum[0] - q_sum;
    }
}

/* 4x4 dwords: dword j of x[i] becomes dword i of x[j] */
BC_INLINE void ISA(transpose4)(uint32x4_t x[4])
{
    const uint64x2_t ab02 = vreinterpretq_u64_u32(vtrn1q_u32(x[0], x[1])), ab13 = vreinterpretq_u64_u32(vtrn2q_u32(x[0], x[1]));
    const uint64x2_t cd02 = vreinterpretq_u64_u32(vtrn1q_u32(x[2], x[3])), cd13 = vreinterpretq_u64_u32(vtrn2q_u32(x[2], x[3]));
    x[0] = vreinterpretq_u32_u64(vzip1q_u64(ab02, cd02));
    x[1] = vreinterpretq_u32_u64(vzip1q_u64(ab13, cd13));
    x[2] = vreinterpretq_u32_u64(vzip2q_u64(ab02, cd02));
    x[3] = vreinterpretq_u32_u64(vzip2q_u64(ab13, cd13));
}

/* A dword of a row holds columns 4j..4j+3 of four groups, so transposing the dwords of 4 rows, shifting and masking give
 * quarters of panel lines without any byte shuffle. */
static void ISA(i2_s_panel)(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    for (int64_t first = 0; first < BC_PANEL_ROWS; first += 4) {
        const uint8_t *row[4];
        for (int i = 0; i < 4; i++)
            row[i] = w->data + bc_min(row0 + first + i, w->rows - 1) * (w->cols / 4);
        for (int64_t k = k0; k < k1; k += 128)
            for (int half = 0; half < 32; half += 16) {
                uint32x4_t x[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    x[i] = vreinterpretq_u32_u8(vld1q_u8(row[i] + k / 4 + half));
                ISA(transpose4)(x);
                for (int group = 0; group < 4; group++) {
                    uint8_t *line = panel + bc_panel_at(first, k - k0 + 32 * group + half, k1 - k0);
                    const int8x16_t shift = vdupq_n_s8((int8_t)(2 * group - 6)); /* to the right */
#pragma GCC unroll 4
                    for (int j = 0; j < 4; j++) {
                        const uint8x16_t bits = vshlq_u8(vreinterpretq_u8_u32(x[j]), shift);
                        vst1q_u8(line + j * BC_TILE_ROWS * 4, vandq_u8(bits, vdupq_n_u8(3)));
                    }
                }
            }
    }
}
