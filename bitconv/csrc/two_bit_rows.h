/* The rows of I2_S and TQ2_0: which are read together, and which tokens share them; included by each instruction set after its
 *
 *   ISA(two_bit_dot)(row, n_rows, cols, q, sum, is_i2_s)       sums of n_rows rows (1 or 4) that start at row[i]
 *   ISA(two_bit_few)(row, cols, q, ldq, n_t, sum, is_i2_s)     sums [n_t][4] of four rows and 2 to BC_FEW tokens
 *
 * Decode is bound by memory: every byte is read once, from four places that lie pages apart, because one or two streams (or
 * adjacent rows) do not fill the memory pipeline. No include guard: each instruction set includes this file.
 */

/* all rows of a task and n_t tokens: out [n_t][ldo] */
BC_INLINE void ISA(two_bit_rows)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int64_t ldq, const int32_t *q_sum,
                                 const int n_t, int32_t *out, int64_t ldo, int is_i2_s)
{
    const int64_t bytes = bc_two_bit_at(w->cols, is_i2_s), part = (row1 - row0) / BC_STREAMS;
    const uint8_t *base = w->data + row0 * bytes;
    int32_t sum[BC_FEW * BC_STREAMS];
    for (int64_t r = 0; r < part; r++) {
        const uint8_t *row[BC_STREAMS];
        for (int i = 0; i < BC_STREAMS; i++)
            row[i] = base + (i * part + r) * bytes;
        if (n_t == 1)
            ISA(two_bit_dot)(row, BC_STREAMS, w->cols, q, sum, is_i2_s);
        else
            ISA(two_bit_few)(row, w->cols, q, ldq, n_t, sum, is_i2_s);
        for (int t = 0; t < n_t; t++)
            for (int i = 0; i < BC_STREAMS; i++)
                out[t * ldo + i * part + r] = sum[t * BC_STREAMS + i] - q_sum[t];
    }
    for (int64_t r = BC_STREAMS * part; r < row1 - row0; r++)
        for (int t = 0; t < n_t; t++) {
            const uint8_t *row = base + r * bytes;
            ISA(two_bit_dot)(&row, 1, w->cols, q + t * ldq, sum, is_i2_s);
            out[t * ldo + r] = sum[0] - q_sum[t];
        }
}

/* gemv and few of one type */
#define BC_TWO_BIT_ROWS(type, is_i2_s)                                                                                       \
    static void ISA(type##_gemv)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum,             \
                                 const uint8_t *table, int32_t *out)                                                         \
    {                                                                                                                        \
        (void)table;                                                                                                         \
        ISA(two_bit_rows)(w, row0, row1, q, 0, &q_sum, 1, out, 0, is_i2_s);                                                  \
    }                                                                                                                        \
    static void ISA(type##_few)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int64_t ldq,                \
                                const int32_t *q_sum, int n, int32_t *out, int64_t ldo)                                      \
    {                                                                                                                        \
        _Static_assert(BC_FEW == 4, "each number of tokens has a loop of its own");                                          \
        switch (n) {                                                                                                         \
        case 2: ISA(two_bit_rows)(w, row0, row1, q, ldq, q_sum, 2, out, ldo, is_i2_s); break;                                \
        case 3: ISA(two_bit_rows)(w, row0, row1, q, ldq, q_sum, 3, out, ldo, is_i2_s); break;                                \
        default: ISA(two_bit_rows)(w, row0, row1, q, ldq, q_sum, 4, out, ldo, is_i2_s);                                      \
        }                                                                                                                    \
    }
