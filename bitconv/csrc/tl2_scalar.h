/* TL2 in portable C. The first threeK = K/BK*BK columns are triples, the rest pairs as in TL1.
 *
 *   nibbles  of triples |t|, t = 9*w0 + 3*w1 + w2; a byte holds columns c..c+2 (high) and c+3..c+5 of one row, 32 rows
 *            side by side with rows 8..15 and 16..23 exchanged
 *   signs    of 8 triples of 32 rows: 16 words, word w bit 15 - 2q - h is the sign of triple q of row 16h + w
 *   pairs    a byte holds columns c, c+1 (high) and c+2, c+3, 32 rows side by side in the same order
 *
 * Each section is cut into tiles of BM rows x BK (pairs: 32) columns and those into row blocks of 32.
 */

static inline int64_t tl2_three_k(const bc_matrix *w) { return w->cols / w->tile_cols * w->tile_cols; }

/* the place of a row among 32 that lie side by side, and the row of a place */
static inline int64_t tl2_place(int64_t r) { return r % 32 / 8 == 1 ? r % 32 + 8 : r % 32 / 8 == 2 ? r % 32 - 8 : r % 32; }

/* weights (row block x columns) that come before row r, column c of a section of n columns in tiles of bk */
static inline int64_t tl2_before(const bc_matrix *w, int64_t r, int64_t c, int64_t n, int64_t bk)
{
    return r / w->tile_rows * w->tile_rows * n + c / bk * bk * w->tile_rows + r % w->tile_rows / 32 * 32 * bk;
}

static inline int64_t tl2_nibbles_at(const bc_matrix *w, int64_t r, int64_t c)
{
    return tl2_before(w, r, c, tl2_three_k(w), w->tile_cols) / 6 + c % w->tile_cols / 6 * 32;
}

static inline int64_t tl2_signs_at(const bc_matrix *w, int64_t r, int64_t c)
{
    const int64_t three_k = tl2_three_k(w);
    return w->rows * three_k / 6 + tl2_before(w, r, c, three_k, w->tile_cols) / 24 + c % w->tile_cols / 24 * 32;
}

/* c counts from the first pair */
static inline int64_t tl2_pairs_at(const bc_matrix *w, int64_t r, int64_t c)
{
    const int64_t three_k = tl2_three_k(w);
    return w->rows * three_k / 6 + w->rows * three_k / 24 + tl2_before(w, r, c, w->cols - three_k, 32) / 4 + c % 32 / 4 * 32;
}

static inline int32_t tl2_code(const bc_matrix *w, int64_t r, int64_t c)
{
    static const int32_t power[3] = {9, 3, 1};
    const int64_t three_k = tl2_three_k(w), place = tl2_place(r);
    if (c >= three_k) {
        c -= three_k;
        const int32_t byte = w->data[tl2_pairs_at(w, r, c) + place], pair = c % 4 < 2 ? byte >> 4 : byte & 15;
        return c % 2 ? pair % 3 : pair / 3;
    }
    const int32_t byte = w->data[tl2_nibbles_at(w, r, c) + place], magnitude = c % 6 < 3 ? byte >> 4 : byte & 15;
    const uint8_t *word = w->data + tl2_signs_at(w, r, c) + r % 16 * 2; /* little-endian */
    const int32_t negative = (word[0] | word[1] << 8) >> (15 - 2 * (c % 24 / 3) - r % 32 / 16) & 1;
    return ((negative ? 13 - magnitude : 13 + magnitude) / power[c % 3]) % 3;
}

static void tl2_gemv_scalar(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,
                            const uint8_t *table, int32_t *out)
{
    (void)table;
    for (int64_t r = row0; r < row1; r++) {
        int32_t sum = 0;
        for (int64_t c = 0; c < w->cols; c++)
            sum += tl2_code(w, r, c) * q[c];
        out[r - row0] = sum - q_sum;
    }
}

static void tl2_panel_scalar(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    for (int64_t i = 0; i < BC_PANEL_ROWS; i++)
        for (int64_t k = k0; k < k1; k++)
            panel[bc_panel_at(i, k - k0, k1 - k0)] = (uint8_t)tl2_code(w, bc_min(row0 + i, w->rows - 1), k);
}

/* a panel ends with a tile, so that it never mixes triples and pairs */
static int64_t tl2_panel_end(const bc_matrix *w, int64_t k0)
{
    const int64_t three_k = tl2_three_k(w), tiles = BC_PANEL_COLS / w->tile_cols;
    return k0 < three_k ? bc_min(k0 + tiles * w->tile_cols, three_k) : w->cols;
}

static void tl2_prefetch(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, int64_t i, int far)
{
    const int64_t row = bc_min(row0, w->rows - 1) / 32 * 32;
    if (k0 >= tl2_three_k(w)) {
        if (i % 4 == 0 && k0 + i * 8 < k1)
            bc_fetch(w->data + tl2_pairs_at(w, row, k0 - tl2_three_k(w) + i * 8), 256, far);
        return;
    }
    for (int64_t k = k0 + i * w->tile_cols; k < k1; k += 32 * w->tile_cols) { /* tile by tile */
        bc_fetch(w->data + tl2_nibbles_at(w, row, k), w->tile_cols / 6 * 32, far);
        bc_fetch(w->data + tl2_signs_at(w, row, k), w->tile_cols / 24 * 32, far);
    }
}

static void tl2_begin(const bc_matrix *w, int64_t row0, int64_t row1)
{
    (void)row1;
    bc_prefetch(w->data + tl2_nibbles_at(w, row0, 0), BC_FAR);
    bc_prefetch(w->data + tl2_signs_at(w, row0, 0), BC_FAR / 4);
}
