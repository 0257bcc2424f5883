/* What a forward pass works on: a model, a cache, a batch, and the working memory for it. */
#ifndef BITCONV_MODEL_H
#define BITCONV_MODEL_H

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
    int8_t *tiles;
    uint8_t *digits;
    uint8_t *own; /* [thread][own_bytes], what each thread makes for itself */
    int64_t own_bytes;
} bc_scratch;

typedef struct {
    const bc_model *model;
    const bc_cache *cache;
    const bc_batch *batch;
    bc_scratch s;
    int32_t split; /* whether segments of keys are tasks of their own */
    int32_t bad; /* the first layer * BC_SITES + site whose input was not finite, behind them the last norm and the logits; INT32_MAX: none */
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
 * [token] of digits, floats, codes, scale and sum. */
static inline int64_t bc_own_token(const bc_model *m) { return bc_digits_bytes(bc_widest(m)) + bc_widest(m) * 5 + 64; }

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
    BC_TAKE(tiles, (n + BC_MAX_TILE) * bc_widest(m));
    BC_TAKE(digits, n < BC_GEMM_TOKENS ? 0 : n * bc_digits_bytes(bc_widest(m)));
    s->own_bytes = 2 * BC_GATED_FLOATS * 4 + (BC_GEMM_TOKENS - 1) * (bc_own_token(m) + bc_tables_bytes(m));
    BC_TAKE(own, threads * s->own_bytes);
#undef BC_TAKE
    return at;
}

#endif
