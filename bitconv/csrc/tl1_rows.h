/* The order in which a TL1 product reads its tiles, for instruction sets with ISA(tl1_sums), ISA(tl1_steps) and
 * ISA(tl1_add_rows): no include guard.
 *
 * A row block is summed over the tiles that make up 256 columns, which int16 holds: both lanes of bm = 32 together, or one
 * of bm = 64, are at most 128 * 254 = 32512. Pieces are read here and there of what these tiles have, but fetched into L2 one
 * after another, far enough ahead for each to be there in time. L1 has too few misses under way for that, and fetching into it
 * as well lost.
 *
 * ISA(tl1_together): how many rows of tiles are read together. Two that lie far apart share loads of tables, and their two
 * places fill the memory pipeline better than one.
 */
enum { ISA(tl1_ahead) = 8192 }; /* bytes, at least, of one row of tiles alone */

/* one row of tiles, or two that begin `apart` rows of the matrix from each other */
BC_INLINE void ISA(tl1_rows)(const uint8_t *data, int n_rows, int64_t apart, const bc_matrix *w, const uint8_t *table, int bm,
                             int32_t *out)
{
    const int64_t bk = w->tile_cols, rows = w->tile_rows, steps = bk / (256 / bm), tiles = w->cols / bk, span = 256 / bk;
    const int64_t step_tables = bm == 32 ? 128 : 64, apart_bytes = apart * (w->cols / 4);
    const int64_t round = span * rows * bk / 4; /* bytes of 256 columns */
    const uint8_t *ahead = data + (n_rows == 2 ? round / 2 : bc_max(round, ISA(tl1_ahead)));
    for (int64_t tile = 0; tile < tiles; tile += span)
        for (int64_t r = 0; r < rows; r += bm) {
            ISA(tl1_sums) sums[2] = {ISA(tl1_no_sums)(), ISA(tl1_no_sums)()};
            for (int64_t i = tile; i < bc_min(tile + span, tiles); i++) {
                const uint8_t *p = data + (i * rows + r) * bk / 4, *t = table + i * bk * 16;
                int64_t left = steps;
                for (; left >= 4; left -= 4, p += 256, ahead += 256, t += 4 * step_tables) {
                    for (int j = 0; j < n_rows; j++)
                        bc_prefetch_far(ahead + j * apart_bytes, 256);
                    ISA(tl1_steps)(p, apart_bytes, n_rows, t, bm, 4, sums);
                }
                for (; left; left--, p += 64, ahead += 64, t += step_tables) {
                    for (int j = 0; j < n_rows; j++)
                        bc_prefetch_far(ahead + j * apart_bytes, 64);
                    ISA(tl1_steps)(p, apart_bytes, n_rows, t, bm, 1, sums);
                }
            }
            for (int j = 0; j < n_rows; j++)
                ISA(tl1_add_rows)(out + r + j * apart, sums + j, bm);
        }
}

BC_INLINE void ISA(tl1_task)(const bc_matrix *w, int64_t row0, int64_t row1, const uint8_t *table, int bm, int32_t *out)
{
    const int64_t bytes = w->cols / 4, n = (row1 - row0) / w->tile_rows, half = n / 2 * w->tile_rows;
    int64_t row = row0;
    if (ISA(tl1_together) == 2)
        for (; row < row0 + half; row += w->tile_rows)
            ISA(tl1_rows)(w->data + row * bytes, 2, half, w, table, bm, out + (row - row0));
    for (row += row - row0; row < row1; row += w->tile_rows)
        ISA(tl1_rows)(w->data + row * bytes, 1, 0, w, table, bm, out + (row - row0));
}

static void ISA(tl1_gemv)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, const uint8_t *table,
                          int32_t *out)
{
    (void)q, (void)q_sum;
    memset(out, 0, (size_t)(row1 - row0) * sizeof *out);
    if (w->micro_rows == 32)
        ISA(tl1_task)(w, row0, row1, table, 32, out);
    else
        ISA(tl1_task)(w, row0, row1, table, 64, out);
}
