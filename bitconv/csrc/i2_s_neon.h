/* I2_S on NEON, over the dot of gemm_neon.h: 16 bytes hold 64 columns, four groups of 16 that lie 32 columns apart, first
 * in the top bits.
 */

/* the codes of the four groups of 16 bytes */
BC_INLINE void ISA(i2_s_codes)(uint8x16_t v, int8x16_t c[4])
{
    const uint8x16_t mask = vdupq_n_u8(3);
    c[0] = vreinterpretq_s8_u8(vshrq_n_u8(v, 6)), c[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), mask));
    c[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), mask)), c[3] = vreinterpretq_s8_u8(vandq_u8(v, mask));
}

/* sum += codes times x, the activations of the four groups */
BC_INLINE int32x4_t ISA(i2_s_add)(int32x4_t sum, const int8x16_t c[4], const int8x16_t x[4])
{
#ifdef BC_NEON_DOT
    return vdotq_s32(vdotq_s32(vdotq_s32(vdotq_s32(sum, c[0], x[0]), c[1], x[1]), c[2], x[2]), c[3], x[3]);
#else
    /* eight products a lane, each at most 3 * 127, so int16 holds them */
    int16x8_t products = vmull_high_s8(c[0], x[0]);
    products = vmlal_s8(products, vget_low_s8(c[0]), vget_low_s8(x[0]));
#pragma GCC unroll 3
    for (int g = 1; g < 4; g++)
        products = vmlal_high_s8(vmlal_s8(products, vget_low_s8(c[g]), vget_low_s8(x[g])), c[g], x[g]);
    return vpadalq_s16(sum, products);
#endif
}

/* sums [n_t][n_rows] of 1 or 4 rows and some tokens */
BC_INLINE void ISA(i2_s_sums)(const uint8_t *const *row, const int n_rows, int64_t cols, const int8_t *q, int64_t ldq, const int n_t,
                              int32_t *sum)
{
    int32x4_t acc[BC_FEW][BC_STREAMS];
#pragma GCC unroll 4
    for (int t = 0; t < n_t; t++)
#pragma GCC unroll 4
        for (int i = 0; i < n_rows; i++)
            acc[t][i] = vdupq_n_s32(0);
    for (int64_t k = 0; k < cols; k += 128)
#pragma GCC unroll 2
        for (int half = 0; half < 32; half += 16) {
#pragma GCC unroll 2
            for (int first = 0; first < n_rows; first += 2) { /* the codes of two rows, 16 sums and activations fit the registers */
                int8x16_t c[2][4];
#pragma GCC unroll 2
                for (int i = first; i < bc_min(first + 2, n_rows); i++)
                    ISA(i2_s_codes)(vld1q_u8(row[i] + k / 4 + half), c[i - first]);
#pragma GCC unroll 4
                for (int t = 0; t < n_t; t++) {
                    const int8_t *at = q + t * ldq + k + half;
                    const int8x16_t x[4] = {vld1q_s8(at), vld1q_s8(at + 32), vld1q_s8(at + 64), vld1q_s8(at + 96)};
#pragma GCC unroll 2
                    for (int i = first; i < bc_min(first + 2, n_rows); i++)
                        acc[t][i] = ISA(i2_s_add)(acc[t][i], c[i - first], x);
                }
            }
        }
#pragma GCC unroll 4
    for (int t = 0; t < n_t; t++)
#pragma GCC unroll 4
        for (int i = 0; i < n_rows; i++)
            sum[t * n_rows + i] = vaddvq_s32(acc[t][i]);
}

BC_INLINE void ISA(two_bit_dot)(const uint8_t *const *row, const int n_rows, int64_t cols, const int8_t *q, int32_t *sum, int is_i2_s)
{
    (void)is_i2_s;
    ISA(i2_s_sums)(row, n_rows, cols, q, 0, 1, sum);
}

BC_INLINE void ISA(two_bit_few)(const uint8_t *const *row, int64_t cols, const int8_t *q, int64_t ldq, const int n_t, int32_t *sum,
                                int is_i2_s)
{
    (void)is_i2_s;
    ISA(i2_s_sums)(row, BC_STREAMS, cols, q, ldq, n_t, sum);
}

#include "two_bit_rows.h"
BC_TWO_BIT_ROWS(i2_s, 1)
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
