/* Matrix products of the engine: who takes which rows, and the one place where int32 sums become floats. */
#ifndef BITCONV_LINEAR_H
#define BITCONV_LINEAR_H

#include "dispatch.h"
#include "team.h"

enum {
    BC_GEMM_TOKENS = 8,   /* from this many tokens on, threads make inputs together, and panels and tiles beat one GEMV per token */
    BC_FEW_TOKENS = 16,   /* up to this many tokens, passes of `few` beat both */
    BC_MIN_ROWS = 16,     /* of a decode task */
    BC_SMALL = 1 << 15,   /* bytes of weights of a small task of decode; the last of a step may have half as many */
    BC_CHUNK = 1 << 18,   /* bytes of weights that several tokens of a decode step read one after another, from L2 */
    BC_FEW_CODES = 1 << 17, /* bytes of codes of a step, up to which weights are fetched from far ahead */
    BC_TABLE_BYTES = 24,  /* of look-up tables per column, at most */
    BC_MAX_LINEARS = 3,   /* products that share an input */
    BC_GATED_FLOATS = BC_FEW_TOKENS * BC_MAX_ROWS, /* of gate or of up in one task, by rows or by panels */
};
_Static_assert((int)BC_GATED_FLOATS >= (int)BC_TOKEN_BLOCK * BC_PANEL_ROWS, "a task by panels is larger than one by rows");

/* the next task of a step over n tokens, or -1 */
static inline int64_t bc_token_task(bc_thread *thread, int64_t n, int64_t n_tasks)
{
    if (n >= BC_GEMM_TOKENS)
        return bc_own_task(thread, n_tasks);
    const int64_t task = bc_next_task(thread);
    return task < n_tasks ? task : -1;
}

/* the inputs of a site: n rows of cols features, as float32 for dense weights and as int8 codes for ternary ones */
typedef struct {
    int64_t n, cols, codes_stride; /* codes_stride = cols padded to 128 with zero codes */
    int by_panels;                 /* or by rows, as in decode */
    float *x;                      /* [n][ldx], zero past cols; where there are dense weights or few tokens */
    int64_t ldx;
    int8_t *codes;                 /* [n][codes_stride], by rows */
    int8_t *tiles;                 /* by panels: the codes as [tile][codes_stride/4][tokens of the tile][4] */
    float *scale;                  /* [n]; x ~= codes / scale */
    int32_t *sum;                  /* [n]; the sum of the codes */
    uint8_t *tables;               /* this thread's, [BC_MAX_LINEARS][BC_GEMM_TOKENS - 1][codes_stride * BC_TABLE_BYTES] for decode */
    uint8_t *digits;               /* [n][bc_digits_bytes(cols)], of x, where there are Q6_K weights */
    float *gated;                  /* this thread's, [2][BC_GATED_FLOATS] */
} bc_input;

/* out[t][row] = W x_t, plus residual[t][row] when there is one */
typedef struct {
    const bc_matrix *w;
    const bc_ternary *ternary; /* NULL: dense */
    int table;                 /* which of the input's tables it looks up */
    float *out;
    int64_t ldo;
    const float *residual; /* the same stride as out; never the same memory */
    int64_t out_token, out_row; /* where out begins: with the first of all, or with those of one task */
} bc_linear;

static inline float *bc_out(const bc_linear *l, int64_t t, int64_t row) { return l->out + (t - l->out_token) * l->ldo + (row - l->out_row); }

/* Tokens of the next register tile. Only the last is not 6, and it may be padded (5 -> 6, 3 -> 4, 1 -> 2), so a tile
 * starts at every sixth token and none crosses a block of BC_TOKEN_BLOCK. */
static inline int32_t bc_tile(int64_t left) { return left >= 5 ? 6 : left >= 3 ? 4 : 2; }

/* Pack codes [tokens][codes_stride] of the tile of tokens that begins with t0; tokens past the last are zeros. */
static void bc_pack_tile(const bc_input *in, const int8_t *codes, int64_t t0, int32_t tile)
{
    int8_t *dst = in->tiles + t0 * in->codes_stride;
    for (int32_t t = 0; t < tile; t++)
        for (int64_t g = 0; g < in->codes_stride / 4; g++) {
            if (t0 + t < in->n)
                memcpy(dst + (g * tile + t) * 4, codes + t * in->codes_stride + g * 4, 4);
            else
                memset(dst + (g * tile + t) * 4, 0, 4);
        }
}

/* rows row.. of tokens t.. from their sums; minus: from those of a panel, whose codes are trit + 1 */
static inline void bc_finish(const bc_isa *isa, const bc_linear *l, const bc_input *in, int64_t t, int64_t n_tokens, int64_t row,
                             int64_t n, const int32_t *sums, const int32_t *minus)
{
    const float *residual = l->residual ? l->residual + t * l->ldo + row : NULL;
    isa->finish(sums, n, n_tokens, minus, in->scale + t, l->w->scale, residual, bc_out(l, t, row), l->ldo);
}

/* whether a product of n tokens goes by panels; ternary: NULL of a dense one */
static inline int bc_by_panels(const bc_ternary *ternary, int64_t n)
{
    return n >= BC_GEMM_TOKENS && !(n <= BC_FEW_TOKENS && ternary && ternary->few);
}

/* products that share an input go alike */
static inline int bc_any_by_panels(const bc_linear *linears, int n_linears, int64_t n)
{
    int any = 0;
    for (int i = 0; i < n_linears; i++)
        any |= bc_by_panels(linears[i].ternary, n);
    return any;
}

static inline uint8_t *bc_table(const bc_linear *l, const bc_input *in, int64_t t)
{
    return in->tables + (l->table * (BC_GEMM_TOKENS - 1) + t) * in->codes_stride * BC_TABLE_BYTES;
}

/* Build the look-up tables of a decode step; products of the same type and tiling share them. Each thread makes its own:
 * they come from its cache, not from another core's, and no barrier is needed. */
static void bc_build_tables(bc_linear *linears, int n, const bc_input *in)
{
    for (int i = 0; i < n; i++) {
        bc_linear *l = linears + i;
        l->table = -1;
        if (!l->ternary || !l->ternary->prepare || in->by_panels)
            continue;
        for (int j = 0; j < i; j++) {
            const bc_matrix *other = linears[j].w;
            if (other->type == l->w->type && other->tile_cols == l->w->tile_cols && other->micro_rows == l->w->micro_rows)
                l->table = linears[j].table;
        }
        if (l->table >= 0)
            continue;
        l->table = i;
        for (int64_t t = 0; t < in->n; t++)
            l->ternary->prepare(l->w, in->codes + t * in->codes_stride, 0, l->w->cols, bc_table(l, in, t));
    }
}

static inline int64_t bc_row_bytes(const bc_linear *l)
{
    return l->ternary ? l->w->cols / 4 : bc_dense_bytes(l->w->type, l->w->cols);
}

/* Tasks of a decode step: row ranges of its products, in rounds of one task for each thread. Where a task begins memory waits, so
 * tasks are large; but in the last product of a step each round takes three quarters of what is left, because threads that do not
 * end together wait at the barrier: enough even where one core has three fifths of the other's speed. One thread has tasks of as
 * many rows as may be. */
typedef struct {
    int64_t rows, step, least, tasks; /* of the product; rows of a task are a multiple of step, and at least half of least */
    int32_t threads;
    int last; /* of its step, and not of one thread */
} bc_cut;

typedef struct {
    int64_t row0, row1;
} bc_rows;

/* the rows of each task of the round that begins with row0 */
static inline int64_t bc_task_size(const bc_cut *cut, int64_t row0)
{
    const int64_t share = (cut->rows - row0 + cut->threads - 1) / cut->threads, most = BC_MAX_ROWS / cut->step * cut->step;
    const int64_t part = !cut->last || share < 2 * cut->least ? share : share * 3 / 4;
    return bc_max(bc_min(bc_round_up(part, cut->step), most), bc_round_up(cut->least / 2, cut->step));
}

static bc_cut bc_cut_rows(const bc_linear *l, int64_t step, int32_t threads, int last)
{
    const int64_t rows = l->w->rows, least = bc_min(bc_max(BC_SMALL / bc_row_bytes(l), BC_MIN_ROWS), BC_MAX_ROWS / 4);
    step = bc_max(step, BC_STREAMS);
    bc_cut cut = {rows, step, bc_round_up(least, step), 0, threads, last && threads > 1};
    for (int64_t row0 = 0, size; row0 < rows; row0 += size * threads) {
        size = bc_task_size(&cut, row0);
        cut.tasks += bc_min(threads, (rows - row0 + size - 1) / size);
    }
    return cut;
}

/* the rows of a task; none, row0 >= row1, when there is no such task */
static inline bc_rows bc_task_rows(const bc_cut *cut, int64_t task)
{
    int64_t row0 = 0, size = bc_task_size(cut, row0);
    for (; task >= cut->threads && row0 < cut->rows; task -= cut->threads) {
        row0 += size * cut->threads;
        size = bc_task_size(cut, row0);
    }
    row0 += task * size;
    return (bc_rows){row0, bc_min(row0 + size, cut->rows)};
}

static inline int64_t bc_row_step(const bc_linear *l) { return l->ternary ? l->ternary->row_step(l->w) : 1; }

static void bc_dense_task(const bc_isa *isa, const bc_linear *l, const bc_input *in, int64_t row0, int64_t row1, int64_t t0, int64_t n)
{
    float *out = bc_out(l, t0, row0);
    isa->dense(l->w, row0, row1, in->x + t0 * in->ldx, in->ldx, n, out, l->ldo, in->digits + t0 * bc_digits_bytes(l->w->cols));
    if (l->residual)
        for (int64_t t = 0; t < n; t++)
            for (int64_t r = 0; r < row1 - row0; r++)
                out[t * l->ldo + r] += l->residual[(t0 + t) * l->ldo + row0 + r];
}

/* tokens that share a pass over the weights of a decode task on every instruction set that this kernel runs on */
static inline int64_t bc_shared_pass(const bc_linear *l)
{
    return l->ternary ? l->ternary->few ? BC_FEW : 1 : l->w->type == BC_Q6_K ? BC_DENSE_TOKENS : 1;
}

static void bc_gemv_task(const bc_isa *isa, const bc_linear *l, const bc_input *in, int64_t row0, int64_t row1)
{
    int32_t sums[BC_FEW * BC_MAX_ROWS];
    const int64_t passes = (in->n + bc_shared_pass(l) - 1) / bc_shared_pass(l);
    for (int64_t pass = 0; pass < passes; pass++) {
        const int64_t t = in->n * pass / passes, n = in->n * (pass + 1) / passes - t;
        const int8_t *codes = in->codes + t * in->codes_stride;
        if (n > 1)
            l->ternary->few(l->w, row0, row1, codes, in->codes_stride, in->sum + t, (int)n, sums, BC_MAX_ROWS);
        else
            l->ternary->gemv(l->w, row0, row1, codes, in->sum[t], l->table < 0 ? NULL : bc_table(l, in, t), sums);
        for (int64_t i = 0; i < n; i++)
            bc_finish(isa, l, in, t + i, 1, row0, row1 - row0, sums + i * BC_MAX_ROWS, NULL);
    }
}

/* Rows of a product for few tokens. Where these take turns on the weights, so few rows at a time that they stay in L2. */
static void bc_decode_task(const bc_isa *isa, const bc_linear *l, const bc_input *in, bc_rows rows)
{
    const int64_t step = bc_max(bc_row_step(l), BC_STREAMS);
    const int64_t each = in->n <= bc_shared_pass(l) ? BC_MAX_ROWS : bc_max(BC_CHUNK / bc_row_bytes(l) / step, 1) * step;
    for (int64_t row0 = rows.row0, row1; row0 < rows.row1; row0 = row1) {
        row1 = bc_min(row0 + each, rows.row1);
        if (l->ternary)
            bc_gemv_task(isa, l, in, row0, row1);
        else
            bc_dense_task(isa, l, in, row0, row1, 0, in->n);
    }
}

/* All tiles of a block of tokens on one unpacked panel. Meanwhile the memory that comes next is fetched: the packed weights
 * of the next panel, or of few tokens, which take less time than memory, those of the next rows, and after the last columns the
 * lines that the results go to and those they are added to. */
static void bc_run_tiles(const bc_isa *isa, const bc_linear *l, const bc_input *in, const uint8_t *panel, int64_t row0, int64_t k0,
                         int64_t k1, int64_t t0, int64_t n, const bc_linear *next, int64_t next_row0, int32_t *acc)
{
    const int ends = k1 == l->w->cols;
    const int far = l->w->cols * n <= BC_FEW_CODES && next->ternary == l->ternary && next->w->tile_cols == l->w->tile_cols;
    const bc_linear *ahead = far || ends ? next : l;
    const int64_t ahead_row0 = far || ends ? next_row0 : row0, ahead_k0 = far ? k0 : ends ? 0 : k1;
    const int64_t ahead_k1 = ahead->ternary->panel_end(ahead->w, ahead_k0);
    const int64_t steps = (n + BC_MAX_TILE - 1) / BC_MAX_TILE;
    const int32_t row_tiles = l->w->rows - row0 > BC_TILE_ROWS ? 2 : 1;
    for (int64_t t = 0, step = 0; t < n; step++) {
        const int32_t tile = bc_tile(in->n - t0 - t);
        for (int64_t i = step * 32 / steps; i < (step + 1) * 32 / steps; i++)
            ahead->ternary->prefetch(ahead->w, ahead_row0, ahead_k0, ahead_k1, i, far);
        if (ends)
            for (int64_t i = t; i < bc_min(t + tile, n); i++)
                for (int64_t row = row0; row < row0 + row_tiles * BC_TILE_ROWS; row += BC_TILE_ROWS) {
                    __builtin_prefetch(bc_out(l, t0 + i, row), 1);
                    if (l->residual)
                        __builtin_prefetch(l->residual + (t0 + i) * l->ldo + row);
                }
        isa->tile(panel, row_tiles, in->tiles + (t0 + t) * in->codes_stride + k0 * tile, tile, k1 - k0, acc + t * BC_PANEL_ROWS);
        t += tile;
    }
}

/* One panel of rows against one block of tokens. The int32 sums are of codes trit + 1, hence the correction. */
static void bc_gemm_task(const bc_isa *isa, const bc_linear *l, const bc_input *in, int64_t row0, int64_t t0, int64_t n,
                         const bc_linear *next, int64_t next_row0)
{
    _Alignas(64) uint8_t panel[BC_PANEL_ROWS * BC_PANEL_COLS];
    _Alignas(64) int32_t acc[(BC_TOKEN_BLOCK + BC_MAX_TILE) * BC_PANEL_ROWS];
    memset(acc, 0, sizeof *acc * (size_t)((n + BC_MAX_TILE) * BC_PANEL_ROWS));
    for (int64_t k0 = 0, k1; k0 < l->w->cols; k0 = k1) {
        k1 = l->ternary->panel_end(l->w, k0);
        l->ternary->panel(l->w, row0, k0, k1, panel);
        bc_run_tiles(isa, l, in, panel, row0, k0, k1, t0, n, next, next_row0, acc);
    }
    bc_finish(isa, l, in, t0, n, row0, bc_min(l->w->rows - row0, BC_PANEL_ROWS), acc, in->sum + t0);
}

/* Fetch the beginnings of a task's streams, so that it does not begin by waiting for memory. */
static inline void bc_begin(const bc_linear *l, bc_rows rows)
{
    if (rows.row0 >= rows.row1)
        return;
    if (l->ternary)
        l->ternary->begin(l->w, rows.row0, rows.row1);
    else
        bc_begin_rows(l->w->data, bc_dense_bytes(l->w->type, l->w->cols), rows.row0, rows.row1);
}

/* The first task of a step goes to the thread of its number, so that each knows what to fetch while it makes the input. */
static inline int64_t bc_later_task(bc_thread *thread) { return thread->size + bc_next_task(thread); }

static inline bc_cut bc_cut_linear(const bc_linear *l, int32_t threads, int last)
{
    return bc_cut_rows(l, bc_row_step(l), threads, last);
}

/* the product and the rows of a task of a step, or NULL */
static inline const bc_linear *bc_find_task(const bc_linear *linears, const bc_cut *cuts, int n_linears, int64_t task, bc_rows *rows)
{
    for (int i = 0; i < n_linears; task -= cuts[i++].tasks)
        if (task < cuts[i].tasks) {
            *rows = bc_task_rows(cuts + i, task);
            return linears + i;
        }
    return NULL;
}

/* A step of decode: all products that share an input, cut into tasks over all threads. The caller puts the barrier. */
static void bc_decode(const bc_isa *isa, bc_thread *thread, const bc_linear *linears, int n_linears, const bc_input *in)
{
    bc_cut cuts[BC_MAX_LINEARS];
    bc_rows rows, next_rows;
    for (int i = 0; i < n_linears; i++)
        cuts[i] = bc_cut_linear(linears + i, thread->size, i + 1 == n_linears);
    int64_t task = thread->index;
    for (const bc_linear *l; (l = bc_find_task(linears, cuts, n_linears, task, &rows)); task = bc_later_task(thread)) {
        const bc_linear *next = bc_find_task(linears, cuts, n_linears, task + thread->size, &next_rows);
        if (next)
            bc_begin(next, next_rows);
        bc_decode_task(isa, l, in, rows);
    }
}

typedef void bc_product(const float *gate, const float *up, int64_t n, float *out);

/* gate and up of some rows, which stay in the core's cache: out of a step of the gate is their product */
static void bc_gate_parts(const bc_linear *gate, const bc_linear *up, const bc_input *in, bc_rows rows, int64_t t0, bc_linear parts[2])
{
    parts[0] = *gate, parts[1] = *up;
    for (int i = 0; i < 2; i++) {
        parts[i].out = in->gated + i * BC_GATED_FLOATS;
        parts[i].ldo = bc_round_up(rows.row1 - rows.row0, BC_LANES);
        parts[i].out_token = t0, parts[i].out_row = rows.row0;
    }
}

static inline void bc_multiply_parts(const bc_linear *gate, const bc_linear parts[2], bc_product *product, bc_rows rows, int64_t t0, int64_t n)
{
    for (int64_t t = t0; t < t0 + n; t++)
        product(bc_out(parts, t, rows.row0), bc_out(parts + 1, t, rows.row0), rows.row1 - rows.row0, bc_out(gate, t, rows.row0));
}

static bc_cut bc_cut_gated(const bc_linear *gate, const bc_linear *up, int32_t threads)
{
    int64_t step = BC_LANES; /* whole vectors of floats belong to one task */
    while (step % bc_row_step(gate) || step % bc_row_step(up))
        step += BC_LANES;
    return bc_cut_rows(gate, step, threads, 1);
}

static void bc_decode_gated(const bc_isa *isa, bc_thread *thread, const bc_linear *gate, const bc_linear *up, const bc_input *in,
                            bc_product *product)
{
    const bc_cut cut = bc_cut_gated(gate, up, thread->size);
    for (int64_t task = thread->index; task < cut.tasks; task = bc_later_task(thread)) {
        const bc_rows rows = bc_task_rows(&cut, task);
        bc_linear parts[2];
        bc_gate_parts(gate, up, in, rows, 0, parts);
        bc_begin(up, rows);
        bc_decode_task(isa, parts, in, rows);
        bc_begin(gate, bc_task_rows(&cut, task + thread->size));
        bc_decode_task(isa, parts + 1, in, rows);
        bc_multiply_parts(gate, parts, product, rows, 0, in->n);
    }
}

/* Prefill: tasks are panels of rows for a block of tokens, all panels of a block before the next, whose codes stay in L2. */
typedef struct {
    int64_t blocks, tokens; /* how many blocks of how many tokens, whole tiles but for the last */
} bc_blocks;

static bc_blocks bc_cut_tokens(int64_t n)
{
    const int64_t blocks = (n + BC_TOKEN_BLOCK - 1) / BC_TOKEN_BLOCK;
    const int64_t tokens = bc_round_up((n + blocks - 1) / blocks, BC_MAX_TILE);
    return (bc_blocks){(n + tokens - 1) / tokens, tokens};
}

static inline int64_t bc_panels(const bc_linear *l) { return (l->w->rows + BC_PANEL_ROWS - 1) / BC_PANEL_ROWS; }

/* One panel of a product for one block of tokens. next and next_row0: where this thread will probably go on. */
static void bc_prefill_task(const bc_isa *isa, const bc_linear *l, const bc_input *in, int64_t row0, int64_t t0, int64_t n,
                            const bc_linear *next, int64_t next_row0)
{
    if (l->ternary)
        bc_gemm_task(isa, l, in, row0, t0, n, next->ternary ? next : l, next->ternary ? next_row0 : row0);
    else
        bc_dense_task(isa, l, in, row0, bc_min(row0 + BC_PANEL_ROWS, l->w->rows), t0, n);
}

static void bc_prefill(const bc_isa *isa, bc_thread *thread, const bc_linear *linears, int n_linears, const bc_input *in)
{
    const bc_blocks cut = bc_cut_tokens(in->n);
    int64_t panels = 0;
    for (int i = 0; i < n_linears; i++)
        panels += bc_panels(linears + i);
    for (int64_t task; (task = bc_own_task(thread, panels * cut.blocks)) >= 0;) {
        const int64_t t0 = task / panels * cut.tokens;
        const bc_linear *l = linears;
        int64_t panel = task % panels;
        for (; panel >= bc_panels(l); l++)
            panel -= bc_panels(l);
        const int last = panel + 1 == bc_panels(l);
        const bc_linear *next = !last ? l : l + 1 < linears + n_linears ? l + 1 : linears;
        bc_prefill_task(isa, l, in, panel * BC_PANEL_ROWS, t0, bc_min(in->n - t0, cut.tokens), next, last ? 0 : (panel + 1) * BC_PANEL_ROWS);
    }
}

static void bc_prefill_gated(const bc_isa *isa, bc_thread *thread, const bc_linear *gate, const bc_linear *up, const bc_input *in,
                             bc_product *product)
{
    const bc_blocks cut = bc_cut_tokens(in->n);
    const int64_t panels = bc_panels(gate);
    for (int64_t task; (task = bc_own_task(thread, panels * cut.blocks)) >= 0;) {
        const int64_t t0 = task / panels * cut.tokens, n = bc_min(in->n - t0, cut.tokens), row0 = task % panels * BC_PANEL_ROWS;
        const bc_rows rows = {row0, bc_min(row0 + BC_PANEL_ROWS, gate->w->rows)};
        bc_linear parts[2];
        bc_gate_parts(gate, up, in, rows, t0, parts);
        bc_prefill_task(isa, parts, in, row0, t0, n, parts + 1, row0);
        bc_prefill_task(isa, parts + 1, in, row0, t0, n, parts, (task + 1) % panels * BC_PANEL_ROWS);
        bc_multiply_parts(gate, parts, product, rows, t0, n);
    }
}

/* One step of a pass. product: of the feed-forward gate, whose two products it joins, or NULL. The caller puts the barrier. */
static void bc_apply(const bc_isa *isa, bc_thread *thread, const bc_linear *linears, int n, const bc_input *in, bc_product *product)
{
    if (in->by_panels && product)
        bc_prefill_gated(isa, thread, linears, linears + 1, in, product);
    else if (in->by_panels)
        bc_prefill(isa, thread, linears, n, in);
    else if (product)
        bc_decode_gated(isa, thread, linears, linears + 1, in, product);
    else
        bc_decode(isa, thread, linears, n, in);
}

#endif
