/* The contract between the engine and its kernels.
 *
 * Kernels are pure: no allocation, no threads, no globals, no errors. The caller owns memory and threads.
 * Ternary kernels return exact int32 sums; floats meet them in one place only (finish).
 *
 * Float reductions are defined over BC_LANES virtual lanes, so that every instruction set gives the same bits:
 * element i belongs to lane i mod 32, each lane is one chain of fused multiply-adds in ascending i, a short tail
 * is padded with zeros, and the lanes are folded by the tree  lane[i] += lane[i + half], half = 16, 8, 4, 2, 1.
 * The whole package is compiled with -ffp-contract=off: a fused multiply-add is written out or does not happen.
 */
#ifndef BITCONV_KERNEL_API_H
#define BITCONV_KERNEL_API_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BC_INLINE static inline __attribute__((always_inline))

enum {
    BC_LANES = 32,       /* virtual lanes of a float reduction; float rows are padded to a multiple of it */
    BC_KEYS = 32,        /* keys in one block of the cache and of the online softmax */
    BC_MAX_ROWS = 1024,  /* rows of one decode task, so of a tile too; the int32 sums of a task lie on the stack */
    BC_TILE_ROWS = 16,   /* rows of one register tile */
    BC_PANEL_ROWS = 32,  /* rows unpacked at a time: two register tiles, and one row block of TL1 and TL2 */
    BC_PANEL_COLS = 1024,/* columns unpacked at a time, at most: 32 KiB of codes, which stay in L1 and L2 */
    BC_TOKEN_BLOCK = 264,/* tokens that share one unpacked panel, at most: their int32 sums stay beside it */
    BC_MAX_TILE = 6,     /* tokens of one register tile */
    BC_SEGMENT = 256,    /* keys of one softmax, a multiple of BC_KEYS; segments are merged in order */
    BC_GROUP = 32,       /* dimensions that share one scale in a Q8_0 cache */
    BC_MAX_SPLIT = 1024, /* groups of queries whose segments may be tasks of their own */
    BC_QUERIES = 24,     /* queries that share one pass over the keys */
    BC_MAX_HEAD_DIM = 1024,
    BC_STREAMS = 4,      /* places that lie far apart and are read together: one or two do not fill the memory pipeline */
    BC_FAR = 1024,       /* bytes that each of those streams is fetched ahead of its use */
    BC_FEW = 4,          /* tokens that share one pass over ternary rows, at most */
    BC_DENSE_TOKENS = 4, /* the same over Q6_K rows */
    BC_DIGITS = 640,     /* bytes of 256 activations as digits, and where in them the sums and the step are (float_q6_k.h) */
    BC_DIGIT_SUMS = 512,
    BC_DIGIT_STEP = 576,
    BC_MAX_SHARED_DIM = 128, /* of heads whose blocks are kept as float32 for later queries; larger ones take fewer along */
    BC_PARTS_FLOATS = BC_QUERIES * (BC_MAX_SHARED_DIM + 16),
};

/* ggml tensor type ids that the engine executes */
enum { BC_F32 = 0, BC_F16 = 1, BC_Q8_0 = 8, BC_Q6_K = 14, BC_BF16 = 30, BC_TQ1_0 = 34, BC_TQ2_0 = 35, BC_I2_S = 36, BC_TL1 = 38, BC_TL2 = 39 };

/* a weight of rows x cols as the file holds it; cols of a ternary weight is the padded length of a row of codes */
typedef struct {
    const uint8_t *data;
    int64_t rows, cols;
    int32_t type;
    int32_t tile_rows, tile_cols, micro_rows; /* BM, BK, bm of TL1 and TL2; unused by the others */
    float scale; /* the multiplier of a ternary weight; unused by dense ones */
} bc_matrix;

/* one ternary type on one instruction set */
typedef struct {
    int32_t type;
    const char *gemv_name, *panel_name;
    /* out[r - row0] = sum_k trit[r][k] * q[k], exact; q has w->cols codes and q_sum is their sum. row0 and row1 are
     * multiples of row_step(w), or row1 is the end; table is what prepare made of q. */
    void (*gemv)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int32_t q_sum, const uint8_t *table,
                 int32_t *out);
    /* codes trit + 1 of rows row0..row0+31 and columns k0..k1 as [2][(k1-k0)/4][16 rows][4]; row0 is a multiple of 32,
     * k1 = panel_end(w, k0), and what stands for rows past the end is any code */
    void (*panel)(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel);
    int64_t (*panel_end)(const bc_matrix *w, int64_t k0);
    /* fetch the beginnings of what gemv(w, row0, row1) will read */
    void (*begin)(const bc_matrix *w, int64_t row0, int64_t row1);
    /* fetch part i of 32 of what panel(w, row0, k0, k1) will read, soon or much later */
    void (*prefetch)(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, int64_t i, int far);
    int64_t (*row_step)(const bc_matrix *w);
    /* look-up tables of the codes of columns k0..k1 (k0 a multiple of 192), at their place in table; NULL: none */
    void (*prepare)(const bc_matrix *w, const int8_t *q, int64_t k0, int64_t k1, uint8_t *table);
    /* gemv of n = 2 to BC_FEW tokens in one pass over the weights, codes ldq and sums ldo apart; NULL: one token after another */
    void (*few)(const bc_matrix *w, int64_t row0, int64_t row1, const int8_t *q, int64_t ldq, const int32_t *q_sum, int n,
                int32_t *out, int64_t ldo);
    const char *few_name;
} bc_ternary;

/* attention of n_q queries, of one token or of several, that share one key/value head */
typedef struct {
    const float *q[BC_QUERIES]; /* [head_dim] each, after RoPE */
    float *out[BC_QUERIES];     /* [head_dim] each */
    int32_t n_keys[BC_QUERIES]; /* keys that each query sees, ascending */
    int32_t n_q, head_dim, v_stride;
    const void *k;              /* blocks of 32 keys, as bc_key_block_bytes says */
    const void *v;              /* the values of as many keys, as bc_value_block_bytes says */
    int32_t cache_type;         /* BC_F16, BC_F32 or BC_Q8_0 */
    float scale;
    int64_t k_ahead, v_ahead;   /* bytes from what is read to what will be read later, which few queries fetch meanwhile; or 0 */
} bc_attention;

/* one instruction set: the float kernels, the int8 tile kernel and its ternary types */
typedef struct bc_isa {
    const char *name;
    int (*usable)(void);
    const struct bc_isa *base; /* whose ternary types it takes over where it has none of its own, or NULL */
    /* y = x / sqrt(mean(x^2) + eps) * g, zero up to the next multiple of BC_LANES; returns the sum of squares */
    float (*norm)(const float *x, const float *g, float eps, int64_t n, float *y);
    /* per-token int8 codes: zero up to n_pad; returns 1 and all zeros when a value is not finite */
    int (*quantise)(const float *x, int64_t n, int64_t n_pad, int8_t *q, float *scale, int32_t *sum);
    void (*silu_mul)(const float *gate, const float *up, int64_t n, float *y);
    void (*relu2_mul)(const float *gate, const float *up, int64_t n, float *y);
    void (*exp)(const float *x, int64_t n, float *y);
    void (*rope)(float *head, const float *cos, const float *sin, int32_t head_dim, int32_t interleaved);
    void (*store_kv)(const float *k, const float *v, int32_t head_dim, int32_t type, int64_t key, void *k_cache, void *v_cache);
    /* the whole, or its segments: parts[q] of bc_part_floats each from the queries that see keys of a segment; then out
     * from parts[segment][q], where segments are ld floats apart, merged in place */
    void (*attend)(const bc_attention *a);
    void (*attend_segment)(const bc_attention *a, int32_t segment, float *parts);
    void (*merge_segments)(const bc_attention *a, float *parts, int64_t ld);
    /* out[t][r - row0] = sum_k w[r][k] * x[t][k]; x rows are ldx floats apart and zero past cols. Q6_K reads the digits of these
     * tokens instead, bc_digits_bytes(cols) apart, which may be NULL for the others */
    void (*dense)(const bc_matrix *w, int64_t row0, int64_t row1, const float *x, int64_t ldx, int64_t n,
                  float *out, int64_t ldo, const uint8_t *digits);
    void (*digits)(const float *x, int64_t cols, uint8_t *digits); /* of one token, aligned to 64 (float_q6_k.h) */
    /* y[t][i] = (sums[t][i] - minus[t]) / act_scale[t] * weight_scale, plus residual[t][i] where there is one: the one place
     * where exact sums become floats. Sums of tokens are BC_PANEL_ROWS apart, y and residual ldy; minus may be NULL. */
    void (*finish)(const int32_t *sums, int64_t n, int64_t n_tokens, const int32_t *minus, const float *act_scale,
                   float weight_scale, const float *residual, float *y, int64_t ldy);
    void (*widen)(const void *src, int32_t type, int64_t n, float *dst); /* dense row -> float32; row + n of the type */
    /* acc[t][32] += sum of codes * q over k columns, of the first 1 or 2 tiles of 16 rows of a panel, for a tile of tokens
     * packed as [k/4][tile][4]; |q| <= 127, k % 4 == 0 */
    void (*tile)(const uint8_t *panel, int32_t row_tiles, const int8_t *tokens, int32_t tile, int64_t k, int32_t *acc);
    const char *tile_name;
    int64_t (*peak)(int64_t steps); /* the int8 arithmetic of tile on registers alone, for benchmarks; NULL: none */
    const bc_ternary *ternary;
    int32_t n_ternary;
} bc_isa;

static inline int64_t bc_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t bc_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t bc_round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* bytes of a row of a dense weight, or 0 when the type is not dense or cannot hold such a row */
static inline int64_t bc_dense_bytes(int32_t type, int64_t cols)
{
    switch (type) {
    case BC_F32: return cols * 4;
    case BC_F16:
    case BC_BF16: return cols * 2;
    case BC_Q8_0: return cols % 32 ? 0 : cols / 32 * 34;
    case BC_Q6_K: return cols % 256 ? 0 : cols / 256 * 210;
    default: return 0;
    }
}

static inline int bc_is_dense(int32_t type)
{
    return type == BC_F32 || type == BC_F16 || type == BC_BF16 || type == BC_Q8_0 || type == BC_Q6_K;
}

/* bytes of a number of a cache without its scale, and of the scales that 32 numbers share in Q8_0 */
static inline int32_t bc_cached_size(int32_t type) { return type == BC_F16 ? 2 : type == BC_Q8_0 ? 1 : 4; }
static inline int32_t bc_scale_size(int32_t type) { return type == BC_Q8_0 ? 2 : 0; }

/* A block of BC_KEYS keys or values of one head is cut into groups of 32 dimensions: a row of scales of the 32 keys (f16, Q8_0
 * only), then numbers, those of keys as [dimension][32 keys], those of values as [32 keys][dimension]. The last group of
 * keys is as short as it is, that of values is padded to 16 or 32 dimensions with zeros. */
static inline int64_t bc_key_block_bytes(int32_t type, int64_t head_dim)
{
    return BC_KEYS * (head_dim * bc_cached_size(type) + bc_round_up(head_dim, BC_GROUP) / BC_GROUP * bc_scale_size(type));
}

static inline int64_t bc_value_block_bytes(int32_t type, int64_t head_dim) { return bc_key_block_bytes(type, bc_round_up(head_dim, 16)); }

/* floats of what a query has of a segment: sums [v_stride] of weights * values, sum of weights, largest score, padding */
static inline int64_t bc_part_floats(int64_t v_stride) { return v_stride + 16; }

/* queries that may go along in one call */
static inline int32_t bc_max_queries(int64_t head_dim)
{
    return (int32_t)bc_min(BC_QUERIES, BC_PARTS_FLOATS / bc_part_floats(bc_round_up(head_dim, 16)));
}

/* the bytes of one token as digits */
static inline int64_t bc_digits_bytes(int64_t cols) { return (cols + 255) / 256 * BC_DIGITS; }

/* where the code of row i and column k of a panel of n columns lies */
static inline int64_t bc_panel_at(int64_t i, int64_t k, int64_t n)
{
    return i / BC_TILE_ROWS * n * BC_TILE_ROWS + k / 4 * BC_TILE_ROWS * 4 + i % BC_TILE_ROWS * 4 + k % 4;
}

/* one row of a table of ternary types; needs ISA and BC_ISA_NAME */
#define BC_TERNARY(type, prefix, panel_end, row_step, prepare)                                                        \
    {type, #prefix "_gemv_" BC_ISA_NAME, #prefix "_panel_" BC_ISA_NAME, ISA(prefix##_gemv), ISA(prefix##_panel),      \
     panel_end, prefix##_begin, prefix##_prefetch, row_step, prepare, NULL, NULL}

/* the same of I2_S or TQ2_0, whose tokens share passes; panels: of which instruction set */
#define BC_TWO_BIT(prefix, type, isa, panels)                                                                                   \
    {type, #prefix "_gemv_" #isa, #prefix "_panel_" #panels, prefix##_gemv_##isa, prefix##_panel_##panels, bc_plain_panel_end,  \
     prefix##_begin, prefix##_prefetch, bc_any_row_step, NULL, prefix##_few_##isa, #prefix "_few_" #isa}

/* always inlined: gcc takes a function that does nothing but fetch for one without effect and drops the call */
BC_INLINE void bc_prefetch(const uint8_t *from, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(from + at);
}

/* into L2, for what is needed much later: the first level has too few misses under way to hide all of memory's delay */
BC_INLINE void bc_prefetch_far(const uint8_t *from, int64_t bytes)
{
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(from + at, 0, 2);
}

BC_INLINE void bc_fetch(const uint8_t *from, int64_t bytes, int far)
{
    if (far)
        bc_prefetch_far(from, bytes);
    else
        bc_prefetch(from, bytes);
}

#define BC_TILE(function) .tile = function, .tile_name = #function

/* a tile kernel from one of 16 rows */
#define BC_TILE_BY_ROWS(name, rows16)                                                                                        \
    static void name(const uint8_t *panel, int32_t row_tiles, const int8_t *tokens, int32_t tile, int64_t k, int32_t *acc)   \
    {                                                                                                                        \
        for (int32_t i = 0; i < row_tiles; i++)                                                                              \
            rows16(panel + i * k * BC_TILE_ROWS, tokens, tile, k, acc + i * BC_TILE_ROWS);                                   \
    }

/* the beginnings of the streams of rows row0..row1, which lie one after another: what their kernel does not fetch ahead. Into L2,
 * because a core waits where it fetches more lines into L1 than can be under way. */
BC_INLINE void bc_begin_rows(const uint8_t *data, int64_t row_bytes, int64_t row0, int64_t row1)
{
    const int64_t stream = (row1 - row0) / BC_STREAMS * row_bytes;
    for (int64_t i = 0; i < BC_STREAMS; i++)
        bc_prefetch_far(data + row0 * row_bytes + i * stream, bc_min(BC_FAR, stream));
}

#endif
