/* Products with dense weights, the head above all; a part of float_kernels.h. */

#include "float_q6_k.h"

/* n_r weight rows, row_step bytes apart, against n_t tokens; one of the two is 1 and the other at most 4 */
BC_INLINE void ISA(dense_step)(const uint8_t *row, int64_t row_step, int n_r, int64_t i, int32_t type, const float *x,
                               int64_t ldx, int n_t, VF acc[][NV])
{
    for (int r = 0; r < n_r; r++) {
        VF w[NV];
        ISA(load_32)(row + r * row_step, i, 0, type, w);
        for (int v = 0; v < NV; v++)
            for (int t = 0; t < n_t; t++)
                acc[r + t][v] = ISA(vf_fma)(w[v], ISA(vf_load)(x + t * ldx + i + v * VL), acc[r + t][v]);
    }
}

BC_INLINE void ISA(dense_dot)(const uint8_t *row, int64_t row_step, int n_r, int32_t type, int64_t cols, const float *x,
                              int64_t ldx, int n_t, float *sum)
{
    VF acc[4][NV];
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
            ISA(dense_step)((const uint8_t *)tail, 0, 1, 0, BC_F32, x + whole, ldx, n_t, acc + r);
        }
    for (int i = 0; i < n_r * n_t; i++)
        sum[i] = ISA(fold)(acc[i]);
}

enum { ISA(streams) = NV > 2 ? 2 : 4 }; /* rows read together in decode: their sums must fit the registers */

BC_INLINE void ISA(dense_rows)(const bc_matrix *w, int32_t type, int64_t row0, int64_t row1, const float *x, int64_t ldx,
                               int64_t n, float *out, int64_t ldo)
{
    const int64_t bytes = bc_dense_bytes(type, w->cols), part = (row1 - row0) / ISA(streams);
    const uint8_t *rows = w->data + row0 * bytes;
    float sum[4];
    for (int64_t t = 0; t < n; t += n - t >= 3 ? 3 : 1) {
        const float *xt = x + t * ldx;
        float *y = out + t * ldo;
        int64_t r = 0;
        if (n - t >= 3) {
            for (; r < row1 - row0; r++) {
                ISA(dense_dot)(rows + r * bytes, 0, 1, type, w->cols, xt, ldx, 3, sum);
                for (int i = 0; i < 3; i++)
                    y[i * ldo + r] = sum[i];
            }
            continue;
        }
        for (; r < part; r++) { /* far-apart streams fill the memory pipeline, as in the ternary kernels */
            ISA(dense_dot)(rows + r * bytes, part * bytes, ISA(streams), type, w->cols, xt, ldx, 1, sum);
            for (int i = 0; i < ISA(streams); i++)
                y[i * part + r] = sum[i];
        }
        for (r = part * ISA(streams); r < row1 - row0; r++)
            ISA(dense_dot)(rows + r * bytes, 0, 1, type, w->cols, xt, ldx, 1, y + r);
    }
}

static void ISA(dense)(const bc_matrix *w, int64_t row0, int64_t row1, const float *x, int64_t ldx, int64_t n, float *out,
                       int64_t ldo, const uint8_t *digits)
{
    switch (w->type) {
    case BC_F32: ISA(dense_rows)(w, BC_F32, row0, row1, x, ldx, n, out, ldo); break;
    case BC_F16: ISA(dense_rows)(w, BC_F16, row0, row1, x, ldx, n, out, ldo); break;
    case BC_BF16: ISA(dense_rows)(w, BC_BF16, row0, row1, x, ldx, n, out, ldo); break;
    case BC_Q8_0: ISA(dense_rows)(w, BC_Q8_0, row0, row1, x, ldx, n, out, ldo); break;
    default: ISA(q6_k_rows)(w, row0, row1, digits, n, out, ldo); break;
    }
}
