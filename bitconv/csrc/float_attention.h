/* Attention over a block-transposed cache; a part of float_kernels.h.
 *
 * Keys lie dimension by dimension in blocks of 32, so the scores of 32 keys are 32 lanes and need no horizontal sum;
 * values lie key by key, so a weighted sum of values needs none either.
 *
 * A segment of BC_SEGMENT keys is a softmax of its own: scores, their maximum, weights 2^(score - maximum), and sums of
 * weights and of weighted values from zero on, in ascending order of keys. The segments of a query are merged in ascending
 * order. So a query does the same steps whatever goes along with it and whoever computes which segment.
 *
 * The bottleneck is the fused multiply-add with many queries and memory with few: tiles of BC_QUERY_TILE queries x 32 keys
 * (or dimensions) stay in registers, and the first tile leaves each block behind as float32 for the others.
 */

#define BC_ROWS 8 /* of a block, of keys or of values, that are converted at a time */
#define BC_QUERY_TILE (VL == 16 ? 6 : 3) /* with NV sums each: 12 of 16 or 32 registers, 24 of NEON's 32 */
#define BC_TOGETHER (NV < 8 ? 8 / NV : 1) /* blocks of keys, or groups of dimensions, of one query alone */

/* what the queries of one call have in common while a segment is computed */
typedef struct {
    float p[BC_QUERIES][BC_SEGMENT]; /* scores, then weights */
    _Alignas(64) float wide[BC_KEYS * BC_MAX_SHARED_DIM]; /* a block of keys or of values */
} ISA(segment);

/* numbers of a block from i on; those of Q8_0 are codes, to be multiplied by scales */
BC_INLINE VF ISA(load_cached)(const uint8_t *block, int32_t i, int32_t type, VF scale)
{
    if (type == BC_Q8_0) /* exact: an f16 scale has 11 bits */
        return ISA(vf_mul)(scale, ISA(vf_load_i8)((const int8_t *)block + i));
    return ISA(load_as)(block, i, type);
}

/* Fetch what lies `ahead` bytes behind row i. A row at a time: into L2 only so many misses can be under way, and a core drops
 * fetches that come faster; into L1 there are fewer. Many queries leave it out: arithmetic is their limit. */
BC_INLINE void ISA(fetch_ahead)(const uint8_t *rows, int32_t i, int32_t bytes, int64_t ahead, int few_queries)
{
    for (int32_t at = 0; few_queries && at < bytes && i * bytes % 64 == 0; at += 64)
        __builtin_prefetch(rows + i * bytes + at + ahead, 0, 2);
}

/* p[q][0..31] = scale / ln(2) * sum over d of query * key, in ascending order of d, for n_q queries and one block of keys */
BC_INLINE void ISA(score)(const bc_attention *a, const float *const *queries, int n_q, int32_t type, const uint8_t *keys,
                          float *wide, float *p)
{
    const int32_t size = bc_cached_size(type);
    const float *query[BC_QUERY_TILE];
    VF s[BC_QUERY_TILE][NV], scale[NV];
    for (int q = 0; q < n_q; q++) {
        query[q] = queries[q];
        for (int v = 0; v < NV; v++)
            s[q][v] = ISA(vf_set1)(0.0f);
    }
    for (int v = 0; v < NV; v++)
        scale[v] = ISA(vf_set1)(1.0f);
    for (int32_t first = 0; first < a->head_dim; first += BC_ROWS) {
        const int32_t n = (int32_t)bc_min(BC_ROWS, a->head_dim - first);
        if (type == BC_Q8_0 && first % BC_GROUP == 0) {
            for (int v = 0; v < NV; v++)
                scale[v] = ISA(vf_load_f16)((const uint16_t *)keys + v * VL);
            ISA(fetch_ahead)(keys, 0, BC_KEYS * 2, a->k_ahead, n_q < BC_QUERY_TILE && !wide);
            keys += BC_KEYS * 2;
        }
        const uint8_t *rows = keys;
        if (wide) {
            for (int32_t i = 0; i < n; i++)
                for (int v = 0; v < NV; v++)
                    ISA(vf_store)(wide + i * BC_KEYS + v * VL, ISA(load_cached)(keys, i * BC_KEYS + v * VL, type, scale[v]));
            rows = (const uint8_t *)wide;
            wide += n * BC_KEYS;
        }
        for (int32_t i = 0; i < n; i++) {
            ISA(fetch_ahead)(rows, i, BC_KEYS * size, a->k_ahead, n_q < BC_QUERY_TILE && !wide);
            for (int v = 0; v < NV; v++) {
                const VF k = ISA(load_cached)(rows, i * BC_KEYS + v * VL, wide ? BC_F32 : type, scale[v]);
                for (int q = 0; q < n_q; q++)
                    s[q][v] = ISA(vf_fma)(ISA(vf_set1)(query[q][first + i]), k, s[q][v]);
            }
        }
        keys += n * BC_KEYS * size;
    }
    for (int q = 0; q < n_q; q++)
        for (int v = 0; v < NV; v++)
            ISA(vf_store)(p + q * BC_SEGMENT + v * VL, ISA(vf_mul)(s[q][v], ISA(vf_set1)(a->scale * 1.44269504f)));
}

/* 2^x for x <= 0, 2^-126 from there on: a polynomial within 1e-9 of 2^r, |r| <= 1/2, which is 1 at 0. NaN stays NaN. */
BC_INLINE VF ISA(vf_exp2)(VF x)
{
    const VF lowest = ISA(vf_set1)(-126.0f), clamped = ISA(vf_max)(lowest, x);
    const VF n = ISA(vf_round)(clamped), r = ISA(vf_sub)(clamped, n);
    VF p = ISA(vf_set1)(1.53533620e-04f);
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(1.33988750e-03f));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(9.61843692e-03f));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(5.55033237e-02f));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(2.40226477e-01f));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(6.93147182e-01f));
    p = ISA(vf_fma)(p, r, ISA(vf_set1)(1.0f));
    return ISA(vf_scale)(p, ISA(vf_max)(n, lowest));
}

/* Scores of one query and segment become weights; keys from n on are not there for it, whatever memory holds. */
BC_INLINE void ISA(weigh)(float *p, int32_t n, float *total, float *best)
{
    float lanes[VL], most = -INFINITY;
    const int32_t end = (int32_t)bc_round_up(n, BC_KEYS);
    VF top[NV], sum[NV];
    for (int32_t i = n; i < end; i++)
        p[i] = -INFINITY;
    for (int v = 0; v < NV; v++) {
        top[v] = ISA(vf_set1)(-INFINITY);
        sum[v] = ISA(vf_set1)(0.0f);
    }
    for (int32_t i = 0; i < end; i += BC_KEYS)
        for (int v = 0; v < NV; v++)
            top[v] = ISA(vf_max)(ISA(vf_load)(p + i + v * VL), top[v]);
    for (int v = 0; v < NV; v++) {
        ISA(vf_store)(lanes, top[v]);
        for (int i = 0; i < VL; i++)
            most = lanes[i] > most ? lanes[i] : most;
    }
    for (int32_t i = 0; i < end; i += BC_KEYS)
        for (int v = 0; v < NV; v++) {
            const VF e = ISA(vf_exp2)(ISA(vf_sub)(ISA(vf_load)(p + i + v * VL), ISA(vf_set1)(most)));
            ISA(vf_store)(p + i + v * VL, e);
            sum[v] = ISA(vf_add)(sum[v], e);
        }
    *best = most;
    *total = ISA(fold)(sum);
}

/* acc[q][0 ..] += sum over keys first.. of weight * value, in ascending order, for a group of n_v vectors of dimensions */
BC_INLINE void ISA(add_group)(const float *p, int n_q, int n_v, int32_t type, const uint8_t *values, float *wide, int32_t first,
                              int32_t last, float *acc, int64_t ld, int64_t ahead)
{
    float scale[BC_KEYS];
    VF sum[BC_QUERY_TILE][NV];
    if (type == BC_Q8_0) {
        for (int v = 0; v < NV; v++)
            ISA(vf_store)(scale + v * VL, ISA(vf_load_f16)((const uint16_t *)values + v * VL));
        ISA(fetch_ahead)(values, 0, BC_KEYS * 2, ahead, n_q < BC_QUERY_TILE && !wide);
        values += BC_KEYS * 2;
    }
    for (int q = 0; q < n_q; q++)
        for (int v = 0; v < n_v; v++)
            sum[q][v] = ISA(vf_load)(acc + q * ld + v * VL);
    for (int32_t row = first; row < last; row += BC_ROWS) {
        const int32_t end = (int32_t)bc_min(row + BC_ROWS, last);
        if (wide)
            for (int32_t key = row; key < end; key++)
                for (int v = 0; v < n_v; v++)
                    ISA(vf_store)(wide + (key * n_v + v) * VL, ISA(load_cached)(values, (key * n_v + v) * VL, type,
                                                                                ISA(vf_set1)(type == BC_Q8_0 ? scale[key] : 1.0f)));
        const uint8_t *rows = wide ? (const uint8_t *)wide : values;
        for (int32_t key = row; key < end; key++) {
            ISA(fetch_ahead)(rows, key, n_v * VL * bc_cached_size(type), ahead, n_q < BC_QUERY_TILE && !wide);
            for (int v = 0; v < n_v; v++) {
                const VF value = ISA(load_cached)(rows, (key * n_v + v) * VL, wide ? BC_F32 : type,
                                                  ISA(vf_set1)(type == BC_Q8_0 ? scale[key] : 1.0f));
                for (int q = 0; q < n_q; q++)
                    sum[q][v] = ISA(vf_fma)(ISA(vf_set1)(p[q * BC_SEGMENT + key]), value, sum[q][v]);
            }
        }
    }
    for (int q = 0; q < n_q; q++)
        for (int v = 0; v < n_v; v++)
            ISA(vf_store)(acc + q * ld + v * VL, sum[q][v]);
}

BC_INLINE void ISA(add_values)(const bc_attention *a, const float *p, int n_q, int32_t type, const uint8_t *block, float *wide,
                               int32_t first, int32_t last, float *acc)
{
    const int64_t ld = bc_part_floats(a->v_stride), group = bc_value_block_bytes(type, BC_GROUP);
    int32_t d = 0;
    for (; d + BC_GROUP <= a->v_stride; d += BC_GROUP, block += group)
        ISA(add_group)(p, n_q, NV, type, block, wide ? wide + d * BC_KEYS : NULL, first, last, acc + d, ld, a->v_ahead);
    if (d < a->v_stride)
        ISA(add_group)(p, n_q, NV / 2, type, block, wide ? wide + d * BC_KEYS : NULL, first, last, acc + d, ld, a->v_ahead);
}

/* how many of a block's keys query q sees */
static inline int32_t ISA(seen)(const bc_attention *a, int q, int32_t key)
{
    const int32_t n = a->n_keys[q] - key;
    return n < 0 ? 0 : n < BC_KEYS ? n : BC_KEYS;
}

/* scores (or, with parts, sums of weighted values) of queries q0.. and the block that begins at this key */
BC_INLINE void ISA(tile_of)(const bc_attention *a, int32_t key, int q0, int n_q, int32_t type, const uint8_t *block,
                            float *wide, float *p, float *parts)
{
    if (!parts) {
        ISA(score)(a, a->q + q0, n_q, type, block, wide, p);
        return;
    }
    const int64_t ld = bc_part_floats(a->v_stride);
    const int32_t shared = ISA(seen)(a, q0, key);
    ISA(add_values)(a, p, n_q, type, block, wide, 0, shared, parts + q0 * ld);
    for (int q = 1; q < n_q && !wide; q++) /* the last keys of later tokens */
        if (ISA(seen)(a, q0 + q, key) > shared)
            ISA(add_values)(a, p + q * BC_SEGMENT, 1, type, block, NULL, shared, ISA(seen)(a, q0 + q, key), parts + (q0 + q) * ld);
}

BC_INLINE void ISA(tile_from)(const bc_attention *a, int32_t key, int q0, int n_q, int32_t type, const uint8_t *block,
                              float *wide, float *p, float *parts)
{
#define CASE(n) case n: ISA(tile_of)(a, key, q0, n, type, block, wide, p, parts); break
    switch (n_q) { /* constants, so that the sums are registers */
    CASE(1);
    CASE(2);
    CASE(3);
#if VL == 16
    CASE(4);
    CASE(5);
    CASE(6);
#endif
    }
#undef CASE
}

static void ISA(attend_tile)(const bc_attention *a, int32_t key, int q0, int n_q, int32_t type, const uint8_t *block,
                             float *wide, float *p, float *parts)
{
    if (type == BC_F32)
        ISA(tile_from)(a, key, q0, n_q, BC_F32, block, NULL, p, parts);
    else if (type == BC_F16 && wide)
        ISA(tile_from)(a, key, q0, n_q, BC_F16, block, wide, p, parts);
    else if (type == BC_F16)
        ISA(tile_from)(a, key, q0, n_q, BC_F16, block, NULL, p, parts);
    else if (wide)
        ISA(tile_from)(a, key, q0, n_q, BC_Q8_0, block, wide, p, parts);
    else
        ISA(tile_from)(a, key, q0, n_q, BC_Q8_0, block, NULL, p, parts);
}

/* One block for all queries that see it, in tiles of equal sizes. The first tile leaves a block that all see in wide. */
static void ISA(attend_block)(const bc_attention *a, int32_t key, const uint8_t *block, ISA(segment) *s, float *parts)
{
    int q0 = 0;
    while (ISA(seen)(a, q0, key) == 0)
        q0++;
    const int n_q = a->n_q - q0, n_tiles = (n_q + BC_QUERY_TILE - 1) / BC_QUERY_TILE;
    const int keep = n_tiles > 2 && ISA(seen)(a, q0, key) == BC_KEYS && a->cache_type != BC_F32 &&
                     a->head_dim <= BC_MAX_SHARED_DIM;
    for (int i = 0; i < n_tiles; i++) {
        const int first = q0 + n_q * i / n_tiles, last = q0 + n_q * (i + 1) / n_tiles;
        float *p = s->p[first] + key % BC_SEGMENT;
        if (keep && i)
            ISA(attend_tile)(a, key, first, last - first, BC_F32, (const uint8_t *)s->wide, NULL, p, parts);
        else
            ISA(attend_tile)(a, key, first, last - first, a->cache_type, block, keep ? s->wide : NULL, p, parts);
    }
}

/* One query alone: its NV sums would wait for each other, so BC_TOGETHER blocks of keys are read side by side, and groups of a
 * block's values. Each sum is what score and add_group make of it. */
BC_INLINE void ISA(score_one)(const bc_attention *a, int32_t type, const uint8_t *keys, float *p)
{
    const int32_t size = bc_cached_size(type);
    const int64_t apart = bc_key_block_bytes(type, a->head_dim);
    VF s[BC_TOGETHER][NV], scale[BC_TOGETHER][NV];
    for (int b = 0; b < BC_TOGETHER; b++)
        for (int v = 0; v < NV; v++)
            s[b][v] = ISA(vf_set1)(0.0f), scale[b][v] = ISA(vf_set1)(1.0f);
    for (int32_t d = 0; d < a->head_dim; d++, keys += BC_KEYS * size) {
        if (type == BC_Q8_0 && d % BC_GROUP == 0) {
            for (int b = 0; b < BC_TOGETHER; b++) {
                ISA(fetch_ahead)(keys + b * apart, 0, BC_KEYS * 2, a->k_ahead, 1);
                for (int v = 0; v < NV; v++)
                    scale[b][v] = ISA(vf_load_f16)((const uint16_t *)(keys + b * apart) + v * VL);
            }
            keys += BC_KEYS * 2;
        }
        const VF query = ISA(vf_set1)(a->q[0][d]);
        for (int b = 0; b < BC_TOGETHER; b++) {
            if (d * BC_KEYS * size % 64 == 0)
                ISA(fetch_ahead)(keys + b * apart, 0, BC_KEYS * size, a->k_ahead, 1);
            for (int v = 0; v < NV; v++)
                s[b][v] = ISA(vf_fma)(query, ISA(load_cached)(keys + b * apart, v * VL, type, scale[b][v]), s[b][v]);
        }
    }
    for (int b = 0; b < BC_TOGETHER; b++)
        for (int v = 0; v < NV; v++)
            ISA(vf_store)(p + b * BC_KEYS + v * VL, ISA(vf_mul)(s[b][v], ISA(vf_set1)(a->scale * 1.44269504f)));
}

/* acc[0 ..] += sum over n keys, for n_groups groups of n_v vectors */
BC_INLINE void ISA(add_one)(const bc_attention *a, int32_t type, int n_groups, int n_v, const uint8_t *values, int32_t n, const float *p,
                            float *acc)
{
    const int32_t row = n_v * VL * bc_cached_size(type);
    const int64_t apart = bc_value_block_bytes(type, BC_GROUP);
    float scale[BC_TOGETHER][BC_KEYS];
    VF sum[BC_TOGETHER][NV];
    for (int g = 0; g < n_groups; g++) {
        if (type == BC_Q8_0)
            ISA(fetch_ahead)(values + g * apart, 0, BC_KEYS * 2, a->v_ahead, 1);
        for (int v = 0; v < NV && type == BC_Q8_0; v++)
            ISA(vf_store)(scale[g] + v * VL, ISA(vf_load_f16)((const uint16_t *)(values + g * apart) + v * VL));
        for (int v = 0; v < n_v; v++)
            sum[g][v] = ISA(vf_load)(acc + g * BC_GROUP + v * VL);
    }
    values += BC_KEYS * bc_scale_size(type);
    for (int32_t key = 0; key < n; key++, values += row) {
        const VF weight = ISA(vf_set1)(p[key]);
        for (int g = 0; g < n_groups; g++) {
            if (key * row % 64 == 0)
                ISA(fetch_ahead)(values + g * apart, 0, row, a->v_ahead, 1);
            for (int v = 0; v < n_v; v++) {
                const VF factor = ISA(vf_set1)(type == BC_Q8_0 ? scale[g][key] : 1.0f);
                sum[g][v] = ISA(vf_fma)(weight, ISA(load_cached)(values + g * apart, v * VL, type, factor), sum[g][v]);
            }
        }
    }
    for (int g = 0; g < n_groups; g++)
        for (int v = 0; v < n_v; v++)
            ISA(vf_store)(acc + g * BC_GROUP + v * VL, sum[g][v]);
}

/* the scores of BC_TOGETHER blocks of keys, or with acc the sums of the weighted values of one block's first n keys */
BC_INLINE void ISA(one_of)(const bc_attention *a, int32_t type, const uint8_t *block, int32_t n, float *p, float *acc)
{
    const int64_t group = bc_value_block_bytes(type, BC_GROUP);
    if (!acc) {
        ISA(score_one)(a, type, block, p);
        return;
    }
    int32_t d = 0;
    for (; d + BC_TOGETHER * BC_GROUP <= a->v_stride; d += BC_TOGETHER * BC_GROUP, block += BC_TOGETHER * group)
        ISA(add_one)(a, type, BC_TOGETHER, NV, block, n, p, acc + d);
    for (; d + BC_GROUP <= a->v_stride; d += BC_GROUP, block += group)
        ISA(add_one)(a, type, 1, NV, block, n, p, acc + d);
    if (d < a->v_stride)
        ISA(add_one)(a, type, 1, NV / 2, block, n, p, acc + d);
}

static void ISA(attend_one)(const bc_attention *a, const uint8_t *block, int32_t n, float *p, float *acc)
{
    if (a->cache_type == BC_F32)
        ISA(one_of)(a, BC_F32, block, n, p, acc);
    else if (a->cache_type == BC_F16)
        ISA(one_of)(a, BC_F16, block, n, p, acc);
    else
        ISA(one_of)(a, BC_Q8_0, block, n, p, acc);
}

/* parts[q] of the queries that see keys of this segment */
static void ISA(attend_segment)(const bc_attention *a, int32_t segment, float *parts)
{
    ISA(segment) s;
    const int64_t ld = bc_part_floats(a->v_stride);
    const int64_t k_bytes = bc_key_block_bytes(a->cache_type, a->head_dim);
    const int64_t v_bytes = bc_value_block_bytes(a->cache_type, a->head_dim);
    const int32_t first = segment * BC_SEGMENT, last = (int32_t)bc_min(first + BC_SEGMENT, a->n_keys[a->n_q - 1]);
    int32_t key = first;
    for (; a->n_q == 1 && key + (BC_TOGETHER - 1) * BC_KEYS < last; key += BC_TOGETHER * BC_KEYS)
        ISA(attend_one)(a, (const uint8_t *)a->k + key / BC_KEYS * k_bytes, 0, s.p[0] + key % BC_SEGMENT, NULL);
    for (; key < last; key += BC_KEYS)
        ISA(attend_block)(a, key, (const uint8_t *)a->k + key / BC_KEYS * k_bytes, &s, NULL);
    for (int q = 0; q < a->n_q; q++)
        if (a->n_keys[q] > first) {
            float *acc = parts + q * ld;
            memset(acc, 0, (size_t)ld * sizeof *acc);
            ISA(weigh)(s.p[q], (int32_t)bc_min(a->n_keys[q] - first, BC_SEGMENT), acc + a->v_stride, acc + a->v_stride + 1);
        }
    for (key = first; key < last; key += BC_KEYS) {
        const uint8_t *block = (const uint8_t *)a->v + key / BC_KEYS * v_bytes;
        if (a->n_q == 1)
            ISA(attend_one)(a, block, ISA(seen)(a, 0, key), s.p[0] + key % BC_SEGMENT, parts);
        else
            ISA(attend_block)(a, key, block, &s, parts);
    }
}

/* Add a later segment to what a query has: acc and total relative to 2^best, which is the larger of both. */
BC_INLINE void ISA(merge)(float *state, const float *part, int32_t v_stride)
{
    const float mine = state[v_stride + 1], other = part[v_stride + 1], most = other > mine ? other : mine;
    const VF keep = ISA(vf_exp2)(ISA(vf_set1)(mine - most)), add = ISA(vf_exp2)(ISA(vf_set1)(other - most));
    for (int32_t d = 0; d < bc_part_floats(v_stride); d += VL) /* with the total behind the sums of values */
        ISA(vf_store)(state + d, ISA(vf_fma)(ISA(vf_load)(part + d), add, ISA(vf_mul)(ISA(vf_load)(state + d), keep)));
    state[v_stride + 1] = most;
}

static void ISA(merge_segments)(const bc_attention *a, float *parts, int64_t ld_segment)
{
    const int64_t ld = bc_part_floats(a->v_stride);
    for (int q = 0; q < a->n_q; q++) {
        float *state = parts + q * ld;
        for (int32_t i = 1; i * BC_SEGMENT < a->n_keys[q]; i++)
            ISA(merge)(state, state + i * ld_segment, a->v_stride);
        for (int32_t d = 0; d < a->head_dim; d++)
            a->out[q][d] = state[d] / state[a->v_stride];
    }
}

static void ISA(attend)(const bc_attention *a)
{
    float parts[2][BC_PARTS_FLOATS];
    const int64_t ld = bc_part_floats(a->v_stride);
    ISA(attend_segment)(a, 0, parts[0]);
    for (int32_t i = 1; i * BC_SEGMENT < a->n_keys[a->n_q - 1]; i++) {
        ISA(attend_segment)(a, i, parts[1]);
        for (int q = 0; q < a->n_q; q++)
            if (i * BC_SEGMENT < a->n_keys[q])
                ISA(merge)(parts[0] + q * ld, parts[1] + q * ld, a->v_stride);
    }
    for (int q = 0; q < a->n_q; q++) {
        const float *state = parts[0] + q * ld, total = state[a->v_stride];
        for (int32_t d = 0; d < a->head_dim; d++)
            a->out[q][d] = state[d] / total;
    }
}

#undef BC_TOGETHER
#undef BC_QUERY_TILE
#undef BC_ROWS
