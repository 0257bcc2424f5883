/* The order in which a TL1 product reads its tiles, for instruction sets with ISA(tl1_sums), ISA(tl1_steps) and
 * ISA(tl1_add_rows): no include guard.
 *
 * A row block is summed over the tiles that make up 256 columns, which int16 holds: both lanes of bm = 32 together, or one
 * of bm = 64, are at most 128 * 254 = 32512. Pieces are read here and there of what these tiles have, but fetched into L2 one
 * after another, far enough ahead for each to be there in time. L1 has too few misses under way for that, and fetching into it
 * as well lost.
 */
enum { ISA(tl1_ahead) = 8192 }; /* bytes, at least */

BC_INLINE void ISA(tl1_rows)(const uint8_t *data, const bc_matrix *w, const uint8_t *table, int bm, int32_t *out)
{
    const int64_t bk = w->tile_cols, rows = w->tile_rows, steps = bk / (256 / bm), tiles = w->cols / bk, span = 256 / bk;
    const int64_t step_tables = bm == 32 ? 128 : 64;
    const uint8_t *ahead = data + bc_max(span * rows * bk / 4, ISA(tl1_ahead));
    for (int64_t tile = 0; tile < tiles; tile += span)
        for (int64_t r = 0; r < rows; r += bm) {
            ISA(tl1_sums) sums = ISA(tl1_no_sums)();
            for (int64_t i = tile; i < bc_min(tile + span, tiles); i++) {
                const uint8_t *p = data + (i * rows + r) * bk / 4, *t = table + i * bk * 16;
                int64_t left = steps;
                for (; left >= 4; left -= 4, p += 256, ahead += 256, t += 4 * step_tables) {
                    bc_prefetch_far(ahead, 256);
                    ISA(tl1_steps)(p, t, bm, 4, &sums);
                }
                for (; left; left--, p += 64, ahead += 64, t += step_tables) {
                    bc_prefetch_far(ahead, 64);
                    ISA(tl1_steps)(p, t, bm, 1, &sums);
                }
            }
            ISA(tl1_add_rows)(out + r, &sums, bm);
        }
}

static void ISA(tl1_gemv)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, const uint8_t *table,
                          int32_t *out)
{
    (void)q, (void)q_sum;
    memset(out, 0, (size_t)(row1 - row0) * sizeof *out);
    for (int64_t first = row0; first < row1; first += w->tile_rows)
        if (w->micro_rows == 32)
            ISA(tl1_rows)(w->data + first * (w->cols / 4), w, table, 32, out + (first - row0));
        else
            ISA(tl1_rows)(w->data + first * (w->cols / 4), w, table, 64, out + (first - row0));
}
