/* Products with dense weights, the head above all; a part of float_kernels.h. */

#include "float_q6_k.h"

/* Rows of a step against one token or some, and tokens of a pass: the sums must fit the registers, and the tokens' rows L1. */
enum { ISA(dense_streams) = NV > 2 ? 2 : 4, ISA(dense_some) = NV > 2 ? 1 : 4, ISA(dense_tokens) = NV > 2 ? 3 : 2 };

/* n_r weight rows, row_step bytes apart, against n_t tokens: sums of row r and token t in acc[r * n_t + t] */
BC_INLINE void ISA(dense_step)(const uint8_t *row, int64_t row_step, int n_r, int64_t i, int32_t type, const float *x,
                               int64_t ldx, int n_t, VF acc[][NV])
{
    VF w[BC_STREAMS][NV];
    for (int r = 0; r < n_r; r++)
        ISA(load_32)(row + r * row_step, i, 0, type, w[r]);
    for (int t = 0; t < n_t; t++)
        for (int v = 0; v < NV; v++) {
            const VF a = ISA(vf_load)(x + t * ldx + i + v * VL);
            for (int r = 0; r < n_r; r++)
                acc[r * n_t + t][v] = ISA(vf_fma)(w[r][v], a, acc[r * n_t + t][v]);
        }
}

BC_INLINE void ISA(dense_dot)(const uint8_t *row, int64_t row_step, int n_r, int32_t type, int64_t cols, const float *x,
                              int64_t ldx, int n_t, float *sum)
{
    VF acc[8][NV];
    for (int i = 0; i < n_r * n_t; i++)
        for (int v = 0; v < NV; v++)
            acc[i][v] = ISA(vf_set1)(0.0f);
    const int64_t whole = cols / BC_LANES * BC_LANES;
    for (int64_t i = 0; i < whole; i += BC_LANES)
        ISA(dense_step)(row, row_step, n_r, i, type, x, ldx, n_t, acc);
    if (whole < cols)
        for (int r = 0; r < n_r; r++) {
            float tail[BC_LANES] = {0};
            ISA(widen)(row + r * row_step + whole * (type == BC_F32 ? 4 : 2), type, cols - whole, tail);
            ISA(dense_step)((const uint8_t *)tail, 0, 1, 0, BC_F32, x + whole, ldx, n_t, acc + r * n_t);
        }
    for (int i = 0; i < n_r * n_t; i++)
        sum[i] = ISA(fold)(acc[i]);
}

/* all rows against n_t tokens, from places that lie far apart, which fill the memory pipeline as in the ternary kernels */
BC_INLINE void ISA(dense_rows)(const uint8_t *rows, int64_t n_rows, int32_t type, int64_t cols, const float *x, int64_t ldx, int n_t,
                               float *out, int64_t ldo)
{
    const int n_r = n_t == 1 ? ISA(dense_streams) : ISA(dense_some);
    const int64_t bytes = bc_dense_bytes(type, cols), part = n_rows / n_r;
    float sum[8];
    for (int64_t i = 0; i < part; i++) {
        ISA(dense_dot)(rows + i * bytes, part * bytes, n_r, type, cols, x, ldx, n_t, sum);
        for (int r = 0; r < n_r; r++)
            for (int t = 0; t < n_t; t++)
                out[t * ldo + r * part + i] = sum[r * n_t + t];
    }
    for (int64_t row = part * n_r; row < n_rows; row++) {
        ISA(dense_dot)(rows + row * bytes, 0, 1, type, cols, x, ldx, n_t, sum);
        for (int t = 0; t < n_t; t++)
            out[t * ldo + row] = sum[t];
    }
}

BC_INLINE void ISA(dense_passes)(const bc_matrix *w, int32_t type, int64_t row0, int64_t row1, const float *x, int64_t ldx, int64_t n,
                                 float *out, int64_t ldo)
{
    const uint8_t *rows = w->data + row0 * bc_dense_bytes(type, w->cols);
    int64_t t = 0;
    for (; n - t >= ISA(dense_tokens); t += ISA(dense_tokens))
        ISA(dense_rows)(rows, row1 - row0, type, w->cols, x + t * ldx, ldx, ISA(dense_tokens), out + t * ldo, ldo);
    for (; t < n; t++)
        ISA(dense_rows)(rows, row1 - row0, type, w->cols, x + t * ldx, ldx, 1, out + t * ldo, ldo);
}

static void ISA(dense)(const bc_matrix *w, int64_t row0, int64_t row1, const float *x, int64_t ldx, int64_t n, float *out,
                       int64_t ldo, const uint8_t *digits)
{
    switch (w->type) {
    case BC_F32: ISA(dense_passes)(w, BC_F32, row0, row1, x, ldx, n, out, ldo); break;
    case BC_F16: ISA(dense_passes)(w, BC_F16, row0, row1, x, ldx, n, out, ldo); break;
    case BC_BF16: ISA(dense_passes)(w, BC_BF16, row0, row1, x, ldx, n, out, ldo); break;
    case BC_Q8_0: ISA(dense_passes)(w, BC_Q8_0, row0, row1, x, ldx, n, out, ldo); break;
    default: ISA(q6_k_rows)(w, row0, row1, digits, n, out, ldo); break;
    }
}
