/* The forward pass: one call without the GIL, one thread team, a few steps with a barrier between them.
 *
 * Every step cuts its work into tasks, which threads take (team.h). A task computes whole values, never partial
 * sums, so the result does not depend on who did what, on the number of threads, or on how a prompt is cut into batches.
 */
#ifndef BITCONV_FORWARD_H
#define BITCONV_FORWARD_H

#include "attend.h"

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
    for (int64_t t; (t = bc_token_task(thread, run->batch->n, run->batch->n)) >= 0;)
        m->isa->widen(m->embedding.data + run->batch->token[t] * row_bytes, m->embedding.type, m->hidden, run->s.x + t * ldx);
    bc_barrier(thread);
}

static void bc_trace(bc_run *run, const bc_input *in, const int8_t *codes, int32_t layer, int site, int64_t t)
{
    const bc_batch *b = run->batch;
    if (!b->trace_codes[site])
        return;
    memcpy(b->trace_codes[site] + (layer * b->n + t) * in->codes_stride, codes, (size_t)in->codes_stride);
    b->trace_scale[((int64_t)layer * BC_SITES + site) * b->n + t] = in->scale[t];
}

/* One token of the input of a site: the norm (if any) into row [ldx], then the codes [codes_stride]. */
static void bc_prepare_token(bc_run *run, int32_t layer, int site, const float *src, const float *norm, const bc_input *in, int64_t t,
                             float *row, int8_t *codes)
{
    const bc_isa *isa = run->model->isa;
    if (norm) {
        isa->norm(src, norm, run->model->eps, in->cols, row);
    } else {
        memcpy(row, src, (size_t)in->cols * sizeof *row);
        memset(row + in->cols, 0, (size_t)(in->ldx - in->cols) * sizeof *row);
    }
    if (isa->quantise(row, in->cols, in->codes_stride, codes, in->scale + t, in->sum + t))
        bc_report_bad(run, layer * BC_SITES + site);
}

/* Make the input of a site, all tokens in every thread where they are few, else together and with a barrier; for in->by_panels. */
static void bc_prepare(bc_run *run, bc_thread *thread, int32_t layer, int site, const float *src, int64_t ld_src,
                       const float *norm, int any_dense, int any_q6_k, bc_input *in)
{
    const bc_model *m = run->model;
    const bc_scratch *s = &run->s;
    const int64_t cols = bc_site_width(m, site), stride = bc_round_up(cols, 128), n = run->batch->n;
    uint8_t *own = s->own + thread->index * s->own_bytes;
    *in = (bc_input){.n = n, .cols = cols, .codes_stride = stride, .by_panels = in->by_panels, .ldx = bc_round_up(cols, BC_LANES),
                     .codes = s->tiles, .tiles = s->tiles, .scale = s->scale, .sum = s->sum, .digits = s->digits};
    in->gated = (float *)own, own += 2 * BC_GATED_FLOATS * 4;
    uint8_t *const own_digits = own;
    own += (BC_GEMM_TOKENS - 1) * bc_digits_bytes(bc_widest(m));
    float *const x = (float *)own; /* of BC_GEMM_TOKENS - 1, at least a tile */
    own += (BC_GEMM_TOKENS - 1) * bc_widest(m) * 4;
    int8_t *const codes = (int8_t *)own;
    own += (BC_GEMM_TOKENS - 1) * bc_widest(m);
    if (n < BC_GEMM_TOKENS) {
        in->x = x, in->codes = codes, in->digits = own_digits;
        in->scale = (float *)own, in->sum = (int32_t *)(in->scale + BC_GEMM_TOKENS), own += (BC_GEMM_TOKENS - 1) * 64;
        in->tables = own;
        for (int64_t t = 0; t < n; t++) {
            bc_prepare_token(run, layer, site, src + t * ld_src, norm, in, t, x + t * in->ldx, codes + t * stride);
            if (any_q6_k)
                m->isa->digits(x + t * in->ldx, cols, in->digits + t * bc_digits_bytes(cols));
            if (thread->index == 0)
                bc_trace(run, in, codes + t * stride, layer, site, t);
        }
        return;
    }
    in->x = any_dense ? s->normed : NULL;
    for (int64_t task; (task = bc_own_task(thread, (n + BC_MAX_TILE - 1) / BC_MAX_TILE)) >= 0;) {
        const int64_t t0 = task * BC_MAX_TILE;
        for (int64_t t = t0; t < bc_min(t0 + BC_MAX_TILE, n); t++) {
            /* only the packed tile leaves this core's cache */
            int8_t *mine = in->by_panels ? codes + (t - t0) * stride : in->codes + t * stride;
            float *const row = any_dense ? in->x + t * in->ldx : x;
            bc_prepare_token(run, layer, site, src + t * ld_src, norm, in, t, row, mine);
            if (any_q6_k)
                m->isa->digits(row, cols, in->digits + t * bc_digits_bytes(cols));
            bc_trace(run, in, mine, layer, site, t);
        }
        if (in->by_panels)
            bc_pack_tile(in, codes, t0, bc_tile(n - t0));
    }
    bc_barrier(thread);
}
_Static_assert((int)BC_GEMM_TOKENS > BC_MAX_TILE, "what a thread has for the tokens of a decode step holds a tile");

static bc_linear bc_linear_of(const bc_model *m, const bc_matrix *w, float *out, int64_t ldo, const float *residual)
{
    const bc_linear l = {w, bc_is_dense(w->type) ? NULL : bc_find_ternary(m->isa, w->type), -1, out, ldo, residual, 0, 0};
    return l;
}

/* One site of a layer: make its input and multiply it by the matrices that share it. product: the activation that makes
 * one of the first two results, or NULL. */
static void bc_site(bc_run *run, bc_thread *thread, int32_t layer, int site, const float *src, int64_t ld_src, const float *norm,
                    bc_linear *linears, int n, bc_product *product)
{
    bc_input in = {.by_panels = bc_any_by_panels(linears, n, run->batch->n)};
    if (!in.by_panels) { /* memory works while the input is made */
        const bc_cut cut = product ? bc_cut_gated(linears, linears + 1, thread->size) : bc_cut_linear(linears, thread->size, n == 1);
        bc_begin(linears, bc_task_rows(&cut, thread->index));
    }
    int any_dense = 0, any_q6_k = 0;
    for (int i = 0; i < n; i++) {
        any_dense |= !linears[i].ternary;
        any_q6_k |= linears[i].w->type == BC_Q6_K;
    }
    bc_prepare(run, thread, layer, site, src, ld_src, norm, any_dense, any_q6_k, &in);
    bc_build_tables(linears, n, &in);
    bc_apply(run->model->isa, thread, linears, n, &in, product);
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
    if (bc_by_heads(run)) {
        bc_attend_heads(run, thread, layer);
    } else {
        bc_rotate(run, thread, layer);
        bc_attend(run, thread, layer);
    }
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

static void bc_final_norm(bc_run *run, const bc_input *in, int64_t i)
{
    const bc_model *m = run->model;
    float *y = in->x + i * in->ldx;
    if (!(m->isa->norm(run->s.x + run->batch->logit_rows[i] * in->ldx, m->output_norm, m->eps, m->hidden, y) < INFINITY))
        bc_report_bad(run, m->n_layers * BC_SITES);
    if (m->head.type == BC_Q6_K)
        m->isa->digits(y, m->hidden, in->digits + i * bc_digits_bytes(m->hidden));
}

static void bc_check_logits(bc_run *run, int64_t first, int64_t last)
{
    const uint32_t all_ones = 0x7f800000; /* the exponent of infinities and NaN */
    uint32_t bad = 0;
    for (int64_t i = first; i < last; i++)
        bad |= (bc_float_bits(run->batch->logits[i]) & all_ones) == all_ones;
    if (bad)
        bc_report_bad(run, run->model->n_layers * BC_SITES + 1);
}

static void bc_logits(bc_run *run, bc_thread *thread)
{
    const bc_model *m = run->model;
    const int64_t n = run->batch->n_logits;
    const bc_linear head = bc_linear_of(m, &m->head, run->batch->logits, m->head.rows, NULL);
    bc_input in = {.n = n, .cols = m->hidden, .by_panels = bc_by_panels(head.ternary, n), .x = run->s.normed,
                   .ldx = bc_round_up(m->hidden, BC_LANES), .digits = run->s.digits};
    if (n < BC_GEMM_TOKENS) { /* as in bc_prepare */
        const bc_cut cut = bc_cut_linear(&head, thread->size, 1);
        bc_begin(&head, bc_task_rows(&cut, thread->index));
        in.digits = run->s.own + thread->index * run->s.own_bytes;
        in.x = (float *)(in.digits + n * bc_digits_bytes(m->hidden));
        for (int64_t i = 0; i < n; i++)
            bc_final_norm(run, &in, i);
    } else {
        for (int64_t i; (i = bc_own_task(thread, n)) >= 0;)
            bc_final_norm(run, &in, i);
        bc_barrier(thread);
    }
    bc_apply(m->isa, thread, &head, 1, &in, NULL);
    bc_barrier(thread);
    const int64_t logits = n * m->head.rows;
    bc_check_logits(run, logits * thread->index / thread->size, logits * (thread->index + 1) / thread->size);
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
