/* The steps of attention: rotation and the way into the cache, and which thread takes which queries and keys. */
#ifndef BITCONV_ATTEND_H
#define BITCONV_ATTEND_H

#include "model.h"

/* the blocks of one head in the cache */
static void *bc_head_keys(const bc_run *run, int32_t sequence, int32_t layer, int32_t head)
{
    const int64_t index = ((int64_t)sequence * run->model->n_layers + layer) * run->model->n_kv_heads + head;
    return run->cache->k + index * (run->cache->n_ctx / BC_KEYS) * bc_key_block_bytes(run->cache->type, run->model->head_dim);
}

static void *bc_head_values(const bc_run *run, int32_t sequence, int32_t layer, int32_t head)
{
    const int64_t index = ((int64_t)sequence * run->model->n_layers + layer) * run->model->n_kv_heads + head;
    return run->cache->v + index * (run->cache->n_ctx / BC_KEYS) * bc_value_block_bytes(run->cache->type, run->model->head_dim);
}

/* where the queries, the key and the value of one token and key/value head begin */
typedef struct {
    float *q, *k, *v;
} bc_head_rows;

static inline bc_head_rows bc_rows_of_head(const bc_run *run, int64_t t, int64_t head)
{
    const bc_model *m = run->model;
    float *q = run->s.qkv + t * bc_qkv_width(m), *k = q + bc_attention_width(m) + head * m->head_dim;
    return (bc_head_rows){q + head * (m->n_heads / m->n_kv_heads) * m->head_dim, k, k + (int64_t)m->n_kv_heads * m->head_dim};
}

/* RoPE on the queries and the key of one token and key/value head */
static void bc_rotate_token(const bc_run *run, int64_t t, int64_t head)
{
    const bc_model *m = run->model;
    const bc_head_rows rows = bc_rows_of_head(run, t, head);
    const float *cos = run->cache->cos + (int64_t)run->batch->position[t] * (m->head_dim / 2);
    const float *sin = run->cache->sin + (int64_t)run->batch->position[t] * (m->head_dim / 2);
    for (int32_t i = 0; i < m->n_heads / m->n_kv_heads; i++)
        m->isa->rope(rows.q + (int64_t)i * m->head_dim, cos, sin, m->head_dim, m->interleaved);
    m->isa->rope(rows.k, cos, sin, m->head_dim, m->interleaved);
}

static void bc_store_token(const bc_run *run, int32_t layer, int64_t t, int32_t head)
{
    const bc_head_rows rows = bc_rows_of_head(run, t, head);
    const int32_t sequence = run->batch->sequence[t];
    run->model->isa->store_kv(rows.k, rows.v, run->model->head_dim, run->cache->type, run->batch->position[t],
                              bc_head_keys(run, sequence, layer, head), bc_head_values(run, sequence, layer, head));
}

/* Tasks of bc_rotate: some tokens in a row and one key/value head. A line of the key cache holds 32 tokens and would wander
 * between the cores. */
typedef struct {
    int64_t first, last; /* tokens */
    int32_t head;
} bc_turn;

/* tokens of a turn */
static inline int64_t bc_together(const bc_run *run) { return run->batch->n < BC_GEMM_TOKENS ? 1 : BC_KEYS / 2; }

static inline bc_turn bc_turn_of(const bc_run *run, int64_t task)
{
    const int64_t first = task / run->model->n_kv_heads * bc_together(run);
    return (bc_turn){first, bc_min(first + bc_together(run), run->batch->n), (int32_t)(task % run->model->n_kv_heads)};
}

/* Fetch what a task reads of its token t: pieces here and there, which the hardware does not foresee. */
BC_INLINE void bc_begin_token(const bc_run *run, int64_t t, int64_t head)
{
    const bc_model *m = run->model;
    const int64_t bytes = (int64_t)m->head_dim * 4;
    const bc_head_rows rows = bc_rows_of_head(run, t, head);
    bc_prefetch((const uint8_t *)rows.q, m->n_heads / m->n_kv_heads * bytes);
    bc_prefetch((const uint8_t *)rows.k, bytes);
    bc_prefetch((const uint8_t *)rows.v, bytes);
}

/* Fetch the block of keys that a token is written to: stores that miss the cache wait one after another. */
BC_INLINE void bc_begin_keys(const bc_run *run, int32_t layer, int64_t t, int32_t head)
{
    const int64_t bytes = bc_key_block_bytes(run->cache->type, run->model->head_dim);
    const uint8_t *keys = bc_head_keys(run, run->batch->sequence[t], layer, head);
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(keys + run->batch->position[t] / BC_KEYS * bytes + at, 1);
}

static void bc_rotate(bc_run *run, bc_thread *thread, int32_t layer)
{
    const int64_t n = run->batch->n, turns = (n + bc_together(run) - 1) / bc_together(run) * run->model->n_kv_heads;
    for (int64_t task; (task = bc_token_task(thread, n, turns)) >= 0;) {
        const bc_turn turn = bc_turn_of(run, task), next = bc_turn_of(run, task + 1);
        if (n >= BC_GEMM_TOKENS)
            bc_begin_keys(run, layer, turn.last - 1, turn.head);
        for (int64_t t = turn.first; t < turn.last; t++) {
            if (next.first + t - turn.first < next.last)
                bc_begin_token(run, next.first + t - turn.first, next.head);
            bc_rotate_token(run, t, turn.head);
        }
        for (int64_t t = turn.first; t < turn.last; t++)
            bc_store_token(run, layer, t, turn.head);
    }
    bc_barrier(thread);
}

/* Query heads that share a key/value head, of all tokens of the batch, are cut into groups of nearly equal sizes. */
typedef struct {
    int64_t queries, groups; /* of each key/value head */
    int64_t ld;              /* floats of the parts of one group and segment */
    int64_t segments;        /* of the longest sequence */
} bc_queries;

static bc_queries bc_group_queries(const bc_model *m, int64_t n, int64_t n_keys)
{
    const int64_t most = bc_max_queries(m->head_dim), queries = n * (m->n_heads / m->n_kv_heads);
    return (bc_queries){queries, (queries + most - 1) / most, bc_min(most, queries) * bc_part_floats(bc_value_stride(m)),
                        (n_keys + BC_SEGMENT - 1) / BC_SEGMENT};
}

/* Floats of bc_cache.parts for n tokens of which the last sees n_keys: 0 where groups are tasks enough for the threads. */
static int64_t bc_split_floats(const bc_model *m, int64_t n, int64_t n_keys, int32_t threads)
{
    const bc_queries g = bc_group_queries(m, n, n_keys);
    const int64_t tasks = g.groups * m->n_kv_heads;
    return tasks <= BC_MAX_SPLIT && tasks < 4 * threads && g.segments > 1 ? tasks * g.segments * g.ld : 0;
}

/* The queries of a group from *query on that belong to one sequence; moves *query behind them. */
static bc_attention bc_next_queries(const bc_run *run, int32_t layer, int32_t head, int64_t *query, int64_t last)
{
    const bc_model *m = run->model;
    const bc_batch *b = run->batch;
    const int32_t group = m->n_heads / m->n_kv_heads, dim = m->head_dim;
    const int32_t sequence = b->sequence[*query / group];
    bc_attention a = {
        .head_dim = dim, .v_stride = (int32_t)bc_value_stride(m), .cache_type = run->cache->type, .scale = m->attention_scale,
        .k = bc_head_keys(run, sequence, layer, head), .v = bc_head_values(run, sequence, layer, head),
    };
    for (; *query < last && b->sequence[*query / group] == sequence; ++*query, a.n_q++) {
        const int64_t t = *query / group, at = ((int64_t)head * group + *query % group) * dim;
        a.q[a.n_q] = run->s.qkv + t * bc_qkv_width(m) + at;
        a.out[a.n_q] = run->s.attended + t * bc_round_up(bc_attention_width(m), BC_LANES) + at;
        a.n_keys[a.n_q] = b->position[t] + 1;
    }
    return a;
}

/* One segment of one group; whoever finishes the last one merges them all. */
static void bc_attend_part(bc_run *run, int32_t layer, const bc_queries *g, int64_t task)
{
    const bc_model *m = run->model;
    const int64_t segment = task % g->segments, index = task / g->segments;
    const int32_t head = (int32_t)(index % m->n_kv_heads);
    const int64_t first = g->queries * (index / m->n_kv_heads) / g->groups;
    const int64_t last = g->queries * (index / m->n_kv_heads + 1) / g->groups;
    float *parts = run->cache->parts + index * g->segments * g->ld;
    const int64_t part = bc_part_floats(bc_value_stride(m));
    for (int64_t query = first; query < last;) {
        float *mine = parts + segment * g->ld + (query - first) * part;
        const bc_attention a = bc_next_queries(run, layer, head, &query, last);
        if (segment * BC_SEGMENT < a.n_keys[a.n_q - 1])
            m->isa->attend_segment(&a, (int32_t)segment, mine);
    }
    if (__atomic_add_fetch(&run->cache->parts_done[index], 1, __ATOMIC_ACQ_REL) < g->segments)
        return;
    run->cache->parts_done[index] = 0;
    for (int64_t query = first; query < last;) {
        float *mine = parts + (query - first) * part;
        const bc_attention a = bc_next_queries(run, layer, head, &query, last);
        m->isa->merge_segments(&a, mine, g->ld);
    }
}

/* A group is one task, or one for each segment of its keys where that would be few. */
static void bc_attend(bc_run *run, bc_thread *thread, int32_t layer)
{
    const bc_model *m = run->model;
    int64_t n_keys = 1;
    for (int64_t t = 0; t < run->batch->n && run->split; t++)
        n_keys = n_keys > run->batch->position[t] ? n_keys : run->batch->position[t] + 1;
    const bc_queries g = bc_group_queries(m, run->batch->n, n_keys);
    const int64_t tasks = g.groups * m->n_kv_heads;
    if (run->split)
        for (int64_t task; (task = bc_next_task(thread)) < tasks * g.segments;)
            bc_attend_part(run, layer, &g, task);
    else
        for (int64_t task; (task = bc_own_task(thread, tasks)) >= 0;) {
            /* of each thread's queries head by head, whose keys stay in L2, and the longest first */
            const int64_t chunk = (g.groups + thread->size - 1) / thread->size, before = task / (chunk * m->n_kv_heads) * chunk;
            const int64_t size = bc_min(chunk, g.groups - before), at = task - before * m->n_kv_heads;
            const int64_t group = before + size - 1 - at % size, last = g.queries * (group + 1) / g.groups;
            for (int64_t query = g.queries * group / g.groups; query < last;) {
                const bc_attention a = bc_next_queries(run, layer, (int32_t)(at / size), &query, last);
                m->isa->attend(&a);
            }
        }
    bc_barrier(thread);
}

/* Few tokens whose segments are not tasks of their own: a head's rotation, its way into the cache and its attention are one. */
static inline int bc_by_heads(const bc_run *run) { return run->batch->n < BC_GEMM_TOKENS && !run->split; }

enum { BC_HEAD_AHEAD = 1 << 17 }; /* bytes of keys, up to which the next head is fetched meanwhile: more would leave L2 before its turn */

/* from a row of one head to the same row of the one that comes `heads` later, or 0 */
static inline int64_t bc_head_ahead(const bc_run *run, int32_t n_keys, int64_t block_bytes, int64_t heads)
{
    return n_keys * block_bytes <= BC_HEAD_AHEAD * (int64_t)BC_KEYS ? heads * (run->cache->n_ctx / BC_KEYS) * block_bytes : 0;
}

static void bc_attend_heads(bc_run *run, bc_thread *thread, int32_t layer)
{
    const bc_model *m = run->model;
    const bc_queries g = bc_group_queries(m, run->batch->n, 1);
    for (int64_t head; (head = bc_own_task(thread, m->n_kv_heads)) >= 0;) {
        const int64_t next = bc_min(head + 1, m->n_kv_heads - 1);
        for (int64_t t = 0; t < run->batch->n; t++) {
            bc_begin_token(run, t, next);
            bc_rotate_token(run, t, head);
            bc_store_token(run, layer, t, (int32_t)head);
        }
        for (int64_t group = 0, query = 0; group < g.groups; group++)
            for (const int64_t last = g.queries * (group + 1) / g.groups; query < last;) {
                bc_attention a = bc_next_queries(run, layer, (int32_t)head, &query, last);
                const int32_t n_keys = a.n_keys[a.n_q - 1];
                a.k_ahead = bc_head_ahead(run, n_keys, bc_key_block_bytes(a.cache_type, a.head_dim), next - head);
                a.v_ahead = bc_head_ahead(run, n_keys, bc_value_block_bytes(a.cache_type, a.head_dim), next - head);
                m->isa->attend(&a);
            }
    }
    bc_barrier(thread);
}

#endif
