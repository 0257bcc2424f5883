/* The float kernels, written once over the SIMD vocabulary and compiled per instruction set through ISA(name).
 *
 * Elementwise steps round as plain IEEE operations do; reductions follow the virtual lanes of kernel_api.h. So every
 * instruction set gives the same bits. No include guard: each ISA header includes this file.
 */

#define NV (BC_LANES / VL) /* vectors that hold the virtual lanes */

/* 32 floats of x from i on, padded with zeros through tmp past n */
BC_INLINE const float *ISA(lanes_at)(const float *x, int64_t i, int64_t n, float *tmp)
{
    if (n - i >= BC_LANES)
        return x + i;
    memset(tmp, 0, BC_LANES * sizeof *tmp);
    memcpy(tmp, x + i, (size_t)(n - i) * sizeof *tmp);
    return tmp;
}

BC_INLINE float ISA(fold)(VF *acc)
{
    for (int half = NV / 2; half > 0; half /= 2)
        for (int v = 0; v < half; v++)
            acc[v] = ISA(vf_add)(acc[v], acc[v + half]);
    return ISA(vf_fold)(acc[0]);
}

/* e^x: 2^n * e^r with |r| <= ln(2)/2; the Taylor sum to r^7 is within 1e-8 of e^r. NaN stays NaN. */
BC_INLINE VF ISA(vf_exp)(VF x)
{
    const VF low = ISA(vf_set1)(-105.0f), high = ISA(vf_set1)(90.0f); /* past these the result is 0 or infinity */
    const VF clamped = ISA(vf_min)(ISA(vf_max)(x, low), high);
    const VF n = ISA(vf_round)(ISA(vf_mul)(clamped, ISA(vf_set1)(1.44269504f)));
    VF r = ISA(vf_fma)(n, ISA(vf_set1)(-0.693145751953125f), clamped); /* ln(2) in two parts: n times the first is exact */
    r = ISA(vf_fma)(n, ISA(vf_set1)(-1.42860677e-06f), r);
    VF p = ISA(vf_set1)(1.0f / 5040);
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(1.0f / 720));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(1.0f / 120));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(1.0f / 24));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(1.0f / 6));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(0.5f));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(1.0f));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(1.0f));
    const VF n1 = ISA(vf_round)(ISA(vf_mul)(n, ISA(vf_set1)(0.5f))), n2 = ISA(vf_sub)(n, n1); /* 2^n may be subnormal */
    const VF y = ISA(vf_mul)(ISA(vf_mul)(p, ISA(vf_exp2i)(n1)), ISA(vf_exp2i)(n2));
    return ISA(vf_if_nan)(x, x, y);
}

static void ISA(exp)(const float *x, int64_t n, float *y)
{
    for (int64_t i = 0; i < n; i += BC_LANES) {
        float tmp[BC_LANES], result[BC_LANES];
        const float *p = ISA(lanes_at)(x, i, n, tmp);
        for (int v = 0; v < NV; v++)
            ISA(vf_store)(result + v * VL, ISA(vf_exp)(ISA(vf_load)(p + v * VL)));
        memcpy(y + i, result, (size_t)bc_min(n - i, BC_LANES) * sizeof *y);
    }
}

static float ISA(norm)(const float *x, const float *g, float eps, int64_t n, float *y)
{
    float tmp[BC_LANES];
    VF acc[NV];
    for (int v = 0; v < NV; v++)
        acc[v] = ISA(vf_set1)(0.0f);
    for (int64_t i = 0; i < n; i += BC_LANES) {
        const float *p = ISA(lanes_at)(x, i, n, tmp);
        for (int v = 0; v < NV; v++) {
            const VF a = ISA(vf_load)(p + v * VL);
            acc[v] = ISA(vf_fma)(a, a, acc[v]);
        }
    }
    const float sum = ISA(fold)(acc);
    const float inverse = 1.0f / sqrtf(sum / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * inverse * g[i];
    for (int64_t i = n; i < bc_round_up(n, BC_LANES); i++)
        y[i] = 0.0f;
    return sum;
}

/* scale = 127 / max|x| in two roundings, as torch evaluates it; codes are rounded half to even */
static int ISA(quantise)(const float *x, int64_t n, int64_t n_pad, int8_t *q, float *scale, int32_t *sum)
{
    float tmp[BC_LANES], lanes[VL];
    VF most = ISA(vf_set1)(1e-5f), wrong = ISA(vf_set1)(0.0f);
    for (int64_t i = 0; i < n; i += BC_LANES) {
        const float *p = ISA(lanes_at)(x, i, n, tmp);
        for (int v = 0; v < NV; v++) {
            const VF a = ISA(vf_load)(p + v * VL);
            wrong = ISA(vf_add)(wrong, ISA(vf_sub)(a, a)); /* 0 for a finite value, NaN for the others */
            most = ISA(vf_max)(ISA(vf_abs)(a), most);
        }
    }
    const float bad = ISA(vf_fold)(wrong);
    ISA(vf_store)(lanes, most);
    float m = lanes[0];
    for (int i = 1; i < VL; i++)
        m = lanes[i] > m ? lanes[i] : m;
    *sum = 0;
    if (bad != bad) {
        memset(q, 0, (size_t)n_pad);
        *scale = 1.0f;
        return 1;
    }
    *scale = (1.0f / m) * 127.0f;
    const VF s = ISA(vf_set1)(*scale);
    for (int64_t i = 0; i < n; i += BC_LANES) {
        int8_t codes[BC_LANES];
        const float *p = ISA(lanes_at)(x, i, n, tmp);
        for (int v = 0; v < NV; v++)
            *sum += ISA(vf_store_i8)(codes + v * VL, ISA(vf_round)(ISA(vf_mul)(ISA(vf_load)(p + v * VL), s)));
        memcpy(q + i, codes, (size_t)bc_min(n - i, BC_LANES));
    }
    memset(q + n, 0, (size_t)(n_pad - n));
    return 0;
}

static void ISA(finish)(const int32_t *sum, int64_t n, int32_t minus, float act_scale, float weight_scale,
                        const float *residual, float *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (float)(sum[i] - minus) / act_scale * weight_scale;
    if (residual)
        for (int64_t i = 0; i < n; i++)
            y[i] += residual[i];
}

/* the rows of the two products are padded to BC_LANES, so whole vectors are read and written */
static void ISA(silu_mul)(const float *gate, const float *up, int64_t n, float *y)
{
    const VF one = ISA(vf_set1)(1.0f), minus_one = ISA(vf_set1)(-1.0f);
    for (int64_t i = 0; i < n; i += VL) {
        const VF g = ISA(vf_load)(gate + i);
        const VF e = ISA(vf_exp)(ISA(vf_mul)(g, minus_one));
        ISA(vf_store)(y + i, ISA(vf_mul)(ISA(vf_div)(g, ISA(vf_add)(one, e)), ISA(vf_load)(up + i)));
    }
}

static void ISA(relu2_mul)(const float *gate, const float *up, int64_t n, float *y)
{
    const VF zero = ISA(vf_set1)(0.0f);
    for (int64_t i = 0; i < n; i += VL) {
        const VF g = ISA(vf_load)(gate + i), positive = ISA(vf_if_less)(g, zero, zero, g); /* keeps NaN */
        ISA(vf_store)(y + i, ISA(vf_mul)(ISA(vf_mul)(positive, positive), ISA(vf_load)(up + i)));
    }
}

static void ISA(rope)(float *head, const float *cos, const float *sin, int32_t head_dim, int32_t interleaved)
{
    const int32_t half = head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        float *first = interleaved ? head + 2 * i : head + i, *second = interleaved ? first + 1 : first + half;
        const float a = *first, b = *second;
        *first = a * cos[i] - b * sin[i];
        *second = b * cos[i] + a * sin[i];
    }
}

/* keys are stored dimension by dimension within a block, so that the scores of 32 keys need no horizontal sum */
static void ISA(store_kv)(const float *k, const float *v, int32_t head_dim, int32_t v_stride, int32_t type, int64_t key,
                          void *k_cache, void *v_cache)
{
    const int64_t k_at = key / BC_KEYS * head_dim * BC_KEYS + key % BC_KEYS, v_at = key * v_stride;
    if (type == BC_F32) {
        float *keys = (float *)k_cache + k_at;
        for (int32_t d = 0; d < head_dim; d++)
            keys[(int64_t)d * BC_KEYS] = k[d];
        memcpy((float *)v_cache + v_at, v, (size_t)head_dim * sizeof *v);
        return;
    }
    uint16_t *keys = (uint16_t *)k_cache + k_at, *values = (uint16_t *)v_cache + v_at;
    int32_t d = 0;
    for (; d + VL <= head_dim; d += VL) {
        uint16_t halves[VL];
        ISA(vf_store_f16)(halves, ISA(vf_load)(k + d));
        for (int i = 0; i < VL; i++)
            keys[(int64_t)(d + i) * BC_KEYS] = halves[i];
        ISA(vf_store_f16)(values + d, ISA(vf_load)(v + d));
    }
    for (; d < head_dim; d++) {
        keys[(int64_t)d * BC_KEYS] = bc_f32_to_f16(k[d]);
        values[d] = bc_f32_to_f16(v[d]);
    }
}

BC_INLINE VF ISA(load_as)(const void *p, int64_t i, int32_t type)
{
    if (type == BC_F32)
        return ISA(vf_load)((const float *)p + i);
    if (type == BC_F16)
        return ISA(vf_load_f16)((const uint16_t *)p + i);
    return ISA(vf_load_bf16)((const uint16_t *)p + i);
}

/* Columns i..i+31 of a row as float32, exactly: an f16 scale times an 8-bit code, or times 8-bit and 6-bit ones, has at
 * most 24 bits. group = i / 32 % 8, apart so that it can be a constant.
 *   Q8_0  34 bytes for 32 columns:   f16 scale | 32 int8
 *   Q6_K  210 bytes for 256 columns: 128 low nibbles | 64 high bit pairs | 16 int8 scales, one for 16 columns | f16 scale
 */
BC_INLINE void ISA(load_32)(const uint8_t *row, int64_t i, int group, int32_t type, VF w[NV])
{
    uint16_t half;
    if (type == BC_Q8_0) {
        const uint8_t *block = row + i / 32 * 34;
        memcpy(&half, block, 2);
        const VF scale = ISA(vf_set1)(bc_f16_to_f32(half));
        for (int v = 0; v < NV; v++)
            w[v] = ISA(vf_mul)(scale, ISA(vf_load_i8)((const int8_t *)block + 2 + v * VL));
    } else if (type == BC_Q6_K) {
        const uint8_t *block = row + i / 256 * 210, *low = block + group / 4 * 64 + group % 2 * 32;
        const uint8_t *high = block + 128 + group / 4 * 32;
        const int8_t *scales = (const int8_t *)block + 192 + group * 2;
        int8_t codes[32];
        memcpy(&half, block + 208, 2);
        for (int j = 0; j < 32; j++)
            codes[j] = (int8_t)((low[j] >> group % 4 / 2 * 4 & 15) + ((high[j] >> group % 4 * 2 & 3) << 4) - 32);
        const float d = bc_f16_to_f32(half);
        for (int v = 0; v < NV; v++)
            w[v] = ISA(vf_mul)(ISA(vf_set1)(d * scales[v * VL / 16]), ISA(vf_load_i8)(codes + v * VL));
    } else {
        for (int v = 0; v < NV; v++)
            w[v] = ISA(load_as)(row, i + v * VL, type);
    }
}

static void ISA(widen)(const void *src, int32_t type, int64_t n, float *dst)
{
    int64_t i = 0;
    for (; i + BC_LANES <= n; i += BC_LANES) {
        VF w[NV];
        ISA(load_32)(src, i, (int)(i / 32 % 8), type, w);
        for (int v = 0; v < NV; v++)
            ISA(vf_store)(dst + i + v * VL, w[v]);
    }
    for (; i < n; i++) { /* plain numbers only: the others come in whole blocks */
        if (type == BC_F32)
            dst[i] = ((const float *)src)[i];
        else if (type == BC_F16)
            dst[i] = bc_f16_to_f32(((const uint16_t *)src)[i]);
        else
            dst[i] = bc_bf16_to_f32(((const uint16_t *)src)[i]);
    }
}

/* what a query carries from block to block of its keys */
typedef struct {
    float acc[BC_MAX_HEAD_DIM]; /* sum of weights * values, relative to e^best */
    float p[BC_KEYS];           /* the weights of one block */
    float best, correction;     /* the largest score so far; e^(the one before - this one) */
    VF total[NV];               /* sums of weights per lane */
} ISA(query);

/* acc[d ..] = acc * correction + sum over keys first.. of weight * value, in ascending order, for n_v vectors from d on */
BC_INLINE void ISA(add_values_at)(const bc_attention *a, ISA(query) *state, const float *correction, int n_q, int n_v, int32_t type,
                                  int64_t block, int32_t first, int32_t last, int32_t d)
{
    VF sum[BC_QUERIES][NV];
    for (int q = 0; q < n_q; q++)
        for (int v = 0; v < n_v; v++)
            sum[q][v] = ISA(vf_mul)(ISA(vf_load)(state[q].acc + d + v * VL), ISA(vf_set1)(correction[q]));
    for (int32_t key = first; key < last; key++)
        for (int v = 0; v < n_v; v++) {
            const VF value = ISA(load_as)(a->v, (block + key) * a->v_stride + d + v * VL, type);
            for (int q = 0; q < n_q; q++)
                sum[q][v] = ISA(vf_fma)(ISA(vf_set1)(state[q].p[key]), value, sum[q][v]);
        }
    for (int q = 0; q < n_q; q++)
        for (int v = 0; v < n_v; v++)
            ISA(vf_store)(state[q].acc + d + v * VL, sum[q][v]);
}

BC_INLINE void ISA(add_values)(const bc_attention *a, ISA(query) *state, const float *correction, int n_q, int32_t type,
                               int64_t block, int32_t first, int32_t last)
{
    int32_t d = 0;
    for (; d + NV * VL <= a->v_stride; d += NV * VL)
        ISA(add_values_at)(a, state, correction, n_q, NV, type, block, first, last, d);
    for (; d < a->v_stride; d += VL)
        ISA(add_values_at)(a, state, correction, n_q, 1, type, block, first, last, d);
}

/* Scores of one query become weights; keys from n on are not there for it, whatever memory holds. */
BC_INLINE void ISA(weigh)(ISA(query) *state, const VF *s, float scale, int32_t n)
{
    float most = state->best, *p = state->p, lanes[VL];
    for (int v = 0; v < NV; v++)
        ISA(vf_store)(p + v * VL, ISA(vf_mul)(s[v], ISA(vf_set1)(scale)));
    for (int i = n; i < BC_KEYS; i++)
        p[i] = -INFINITY;
    VF top = ISA(vf_load)(p);
    for (int v = 1; v < NV; v++)
        top = ISA(vf_max)(top, ISA(vf_load)(p + v * VL));
    ISA(vf_store)(lanes, top);
    for (int i = 0; i < VL; i++)
        most = lanes[i] > most ? lanes[i] : most;
    ISA(vf_store)(lanes, ISA(vf_exp)(ISA(vf_set1)(state->best - most)));
    state->correction = lanes[0];
    state->best = most;
    for (int v = 0; v < NV; v++) {
        const VF e = ISA(vf_exp)(ISA(vf_sub)(ISA(vf_load)(p + v * VL), ISA(vf_set1)(most)));
        ISA(vf_store)(p + v * VL, e);
        state->total[v] = ISA(vf_fma)(state->total[v], ISA(vf_set1)(state->correction), e);
    }
}

/* One block of 32 keys for n_q queries, each of which sees at least its first key: one step of the online softmax. A
 * query does the same steps in the same order whatever goes along with it. */
BC_INLINE void ISA(attend_block)(const bc_attention *a, int first_q, ISA(query) *state, int n_q, int32_t type, int32_t block)
{
    VF s[BC_QUERIES][NV];
    const float *query[BC_QUERIES], one[BC_QUERIES] = {1.0f, 1.0f, 1.0f};
    float correction[BC_QUERIES];
    for (int q = 0; q < n_q; q++) {
        query[q] = a->q[first_q + q];
        for (int v = 0; v < NV; v++)
            s[q][v] = ISA(vf_set1)(0.0f);
    }
    for (int32_t d = 0; d < a->head_dim; d++)
        for (int v = 0; v < NV; v++) {
            const VF k = ISA(load_as)(a->k, ((int64_t)block * a->head_dim) + (int64_t)d * BC_KEYS + v * VL, type);
            for (int q = 0; q < n_q; q++)
                s[q][v] = ISA(vf_fma)(ISA(vf_set1)(query[q][d]), k, s[q][v]);
        }
    const int32_t *n_keys = a->n_keys + first_q;
    for (int q = 0; q < n_q; q++) {
        ISA(weigh)(state + q, s[q], a->scale, (int32_t)bc_min(n_keys[q] - block, BC_KEYS));
        correction[q] = state[q].correction;
    }
    const int32_t shared = (int32_t)bc_min(n_keys[0] - block, BC_KEYS);
    ISA(add_values)(a, state, correction, n_q, type, block, 0, shared);
    for (int q = 1; q < n_q; q++) /* the last keys of later tokens; times one changes nothing */
        if (bc_min(n_keys[q] - block, BC_KEYS) > shared)
            ISA(add_values)(a, state + q, one, 1, type, block, shared, (int32_t)bc_min(n_keys[q] - block, BC_KEYS));
}

/* Online softmax over blocks of 32 keys from position 0. */
BC_INLINE void ISA(attend_n)(const bc_attention *a, int n_q, int32_t type)
{
    ISA(query) state[BC_QUERIES];
    for (int q = 0; q < n_q; q++) {
        memset(state[q].acc, 0, (size_t)a->v_stride * sizeof(float));
        state[q].best = -INFINITY;
        for (int v = 0; v < NV; v++)
            state[q].total[v] = ISA(vf_set1)(0.0f);
    }
    int32_t block = 0;
    for (; block < a->n_keys[0]; block += BC_KEYS)
        ISA(attend_block)(a, 0, state, n_q, type, block);
    for (int q = 1; q < n_q; q++) /* blocks that begin behind the first query */
        for (int32_t rest = block; rest < a->n_keys[q]; rest += BC_KEYS)
            ISA(attend_block)(a, q, state + q, 1, type, rest);
    for (int q = 0; q < n_q; q++) {
        const float sum = ISA(fold)(state[q].total);
        for (int32_t d = 0; d < a->head_dim; d++)
            a->out[q][d] = state[q].acc[d] / sum;
    }
}

BC_INLINE void ISA(attend_type)(const bc_attention *a, int32_t type)
{
    if (a->n_q == 3)
        ISA(attend_n)(a, 3, type);
    else if (a->n_q == 2)
        ISA(attend_n)(a, 2, type);
    else
        ISA(attend_n)(a, 1, type);
}

static void ISA(attend)(const bc_attention *a)
{
    if (a->cache_type == BC_F32)
        ISA(attend_type)(a, BC_F32);
    else
        ISA(attend_type)(a, BC_F16);
}

/* n_r weight rows, row_step bytes apart, against n_t tokens; one of the two is 1 and the other at most 4 */
BC_INLINE void ISA(dense_step)(const uint8_t *row, int64_t row_step, int n_r, int64_t i, int group, int32_t type, const float *x,
                               int64_t ldx, int n_t, VF acc[][NV])
{
    for (int r = 0; r < n_r; r++) {
        VF w[NV];
        ISA(load_32)(row + r * row_step, i, group, type, w);
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
    if (type == BC_Q6_K) {
        for (int64_t i = 0; i < whole; i += 8 * BC_LANES) {
            ISA(dense_step)(row, row_step, n_r, i, 0, type, x, ldx, n_t, acc);
            ISA(dense_step)(row, row_step, n_r, i + 32, 1, type, x, ldx, n_t, acc);
            ISA(dense_step)(row, row_step, n_r, i + 64, 2, type, x, ldx, n_t, acc);
            ISA(dense_step)(row, row_step, n_r, i + 96, 3, type, x, ldx, n_t, acc);
            ISA(dense_step)(row, row_step, n_r, i + 128, 4, type, x, ldx, n_t, acc);
            ISA(dense_step)(row, row_step, n_r, i + 160, 5, type, x, ldx, n_t, acc);
            ISA(dense_step)(row, row_step, n_r, i + 192, 6, type, x, ldx, n_t, acc);
            ISA(dense_step)(row, row_step, n_r, i + 224, 7, type, x, ldx, n_t, acc);
        }
    } else {
        for (int64_t i = 0; i < whole; i += BC_LANES)
            ISA(dense_step)(row, row_step, n_r, i, 0, type, x, ldx, n_t, acc);
    }
    if (whole < cols)
        for (int r = 0; r < n_r; r++) {
            float tail[BC_LANES] = {0};
            ISA(widen)(row + r * row_step + whole * (type == BC_F32 ? 4 : 2), type, cols - whole, tail);
            ISA(dense_step)((const uint8_t *)(tail - whole), 0, 1, whole, 0, BC_F32, x, ldx, n_t, acc + r);
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
                       int64_t ldo)
{
    switch (w->type) {
    case BC_F32: ISA(dense_rows)(w, BC_F32, row0, row1, x, ldx, n, out, ldo); break;
    case BC_F16: ISA(dense_rows)(w, BC_F16, row0, row1, x, ldx, n, out, ldo); break;
    case BC_BF16: ISA(dense_rows)(w, BC_BF16, row0, row1, x, ldx, n, out, ldo); break;
    case BC_Q8_0: ISA(dense_rows)(w, BC_Q8_0, row0, row1, x, ldx, n, out, ldo); break;
    default: ISA(dense_rows)(w, BC_Q6_K, row0, row1, x, ldx, n, out, ldo); break;
    }
}

/* the float half of an instruction set's row in the dispatch table */
#define BC_FLOAT_KERNELS                                                                                              \
    .norm = ISA(norm), .quantise = ISA(quantise), .silu_mul = ISA(silu_mul), .relu2_mul = ISA(relu2_mul),             \
    .exp = ISA(exp), .rope = ISA(rope), .store_kv = ISA(store_kv), .attend = ISA(attend), .dense = ISA(dense),        \
    .widen = ISA(widen), .finish = ISA(finish)
