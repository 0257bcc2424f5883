/* Attention over a block-transposed cache; a part of float_kernels.h.
 *
 * Keys lie dimension by dimension in blocks of 32, so the scores of 32 keys are 32 lanes and need no horizontal sum;
 * values lie key by key, so a weighted sum of values needs none either.
 */

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
