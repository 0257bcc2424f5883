/* The order in which a TL2 product reads its tiles, for instruction sets with ISA(tl2_block) and ISA(tl2_triple_bytes), the
 * bytes of tables a triple: no include guard. */
static void ISA(tl2_gemv)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, const uint8_t *table,
                          int32_t *out)
{
    (void)q, (void)q_sum;
    const int64_t bk = w->tile_cols, three_k = tl2_three_k(w);
    memset(out, 0, (size_t)(row1 - row0) * sizeof *out);
    for (int64_t first = row0; first < row1; first += w->tile_rows) {
        const uint8_t *nibbles = w->data + tl2_nibbles_at(w, first, 0), *words = w->data + tl2_signs_at(w, first, 0);
        for (int64_t k = 0; k < three_k; k += bk) /* blocks lie one after another: 32 rows x BK columns */
            for (int64_t r = 0; r < w->tile_rows; r += 32, nibbles += 16 * bk / 3, words += 4 * bk / 3)
                ISA(tl2_block)(nibbles, words, table + k / 3 * ISA(tl2_triple_bytes), bk, out + (first - row0 + r));
        tl2_pairs_avx2(w, first, table + three_k / 3 * ISA(tl2_triple_bytes), out + (first - row0));
    }
}
