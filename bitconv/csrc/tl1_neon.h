/* TL1 on NEON: a nibble looks up the sum of a pair of activations under its two weights.
 *
 * Sums reach 254, so a table is two byte planes, value = 17*high + low with |low| <= 8 and |high| <= 15. Bytes are added
 * for 8 pairs (8 * 15 = 120 fits) and then go to exact int16 sums, which a tile of at most 256 columns does not overflow
 * (128 * 254 = 32512). 16 bytes are 4 columns of 16 rows; a step of 64 bytes is
 *   bm = 32: rows 0..15 of columns 0..3 | rows 0..15 of columns 4..7 | rows 16..31 likewise
 *   bm = 64: rows 0..15 | 16..31 | 32..47 | 48..63 of columns 0..3
 */

/* 32 bytes a pair: [16 low][16 high] */
static void tl1_prepare_neon(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table)
{
    (void)w;
    static const int16_t first[16] = {-1, -1, -1, 0, 0, 0, 1, 1, 1}, second[16] = {-1, 0, 1, -1, 0, 1, -1, 0, 1};
    const int16x8_t w0[2] = {vld1q_s16(first), vld1q_s16(first + 8)}, w1[2] = {vld1q_s16(second), vld1q_s16(second + 8)};
    for (int64_t k = k0; k < k1; k += 2) {
        int8x8_t low[2], high[2];
        for (int i = 0; i < 2; i++) {
            const int16x8_t sum = vmlaq_n_s16(vmulq_n_s16(w0[i], q[k]), w1[i], q[k + 1]);
            const int16x8_t h = vqrdmulhq_n_s16(sum, 1928); /* 32768 / 17, rounded: the nearest multiple of 17 */
            high[i] = vmovn_s16(h);
            low[i] = vmovn_s16(vmlsq_n_s16(sum, h, 17));
        }
        vst1q_u8(table + k * 16, vreinterpretq_u8_s8(vcombine_s8(low[0], low[1])));
        vst1q_u8(table + k * 16 + 16, vreinterpretq_u8_s8(vcombine_s8(high[0], high[1])));
    }
}

/* one row block of one tile: 16 * groups rows (2 or 4 groups) x BK columns, contiguous */
BC_INLINE void tl1_block_neon(const uint8_t *data, const uint8_t *table, int64_t bk, const int groups, int32_t *out)
{
    const int quads = 4 / groups; /* runs of 4 columns in a step */
    int16x8_t sum[4][2];
    for (int g = 0; g < groups; g++)
        sum[g][0] = sum[g][1] = vdupq_n_s16(0);
    for (int64_t k = 0; k < bk;) {
        int8x16_t low[4], high[4];
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++)
            low[g] = high[g] = vdupq_n_s8(0);
        const int64_t end = bc_min(k + 16, bk);
        for (; k < end; k += 4 * quads, data += 64)
#pragma GCC unroll 2
            for (int c = 0; c < quads; c++) {
                const int8_t *t = (const int8_t *)table + (k + 4 * c) * 16;
                const int8x16_t low0 = vld1q_s8(t), high0 = vld1q_s8(t + 16), low1 = vld1q_s8(t + 32), high1 = vld1q_s8(t + 48);
#pragma GCC unroll 4
                for (int g = 0; g < groups; g++) {
                    const uint8x16_t v = vld1q_u8(data + (g * quads + c) * 16);
                    const uint8x16_t first = vshrq_n_u8(v, 4), second = vandq_u8(v, vdupq_n_u8(15));
                    low[g] = vaddq_s8(low[g], vaddq_s8(vqtbl1q_s8(low0, first), vqtbl1q_s8(low1, second)));
                    high[g] = vaddq_s8(high[g], vaddq_s8(vqtbl1q_s8(high0, first), vqtbl1q_s8(high1, second)));
                }
            }
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) {
            sum[g][0] = vaddw_s8(vmlal_s8(sum[g][0], vget_low_s8(high[g]), vdup_n_s8(17)), vget_low_s8(low[g]));
            sum[g][1] = vaddw_high_s8(vmlal_high_s8(sum[g][1], high[g], vdupq_n_s8(17)), low[g]);
        }
    }
    for (int i = 0; i < 2 * groups; i++) { /* 8 rows */
        const int16x8_t rows = sum[i / 2][i % 2];
        vst1q_s32(out + 8 * i, vaddw_s16(vld1q_s32(out + 8 * i), vget_low_s16(rows)));
        vst1q_s32(out + 8 * i + 4, vaddw_high_s16(vld1q_s32(out + 8 * i + 4), rows));
    }
}

static void tl1_gemv_neon(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, const uint8_t *table,
                          int32_t *out)
{
    (void)q, (void)q_sum; /* the table has both */
    const int64_t bk = w->tile_cols, bm = w->micro_rows;
    const uint8_t *data = w->data + row0 * (w->cols / 4);
    memset(out, 0, (size_t)(row1 - row0) * sizeof *out);
    for (int64_t first = 0; first < row1 - row0; first += w->tile_rows)
        for (int64_t k = 0; k < w->cols; k += bk)
            for (int64_t r = first; r < first + w->tile_rows; r += bm, data += bm * bk / 4)
                if (bm == 32)
                    tl1_block_neon(data, table + k * 16, bk, 2, out + r);
                else
                    tl1_block_neon(data, table + k * 16, bk, 4, out + r);
}

static void tl1_panel_neon(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    static const uint8_t over3[16] = {0, 0, 0, 1, 1, 1, 2, 2, 2}, modulo3[16] = {0, 1, 2, 0, 1, 2, 0, 1, 2};
    const uint8x16_t div3 = vld1q_u8(over3), mod3 = vld1q_u8(modulo3);
    const int64_t by = 256 / w->micro_rows;
    for (int64_t k = k0; k < k1; k += by) {
        const uint8_t *data = w->data + tl1_at(w, row0, k);
        for (int64_t half = 0; half < 2; half++)
            for (int64_t c = 0; c < by; c += 4, data += 16) {
                const uint8x16_t v = vld1q_u8(data), first = vshrq_n_u8(v, 4), second = vandq_u8(v, vdupq_n_u8(15));
                const uint8x16x4_t codes = {{vqtbl1q_u8(div3, first), vqtbl1q_u8(mod3, first), vqtbl1q_u8(div3, second),
                                             vqtbl1q_u8(mod3, second)}};
                vst4q_u8(panel + bc_panel_at(half * BC_TILE_ROWS, k - k0 + c, k1 - k0), codes);
            }
    }
}
