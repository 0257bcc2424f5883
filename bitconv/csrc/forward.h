/* The forward pass: one call without the GIL, one thread team, a few steps with a barrier between them.
 *
 * Every step cuts its work into tasks that threads take from a counter. A task computes whole values, never partial
 * sums, so the result does not depend on who did what, on the number of threads, or on how a prompt is cut into batches.
 */
#ifndef BITCONV_FORWARD_H
#define BITCONV_FORWARD_H

#include "linear.h"
#include "rope_table.h"

/* the four inputs of a layer that are quantised: of q/k/v, of the attention output, of gate/up, of down */
enum { BC_SITE_ATTENTION, BC_SITE_ATTENTION_OUTPUT, BC_SITE_FFN, BC_SITE_FFN_DOWN, BC_SITES };

typedef struct {
    const float *attn_norm, *attn_sub_norm, *ffn_norm, *ffn_sub_norm; /* a sub-norm may be NULL */
    bc_matrix q, k, v, output, gate, up, down;
} bc_layer;

typedef struct {
    const bc_isa *isa;
    int32_t n_layers, hidden, ffn, n_heads, n_kv_heads, head_dim;
    int32_t relu2, interleaved; /* activation; RoPE pairs (2i, 2i+1) instead of (i, i + head_dim/2) */
    float eps, attention_scale;
    const bc_layer *layers;
    const float *output_norm;
    bc_matrix embedding, head;
} bc_model;

/* keys and values of n_sequences sequences: [sequence][layer][kv head][n_ctx / BC_KEYS] blocks, as kernel_api.h has them */
typedef struct {
    int32_t type; /* BC_F16, BC_F32 or BC_Q8_0 */
    int64_t n_ctx; /* a multiple of BC_KEYS */
    uint8_t *k, *v;
    float *parts; /* where segments of few queries await merging: bc_split_floats of them, or NULL */
    int32_t *parts_done; /* BC_MAX_SPLIT zeros: the finished segments of each group of queries */
    const float *cos, *sin; /* [position][head_dim / 2] */
} bc_cache;

typedef struct {
    int64_t n;
    const int32_t *token, *position, *sequence; /* [n] each; positions of a sequence ascend */
    int64_t n_logits;
    const int32_t *logit_rows; /* [n_logits] tokens of the batch whose logits are wanted */
    float *logits;             /* [n_logits][vocabulary] */
    int8_t *trace_codes[BC_SITES]; /* NULL, or [layer][n][padded cols] of each site */
    float *trace_scale;            /* [layer][site][n] */
} bc_batch;

/* working memory for one batch, laid out by bc_scratch_layout */
typedef struct {
    float *x, *x_next, *normed, *qkv, *attended, *gate, *scale;
    int32_t *sum;
    int8_t *codes, *tiles;
    uint8_t *own; /* [thread][own_bytes], what each thread makes for itself */
    int64_t own_bytes;
} bc_scratch;

typedef struct {
    const bc_model *model;
    const bc_cache *cache;
    const bc_batch *batch;
    bc_scratch s;
    int32_t split; /* whether segments of keys are tasks of their own */
    int32_t bad; /* the first layer * BC_SITES + site whose input was not finite, or INT32_MAX */
} bc_run;

static inline int64_t bc_attention_width(const bc_model *m) { return (int64_t)m->n_heads * m->head_dim; }
static inline int64_t bc_qkv_width(const bc_model *m) { return (int64_t)(m->n_heads + 2 * m->n_kv_heads) * m->head_dim; }
static inline int64_t bc_value_stride(const bc_model *m) { return bc_round_up(m->head_dim, 16); }

static inline int64_t bc_site_width(const bc_model *m, int site)
{
    return site == BC_SITE_ATTENTION_OUTPUT ? bc_attention_width(m) : site == BC_SITE_FFN_DOWN ? m->ffn : m->hidden;
}

static inline int64_t bc_widest(const bc_model *m)
{
    int64_t most = 0;
    for (int site = 0; site < BC_SITES; site++)
        most = most > bc_site_width(m, site) ? most : bc_site_width(m, site);
    return bc_round_up(most, 128);
}

/* Decode makes the input of a site once in each thread, which costs less than a barrier and the way between two cores:
 * [token] of floats, codes, scale and sum, and before them the memory of dense kernels. */
static inline int64_t bc_own_token(const bc_model *m) { return bc_widest(m) * 5 + 64; }

/* look-up tables of one token: of up to three products of the narrow inputs, of one of the widest */
static inline int64_t bc_tables_bytes(const bc_model *m)
{
    const int64_t shared = BC_MAX_LINEARS * bc_round_up(m->hidden, 128), single = bc_widest(m);
    return (shared > single ? shared : single) * BC_TABLE_BYTES;
}

/* Cut base into the arrays for n tokens, 64-byte aligned; returns the bytes needed. base may be NULL to ask only. */
static int64_t bc_scratch_layout(const bc_model *m, int64_t n, int32_t threads, uint8_t *base, bc_scratch *s)
{
    int64_t at = 0;
#define BC_TAKE(field, bytes)                                      \
    do {                                                           \
        s->field = base ? (void *)(base + at) : NULL;              \
        at += bc_round_up((int64_t)(bytes), 64);                   \
    } while (0)
    const int64_t hidden = bc_round_up(m->hidden, BC_LANES), ffn = bc_round_up(m->ffn, BC_LANES);
    BC_TAKE(x, n * hidden * 4);
    BC_TAKE(x_next, n * hidden * 4);
    BC_TAKE(normed, n * bc_widest(m) * 4);
    BC_TAKE(qkv, n * bc_qkv_width(m) * 4);
    BC_TAKE(attended, n * bc_round_up(bc_attention_width(m), BC_LANES) * 4);
    BC_TAKE(gate, n * ffn * 4);
    BC_TAKE(scale, n * 4);
    BC_TAKE(sum, n * 4);
    BC_TAKE(codes, n * bc_widest(m));
    BC_TAKE(tiles, (n + BC_MAX_TILE) * bc_widest(m));
    s->own_bytes = bc_dense_work(bc_widest(m)) + 2 * BC_GATED_FLOATS * 4 + (BC_GEMM_TOKENS - 1) * (bc_own_token(m) + bc_tables_bytes(m));
    BC_TAKE(own, threads * s->own_bytes);
#undef BC_TAKE
    return at;
}

static void bc_report_bad(bc_run *run, int32_t where)
{
    int32_t seen = __atomic_load_n(&run->bad, __ATOMIC_RELAXED);
    while (where < seen && !__atomic_compare_exchange_n(&run->bad, &seen, where, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

static void bc_embed(bc_run *run, bc_thread *thread)
{
    const bc_model *m = run->model;
    const int64_t ldx = bc_round_up(m->hidden, BC_LANES), row_bytes = bc_dense_bytes(m->embedding.type, m->hidden);
    for (int64_t t; (t = bc_next_task(thread)) < run->batch->n;)
        m->isa->widen(m->embedding.data + run->batch->token[t] * row_bytes, m->embedding.type, m->hidden, run->s.x + t * ldx);
    bc_barrier(thread);
}

static void bc_trace(bc_run *run, const bc_input *in, int32_t layer, int site, int64_t t)
{
    const bc_batch *b = run->batch;
    if (!b->trace_codes[site])
        return;
    memcpy(b->trace_codes[site] + (layer * b->n + t) * in->codes_stride, in->codes + t * in->codes_stride, (size_t)in->codes_stride);
    b->trace_scale[((int64_t)layer * BC_SITES + site) * b->n + t] = in->scale[t];
}

/* One token of the input of a site: the norm (if any), then the codes. */
static void bc_prepare_token(bc_run *run, int32_t layer, int site, const float *src, const float *norm, const bc_input *in, int64_t t)
{
    const bc_isa *isa = run->model->isa;
    float *row = in->x + t * in->ldx;
    if (norm) {
        isa->norm(src, norm, run->model->eps, in->cols, row);
    } else {
        memcpy(row, src, (size_t)in->cols * sizeof *row);
        memset(row + in->cols, 0, (size_t)(in->ldx - in->cols) * sizeof *row);
    }
    if (isa->quantise(row, in->cols, in->codes_stride, in->codes + t * in->codes_stride, in->scale + t, in->sum + t))
        bc_report_bad(run, layer * BC_SITES + site);
}

/* Make the input of a site, all tokens in every thread where they are few, else together and with a barrier. */
static void bc_prepare(bc_run *run, bc_thread *thread, int32_t layer, int site, const float *src, int64_t ld_src,
                       const float *norm, bc_input *in)
{
    const bc_model *m = run->model;
    const bc_scratch *s = &run->s;
    const int64_t cols = bc_site_width(m, site), stride = bc_round_up(cols, 128), n = run->batch->n;
    uint8_t *own = s->own + thread->index * s->own_bytes;
    *in = (bc_input){n, cols, stride, s->normed, bc_round_up(cols, BC_LANES), s->codes, s->tiles, s->scale, s->sum, NULL, own, NULL};
    own += bc_dense_work(bc_widest(m));
    in->gated = (float *)own, own += 2 * BC_GATED_FLOATS * 4;
    if (n < BC_GEMM_TOKENS) {
        in->x = (float *)own, own += (BC_GEMM_TOKENS - 1) * bc_widest(m) * 4;
        in->codes = (int8_t *)own, own += (BC_GEMM_TOKENS - 1) * bc_widest(m);
        in->scale = (float *)own, in->sum = (int32_t *)(in->scale + BC_GEMM_TOKENS), own += (BC_GEMM_TOKENS - 1) * 64;
        in->tables = own;
        for (int64_t t = 0; t < n; t++) {
            bc_prepare_token(run, layer, site, src + t * ld_src, norm, in, t);
            if (thread->index == 0)
                bc_trace(run, in, layer, site, t);
        }
        return;
    }
    for (int64_t task; (task = bc_next_task(thread)) * BC_MAX_TILE < n;) {
        const int64_t t0 = task * BC_MAX_TILE;
        for (int64_t t = t0; t < bc_min(t0 + BC_MAX_TILE, n); t++) {
            bc_prepare_token(run, layer, site, src + t * ld_src, norm, in, t);
            bc_trace(run, in, layer, site, t);
        }
        bc_pack_tile(in, t0, bc_tile(n - t0));
    }
    bc_barrier(thread);
}

static bc_linear bc_linear_of(const bc_model *m, const bc_matrix *w, float *out, int64_t ldo, const float *residual)
{
    const bc_linear l = {w, bc_is_dense(w->type) ? NULL : bc_find_ternary(m->isa, w->type), -1, out, ldo, residual, 0, 0};
    return l;
}

/* One site of a layer: make its input and multiply it by the matrices that share it. product: the activation that makes
 * one of the first two results, or NULL. */
static void bc_site(bc_run *run, bc_thread *thread, int32_t layer, int site, const float *src, int64_t ld_src, const float *norm,
                    bc_linear *linears, int n, void (*product)(const float *, const float *, int64_t, float *))
{
    bc_input in = {.n = run->batch->n};
    if (in.n < BC_GEMM_TOKENS) { /* memory works while the input is made */
        const int64_t rows = bc_cut_rows(linears->w->rows, bc_row_step(linears), &in, thread->size).rows;
        bc_begin(linears, thread->index * rows, rows);
    }
    bc_prepare(run, thread, layer, site, src, ld_src, norm, &in);
    bc_build_tables(linears, n, &in);
    if (product)
        bc_apply_gated(run->model->isa, thread, linears, linears + 1, &in, product);
    else
        bc_apply(run->model->isa, thread, linears, n, &in);
    bc_barrier(thread);
}

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

/* RoPE on the queries and keys of one key/value head and its query heads; keys and values go to the cache. */
static void bc_rotate(bc_run *run, bc_thread *thread, int32_t layer)
{
    const bc_model *m = run->model;
    const bc_batch *b = run->batch;
    const int32_t group = m->n_heads / m->n_kv_heads, dim = m->head_dim;
    for (int64_t task; (task = bc_next_task(thread)) < b->n * m->n_kv_heads;) {
        const int64_t t = task / m->n_kv_heads;
        const int32_t head = (int32_t)(task % m->n_kv_heads);
        float *q = run->s.qkv + t * bc_qkv_width(m), *k = q + bc_attention_width(m) + (int64_t)head * dim;
        const float *v = k + (int64_t)m->n_kv_heads * dim;
        const float *cos = run->cache->cos + (int64_t)b->position[t] * (dim / 2);
        const float *sin = run->cache->sin + (int64_t)b->position[t] * (dim / 2);
        for (int32_t i = 0; i < group; i++)
            m->isa->rope(q + (int64_t)(head * group + i) * dim, cos, sin, dim, m->interleaved);
        m->isa->rope(k, cos, sin, dim, m->interleaved);
        m->isa->store_kv(k, v, dim, run->cache->type, b->position[t], bc_head_keys(run, b->sequence[t], layer, head),
                         bc_head_values(run, b->sequence[t], layer, head));
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
        for (int64_t task; (task = bc_next_task(thread)) < tasks;) {
            /* head by head, whose keys stay in L2; the longest first, so that no thread ends with one */
            const int64_t group = g.groups - 1 - task % g.groups;
            const int64_t last = g.queries * (group + 1) / g.groups;
            for (int64_t query = g.queries * group / g.groups; query < last;) {
                const bc_attention a = bc_next_queries(run, layer, (int32_t)(task / g.groups), &query, last);
                m->isa->attend(&a);
            }
        }
    bc_barrier(thread);
}

static void bc_layer_forward(bc_run *run, bc_thread *thread, int32_t layer)
{
    const bc_model *m = run->model;
    const bc_layer *l = m->layers + layer;
    const int64_t ldx = bc_round_up(m->hidden, BC_LANES), ld_attended = bc_round_up(bc_attention_width(m), BC_LANES);
    const int64_t ld_ffn = bc_round_up(m->ffn, BC_LANES), ld_qkv = bc_qkv_width(m), q_width = bc_attention_width(m);
    bc_scratch *s = &run->s;

    bc_linear qkv[] = {
        bc_linear_of(m, &l->q, s->qkv, ld_qkv, NULL),
        bc_linear_of(m, &l->k, s->qkv + q_width, ld_qkv, NULL),
        bc_linear_of(m, &l->v, s->qkv + q_width + (int64_t)m->n_kv_heads * m->head_dim, ld_qkv, NULL),
    };
    bc_site(run, thread, layer, BC_SITE_ATTENTION, s->x, ldx, l->attn_norm, qkv, 3, NULL);
    bc_rotate(run, thread, layer);
    bc_attend(run, thread, layer);
    bc_linear output = bc_linear_of(m, &l->output, s->x_next, ldx, s->x);
    bc_site(run, thread, layer, BC_SITE_ATTENTION_OUTPUT, s->attended, ld_attended, l->attn_sub_norm, &output, 1, NULL);

    bc_linear gate_up[] = {
        bc_linear_of(m, &l->gate, s->gate, ld_ffn, NULL),
        bc_linear_of(m, &l->up, NULL, 0, NULL), /* only its product with the gate leaves a task */
    };
    bc_site(run, thread, layer, BC_SITE_FFN, s->x_next, ldx, l->ffn_norm, gate_up, 2, m->relu2 ? m->isa->relu2_mul : m->isa->silu_mul);
    bc_linear down = bc_linear_of(m, &l->down, s->x, ldx, s->x_next);
    bc_site(run, thread, layer, BC_SITE_FFN_DOWN, s->gate, ld_ffn, l->ffn_sub_norm, &down, 1, NULL);
}

static void bc_final_norm(bc_run *run, int64_t i, float *y)
{
    const bc_model *m = run->model;
    const float *x = run->s.x + run->batch->logit_rows[i] * bc_round_up(m->hidden, BC_LANES);
    if (!(m->isa->norm(x, m->output_norm, m->eps, m->hidden, y) < INFINITY))
        bc_report_bad(run, m->n_layers * BC_SITES);
}

static void bc_logits(bc_run *run, bc_thread *thread)
{
    const bc_model *m = run->model;
    const int64_t n = run->batch->n_logits;
    uint8_t *own = run->s.own + thread->index * run->s.own_bytes;
    bc_input in = {.n = n, .cols = m->hidden, .x = run->s.normed, .ldx = bc_round_up(m->hidden, BC_LANES), .work = own};
    const bc_linear head = bc_linear_of(m, &m->head, run->batch->logits, m->head.rows, NULL);
    if (n < BC_GEMM_TOKENS) { /* as in bc_prepare */
        const int64_t rows = bc_cut_rows(m->head.rows, 1, &in, thread->size).rows;
        bc_begin(&head, thread->index * rows, rows);
        in.x = (float *)(own + bc_dense_work(bc_widest(m)));
        for (int64_t i = 0; i < n; i++)
            bc_final_norm(run, i, in.x + i * in.ldx);
    } else {
        for (int64_t i; (i = bc_next_task(thread)) < n;)
            bc_final_norm(run, i, in.x + i * in.ldx);
        bc_barrier(thread);
    }
    bc_apply(m->isa, thread, &head, 1, &in);
    bc_barrier(thread);
}

static void bc_thread_forward(bc_run *run, bc_thread *thread)
{
    fenv_t saved; /* the caller may have set another rounding mode or flush-to-zero */
    fegetenv(&saved);
    fesetenv(FE_DFL_ENV);
    bc_embed(run, thread);
    for (int32_t layer = 0; layer < run->model->n_layers; layer++)
        bc_layer_forward(run, thread, layer);
    if (run->batch->n_logits)
        bc_logits(run, thread);
    fesetenv(&saved);
}

/* Run one batch; returns the number of threads that took part. Reads nothing outside its arguments. cache->parts, if any, has
 * room for what bc_split_floats says of these arguments. */
static int32_t bc_forward(const bc_model *m, const bc_cache *cache, const bc_batch *batch, uint8_t *scratch, int32_t threads,
                          int32_t *bad)
{
    bc_run run = {.model = m, .cache = cache, .batch = batch, .split = cache->parts != NULL, .bad = INT32_MAX};
    bc_team team = {0};
    int32_t size = 1;
    bc_scratch_layout(m, batch->n, threads, scratch, &run.s);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    {
        bc_thread thread = {.team = &team, .index = omp_get_thread_num(), .size = omp_get_num_threads()};
        if (thread.index == 0)
            size = thread.size;
        bc_thread_forward(&run, &thread);
    }
#else
    (void)threads;
    bc_thread thread = {.team = &team, .index = 0, .size = 1};
    bc_thread_forward(&run, &thread);
#endif
    *bad = run.bad;
    return size;
}

#endif
