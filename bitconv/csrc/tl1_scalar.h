/* TL1 in portable C. A byte holds two pairs of columns of one row, first in the high nibble: 3*w0 + w1 + 4 in 0..8.
 *
 * The matrix is cut into tiles of BM rows x BK columns, a tile into row blocks of bm rows, a row block into steps of
 * by = 256/bm columns; a step is [16 rows][4 columns] bytes of 16 rows, row groups outermost.
 */

/* where the byte of row r and columns c..c+3 lies */
static inline int64_t tl1_at(const bc_matrix *w, int64_t r, int64_t c)
{
    const int64_t bm_tile = w->tile_rows, bk = w->tile_cols, bm = w->micro_rows, by = 256 / bm;
    return (r / bm_tile * bm_tile * w->cols + c / bk * bk * bm_tile + r % bm_tile / bm * bm * bk + c % bk / by * by * bm +
            r % bm / 16 * 16 * by + c % by / 4 * 64) / 4 + r % 16;
}

static inline int32_t tl1_code(const bc_matrix *w, int64_t r, int64_t c)
{
    const int32_t byte = w->data[tl1_at(w, r, c)], pair = c % 4 < 2 ? byte >> 4 : byte & 15;
    return c % 2 ? pair % 3 : pair / 3;
}

static void tl1_gemv_scalar(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                            const uint8_t *table, int32_t *out)
{
    (void)table;
    for (int64_t r = row0; r < row1; r++) {
        int32_t sum = 0;
        for (int64_t c = 0; c < w->cols; c++)
            sum += tl1_code(w, r, c) * q[c];
        out[r - row0] = sum - q_sum;
    }
}

static void tl1_panel_scalar(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    for (int64_t i = 0; i < BC_PANEL_ROWS; i++)
        for (int64_t k = k0; k < k1; k++)
            panel[bc_panel_at(i, k - k0, k1 - k0)] = (uint8_t)tl1_code(w, bc_min(row0 + i, w->rows - 1), k);
}

static int64_t tl_row_step(const bc_matrix *w) { return w->tile_rows; }

/* 32 rows of a row block are contiguous within a tile of columns */
static void tl1_prefetch(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, int64_t i, int far)
{
    if (i % 4 == 0) /* the divisions of tl1_at take longer than the fetches */
        bc_fetch(w->data + tl1_at(w, bc_min(row0, w->rows - 1), k0 + (k1 - k0) * i / 32 / 16 * 16), (k1 - k0) * w->micro_rows / 32, far);
}

/* What is read before fetching ahead takes effect, 256 columns, of at most 128 rows, or the fetches alone would take long; where
 * there are two rows of tiles, half as much of the first of each half, which may be read together. */
static void tl1_begin(const bc_matrix *w, int64_t row0, int64_t row1)
{
    const int64_t half = (row1 - row0) / w->tile_rows / 2 * w->tile_rows, bytes = bc_min(w->tile_rows, 128) * bc_min(w->cols, 256) / 4;
    bc_prefetch_far(w->data + tl1_at(w, row0, 0), half ? bytes / 2 : bytes);
    if (half)
        bc_prefetch_far(w->data + tl1_at(w, row0 + half, 0), bytes / 2);
}
