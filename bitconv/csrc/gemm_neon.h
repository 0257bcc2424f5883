/* The int8 tile kernel on NEON, with the dot product instruction (BC_NEON_DOT) and without: 16 rows x up to 6 tokens.
 *
 *   panel line (64 bytes): four registers, each 4 columns of 4 rows        token line: 4 columns of each token
 *
 * A register times a token's dword adds four exact products to the int32 lane of each row. 24 sums, four registers of the
 * line and a pair of tokens fit the 32 registers. No include guard: isa_neon.h includes this file twice.
 */

/* sum[i] += a[4i..4i+3] * b[4i..4i+3]; dot_token: b is one of two dwords, for all i */
#ifdef BC_NEON_DOT
BC_INLINE int32x4_t ISA(dot)(int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }
BC_INLINE int32x4_t ISA(dot_token)(int32x4_t sum, int8x16_t a, int8x8_t pair, const int which)
{
    return which ? vdotq_lane_s32(sum, a, pair, 1) : vdotq_lane_s32(sum, a, pair, 0);
}
#else
/* two of the products are at most 2 * 127 * 127, so int16 holds a pair of them whatever the codes are */
BC_INLINE int32x4_t ISA(dot)(int32x4_t sum, int8x16_t a, int8x16_t b)
{
    return vpadalq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));
}
BC_INLINE int32x4_t ISA(dot_token)(int32x4_t sum, int8x16_t a, int8x8_t pair, const int which)
{
    const int32x2_t words = vreinterpret_s32_s8(pair);
    return ISA(dot)(sum, a, vreinterpretq_s8_s32(which ? vdupq_lane_s32(words, 1) : vdupq_lane_s32(words, 0)));
}
#endif

BC_INLINE void ISA(gemm_tile_n)(const uint8_t *panel, const int8_t *x, int64_t k, int32_t *acc, const int tile)
{
    int32x4_t sum[BC_MAX_TILE][4];
#pragma GCC unroll 6
    for (int t = 0; t < tile; t++)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            sum[t][r] = vld1q_s32(acc + t * BC_PANEL_ROWS + 4 * r);
    for (int64_t g = 0; g < k / 4; g++, panel += BC_TILE_ROWS * 4, x += tile * 4) {
        int8x16_t line[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            line[r] = vld1q_s8((const int8_t *)panel + 16 * r);
#pragma GCC unroll 6
        for (int t = 0; t < tile; t++)
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
                sum[t][r] = ISA(dot_token)(sum[t][r], line[r], vld1_s8(x + t / 2 * 8), t % 2);
    }
#pragma GCC unroll 6
    for (int t = 0; t < tile; t++)
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
            vst1q_s32(acc + t * BC_PANEL_ROWS + 4 * r, sum[t][r]);
}

BC_INLINE void ISA(gemm_tile16)(const uint8_t *panel, const int8_t *tokens, int32_t tile, int64_t k, int32_t *acc)
{
    if (tile == 6)
        ISA(gemm_tile_n)(panel, tokens, k, acc, 6);
    else if (tile == 4)
        ISA(gemm_tile_n)(panel, tokens, k, acc, 4);
    else
        ISA(gemm_tile_n)(panel, tokens, k, acc, 2);
}

BC_TILE_BY_ROWS(ISA(gemm_tile), ISA(gemm_tile16))

/* The most that dot can do: 16 independent sums. The empty asm makes each product a new one. Returns the multiply-adds. */
static int64_t ISA(gemm_peak)(int64_t steps)
{
    const int8x16_t w = vdupq_n_s8(1);
    int8x16_t x = vdupq_n_s8(1);
    int32x4_t sum[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        sum[i] = vdupq_n_s32(0);
    for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __asm__("" : "+w"(x));
            sum[i] = ISA(dot)(sum[i], w, x);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        __asm__ volatile("" : : "w"(sum[i]));
    return steps * 16 * 16;
}
