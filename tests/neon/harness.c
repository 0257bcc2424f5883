/* Compares every kernel of every instruction set of this CPU with its scalar form; exits with 1 when one differs.
 *
 * Plain C without Python, so that it runs where there is only a cross compiler and an emulator.
 */
#include "harness.h"
#include "float_cases.h"
#include "ternary_cases.h"

#include "cpu.h"
#include "limits.h"
#include "validate.h"

enum { HIDDEN = 256, FFN = 512, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, LAYERS = 2, VOCABULARY = 100, CONTEXT = 64 };

static bc_matrix a_weight(int32_t type, int64_t rows, int64_t cols, int32_t tile_rows, int32_t tile_cols, int32_t micro_rows)
{
    bc_matrix w = {NULL, rows, cols, type, tile_rows, tile_cols, micro_rows, 0.02f};
    w.data = take_weight(&w, 0);
    return w;
}

static bc_matrix a_half_matrix(int64_t rows, int64_t cols)
{
    return (bc_matrix){.data = take_halves(rows * cols), .rows = rows, .cols = cols, .type = BC_F16};
}

/* one statement a draw, so that the model is the same whatever the compiler and the architecture */
static bc_layer a_layer(void)
{
    bc_layer l;
    l.attn_norm = take_floats(HIDDEN, HIDDEN, NORMAL);
    l.attn_sub_norm = take_floats(HIDDEN, HIDDEN, NORMAL);
    l.ffn_norm = take_floats(HIDDEN, HIDDEN, NORMAL);
    l.ffn_sub_norm = take_floats(FFN, FFN, NORMAL);
    l.q = a_weight(BC_I2_S, HEADS * HEAD_DIM, HIDDEN, 0, 0, 0);
    l.k = a_weight(BC_TQ2_0, KV_HEADS * HEAD_DIM, HIDDEN, 0, 0, 0);
    l.v = a_weight(BC_TQ1_0, KV_HEADS * HEAD_DIM, HIDDEN, 0, 0, 0);
    l.output = a_weight(BC_I2_S, HIDDEN, HIDDEN, 0, 0, 0);
    l.gate = a_weight(BC_TL1, FFN, HIDDEN, 128, 64, 32);
    l.up = a_weight(BC_TL2, FFN, HIDDEN, 128, 96, 32);
    l.down = a_weight(BC_TL1, HIDDEN, FFN, 64, 128, 64);
    return l;
}

static bc_model a_model(bc_layer *layers)
{
    bc_model m = {.n_layers = LAYERS, .hidden = HIDDEN, .ffn = FFN, .n_heads = HEADS, .n_kv_heads = KV_HEADS,
                  .head_dim = HEAD_DIM, .eps = 1e-5f, .attention_scale = 0.125f, .layers = layers};
    for (int i = 0; i < LAYERS; i++)
        layers[i] = a_layer();
    m.output_norm = take_floats(HIDDEN, HIDDEN, NORMAL);
    m.embedding = a_half_matrix(VOCABULARY, HIDDEN);
    m.head = a_half_matrix(VOCABULARY, HIDDEN);
    return m;
}

static bc_cache a_cache(int32_t type)
{
    const int64_t bytes = (int64_t)LAYERS * KV_HEADS * CONTEXT * HEAD_DIM * 4;
    float inv_freq[HEAD_DIM / 2], *cos = take(CONTEXT * HEAD_DIM * 2), *sin = take(CONTEXT * HEAD_DIM * 2);
    for (int i = 0; i < HEAD_DIM / 2; i++)
        inv_freq[i] = 1.0f / (float)(1 + i * i);
    bc_rope_rows(inv_freq, HEAD_DIM / 2, 0, CONTEXT, cos, sin);
    return (bc_cache){.type = type, .n_ctx = CONTEXT, .k = take(bytes), .v = take(bytes), .cos = cos, .sin = sin};
}

/* logits of all tokens of a prefill of 13, two steps together and one alone; returns whether a value was not finite */
static int run_passes(const bc_model *m, int32_t cache_type, float *logits)
{
    static const int32_t parts[] = {13, 2, 1};
    static const int32_t sequence[16], rows[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const bc_cache cache = a_cache(cache_type);
    int32_t token[16], any = 0;
    for (int i = 0; i < 16; i++)
        token[i] = i * 37 % VOCABULARY;
    for (int part = 0, done = 0; part < 3; done += parts[part++]) {
        const bc_batch batch = {.n = parts[part], .token = token + done, .position = rows + done, .sequence = sequence,
                                .n_logits = parts[part], .logit_rows = rows, .logits = logits + done * VOCABULARY};
        bc_scratch layout;
        int32_t bad;
        bc_forward(m, &cache, &batch, take(bc_scratch_layout(m, batch.n, 1, NULL, &layout)), 1, &bad);
        any |= bad != INT32_MAX;
    }
    return any;
}

/* returns a checksum of the scalar logits, which must be the same on every architecture */
static uint64_t check_forward(const bc_isa *isa)
{
    uint64_t checksum = 14695981039346656037u;
    random_state = 7;
    for (int variant = 0; variant < 6; variant++) {
        bc_layer layers[LAYERS];
        bc_model model = a_model(layers);
        float *want = take(16 * VOCABULARY * 4), *got = take(16 * VOCABULARY * 4);
        const int32_t cache_type = cache_types[variant / 2];
        model.relu2 = model.interleaved = variant % 2;
        model.isa = &isa_scalar;
        const int bad = run_passes(&model, cache_type, want);
        model.isa = isa;
        for (int i = 0; i < 16 * VOCABULARY; i++)
            checksum = (checksum ^ bc_float_bits(want[i])) * 1099511628211u;
        expect(!bad && !run_passes(&model, cache_type, got) && want[0] == want[0] && !memcmp(want, got, 16 * VOCABULARY * 4));
    }
    report(isa, "forward");
    return checksum;
}

static uint64_t check_isa(const bc_isa *isa)
{
    check_norm(isa);
    check_quantise(isa);
    check_activations(isa);
    check_exp(isa);
    check_rope(isa);
    check_store_kv(isa);
    check_attend(isa);
    check_dense(isa);
    check_widen(isa);
    check_finish(isa);
    check_tile(isa);
    for (int t = 0; t < N_TYPES; t++) {
        check_gemv(isa, ternary_types + t);
        check_panel(isa, ternary_types + t);
    }
    return check_forward(isa);
}

int main(void)
{
    bc_cpu_feature features[BC_MAX_FEATURES];
    const int n = bc_cpu_features(features);
    for (int i = 0; i < n; i++)
        printf("%s%s %s", i ? ", " : "", features[i].name, features[i].present ? "yes" : "no");
    printf("\n");
    for (int i = 0; i < BC_N_ISAS; i++)
        if (bc_isas[i]->usable() && bc_isas[i] != &isa_scalar) {
            const uint64_t checksum = check_isa(bc_isas[i]);
            printf("%-10s  logits %08x%08x\n", bc_isas[i]->name, (unsigned)(checksum >> 32), (unsigned)checksum);
        }
    printf("%s\n", all_wrong ? "kernels DIFFER from scalar" : "every kernel equals scalar");
    return all_wrong != 0;
}
