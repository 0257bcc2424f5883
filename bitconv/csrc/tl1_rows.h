/* The order in which a TL1 product reads its tiles, for instruction sets with ISA(tl1_block): no include guard.
 *
 * A row of tiles is read as BC_STREAMS runs of tiles that lie far apart, row block after row block. A row block keeps 64
 * int16 sums, which hold 256 columns: both lanes of bm = 32 together, or one of bm = 64, are at most 128 * 254 = 32512.
 */
BC_INLINE void ISA(tl1_rows)(const uint8_t *data, const bc_matrix *w, const uint8_t *table, int bm, int32_t *out)
{
    _Alignas(64) int16_t sums[BC_MAX_ROWS / 32 * 64];
    const int64_t bk = w->tile_cols, rows = w->tile_rows, run = tl_stream_tiles(w->cols, bk), tiles = w->cols / bk;
    int64_t summed = 0;
    memset(sums, 0, (size_t)(rows / bm * 64) * sizeof *sums);
    for (int64_t first = 0; first < run; first++) {
        const int64_t n = (tiles - first + run - 1) / run;
        for (int64_t part = 0; part < n;) {
            const int64_t fit = bc_min(n - part, (256 - summed) / bk);
            for (int64_t r = 0; r < rows; r += bm)
                for (int64_t i = part; i < part + fit; i++) {
                    const int64_t tile = first + i * run;
                    ISA(tl1_block)(data + (tile * rows + r) * bk / 4, table + tile * bk * 16, bk, bm, sums + r / bm * 64);
                }
            summed += fit * bk, part += fit;
            if (summed + bk > 256 || (part == n && first + 1 == run)) {
                for (int64_t r = 0; r < rows; r += bm)
                    tl1_widen_avx2(sums + r / bm * 64, bm, out + r);
                summed = 0;
            }
        }
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
