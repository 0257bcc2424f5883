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
    const VF y = ISA(vf_scale)(ISA(vf_scale)(p, n1), n2);
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
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        ISA(vf_store)(y + i, ISA(vf_mul)(ISA(vf_mul)(ISA(vf_load)(x + i), ISA(vf_set1)(inverse)), ISA(vf_load)(g + i)));
    for (; i < n; i++)
        y[i] = x[i] * inverse * g[i];
    for (; i < bc_round_up(n, BC_LANES); i++)
        y[i] = 0.0f;
    return sum;
}

/* the largest |x|, or least where that is larger; returns whether every value is finite */
BC_INLINE int ISA(absmax)(const float *x, int64_t n, float least, float *result)
{
    float tmp[BC_LANES], lanes[VL];
    VF most[NV], wrong[NV]; /* one each would wait for the addition before */
    for (int v = 0; v < NV; v++)
        most[v] = ISA(vf_set1)(least), wrong[v] = ISA(vf_set1)(0.0f);
    for (int64_t i = 0; i < n; i += BC_LANES) {
        const float *p = ISA(lanes_at)(x, i, n, tmp);
        for (int v = 0; v < NV; v++) {
            const VF a = ISA(vf_load)(p + v * VL);
            wrong[v] = ISA(vf_add)(wrong[v], ISA(vf_sub)(a, a)); /* 0 for a finite value, NaN for the others */
            most[v] = ISA(vf_max)(ISA(vf_abs)(a), most[v]);
        }
    }
    for (int v = 1; v < NV; v++)
        most[0] = ISA(vf_max)(most[v], most[0]);
    const float bad = ISA(fold)(wrong);
    ISA(vf_store)(lanes, most[0]);
    *result = lanes[0];
    for (int i = 1; i < VL; i++)
        *result = lanes[i] > *result ? lanes[i] : *result;
    return bad == bad;
}

#define QUANTISE_PART 65536 /* columns, a multiple of BC_LANES */

/* scale = 127 / max|x| in two roundings, as torch evaluates it; codes are rounded half to even */
static int ISA(quantise)(const float *x, int64_t n, int64_t n_pad, int8_t *q, float *scale, int32_t *sum)
{
    float tmp[BC_LANES], m;
    int8_t codes[BC_LANES];
    int32_t total = 0; /* not in *sum, whose line other cores write too */
    if (!ISA(absmax)(x, n, 1e-5f, &m)) {
        memset(q, 0, (size_t)n_pad);
        *scale = 1.0f;
        *sum = 0;
        return 1;
    }
    *scale = (1.0f / m) * 127.0f;
    const VF s = ISA(vf_set1)(*scale);
    for (int64_t i = 0; i < n;) {
        VF part[NV]; /* sums of codes, exact: 2^24 / 127 of them would be needed to round */
        for (int v = 0; v < NV; v++)
            part[v] = ISA(vf_set1)(0.0f);
        for (const int64_t end = bc_min(i + QUANTISE_PART, n); i < end; i += BC_LANES) {
            const int whole = n - i >= BC_LANES;
            const float *p = ISA(lanes_at)(x, i, n, tmp);
            int8_t *to = whole ? q + i : codes;
            for (int v = 0; v < NV; v++) {
                const VF code = ISA(vf_round)(ISA(vf_mul)(ISA(vf_load)(p + v * VL), s));
                part[v] = ISA(vf_add)(part[v], code);
                ISA(vf_store_i8)(to + v * VL, code);
            }
            if (!whole)
                memcpy(q + i, codes, (size_t)(n - i));
        }
        total += (int32_t)ISA(fold)(part);
    }
    *sum = total;
    memset(q + n, 0, (size_t)(n_pad - n));
    return 0;
}

#undef QUANTISE_PART

#define FINISH_AHEAD 6 /* tokens */

static void ISA(finish)(const int32_t *sums, int64_t n, int64_t n_tokens, const int32_t *minus, const float *act_scale,
                        float weight_scale, const float *residual, float *y, int64_t ldy)
{
    for (int64_t t = 0; t < n_tokens; t++, sums += BC_PANEL_ROWS, y += ldy) {
        const int32_t less = minus ? minus[t] : 0;
        int64_t i = 0;
        if (t + FINISH_AHEAD < n_tokens) /* the lines of a panel of rows, which are in L2: stores wait for them one by one */
            for (int64_t at = 0; at < BC_PANEL_ROWS; at += 16) {
                __builtin_prefetch(y + FINISH_AHEAD * ldy + at, 1);
                if (residual)
                    __builtin_prefetch(residual + (t + FINISH_AHEAD) * ldy + at);
            }
        for (; i + VL <= n; i += VL) {
            const VF quotient = ISA(vf_div)(ISA(vf_load_i32)(sums + i, less), ISA(vf_set1)(act_scale[t]));
            VF result = ISA(vf_mul)(quotient, ISA(vf_set1)(weight_scale));
            if (residual)
                result = ISA(vf_add)(result, ISA(vf_load)(residual + t * ldy + i));
            ISA(vf_store)(y + i, result);
        }
        for (; i < n; i++) {
            y[i] = (float)(sums[i] - less) / act_scale[t] * weight_scale;
            if (residual)
                y[i] += residual[t * ldy + i];
        }
    }
}

#undef FINISH_AHEAD

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
    int32_t i = 0;
    for (; !interleaved && i + VL <= half; i += VL) {
        const VF a = ISA(vf_load)(head + i), b = ISA(vf_load)(head + half + i), c = ISA(vf_load)(cos + i), s = ISA(vf_load)(sin + i);
        ISA(vf_store)(head + i, ISA(vf_sub)(ISA(vf_mul)(a, c), ISA(vf_mul)(b, s)));
        ISA(vf_store)(head + half + i, ISA(vf_add)(ISA(vf_mul)(b, c), ISA(vf_mul)(a, s)));
    }
    for (; i < half; i++) {
        float *first = interleaved ? head + 2 * i : head + i, *second = interleaved ? first + 1 : first + half;
        const float a = *first, b = *second;
        *first = a * cos[i] - b * sin[i];
        *second = b * cos[i] + a * sin[i];
    }
}

/* The code of 32 numbers, x = code * scale: scale = max|x| / 127 as f16, codes are rounded half to even. A scale beyond f16 is
 * infinity, and that of a group with a number that is not finite NaN: times the codes, which are 0 then, both give NaN. */
BC_INLINE uint16_t ISA(quantise_group)(const float *x, int8_t *codes)
{
    float lanes[VL], most = 0.0f;
    VF top = ISA(vf_set1)(0.0f), wrong = top;
    for (int v = 0; v < NV; v++) {
        const VF a = ISA(vf_load)(x + v * VL);
        wrong = ISA(vf_add)(wrong, ISA(vf_sub)(a, a));
        top = ISA(vf_max)(ISA(vf_abs)(a), top);
    }
    ISA(vf_store)(lanes, top);
    for (int i = 0; i < VL; i++)
        most = lanes[i] > most ? lanes[i] : most;
    const float bad = ISA(vf_fold)(wrong);
    const uint16_t half = bad != bad ? 0x7e00 : bc_f32_to_f16(most / 127.0f);
    const float scale = bc_f16_to_f32(half);
    if (scale != scale || scale == 0.0f) {
        memset(codes, 0, BC_GROUP);
        return half;
    }
    const VF limit = ISA(vf_set1)(127.0f); /* a subnormal scale may be rounded down by a lot */
    for (int v = 0; v < NV; v++) {
        const VF code = ISA(vf_round)(ISA(vf_div)(ISA(vf_load)(x + v * VL), ISA(vf_set1)(scale)));
        ISA(vf_store_i8)(codes + v * VL, ISA(vf_min)(ISA(vf_max)(code, ISA(vf_sub)(ISA(vf_set1)(0.0f), limit)), limit));
    }
    return half;
}

/* Write a group of n <= 32 numbers of one key (transposed: a column) or value (a row of `width`); returns what follows. */
BC_INLINE uint8_t *ISA(store_group)(const float *x, int32_t n, int32_t width, int transposed, int32_t type, int64_t key, uint8_t *group)
{
    const int32_t size = bc_cached_size(type);
    uint8_t numbers[BC_GROUP * 4];
    if (type == BC_Q8_0) {
        ((uint16_t *)group)[key] = ISA(quantise_group)(x, (int8_t *)numbers);
        group += BC_KEYS * 2;
    } else if (type == BC_F16) {
        for (int v = 0; v < NV; v++)
            ISA(vf_store_f16)((uint16_t *)numbers + v * VL, ISA(vf_load)(x + v * VL));
    } else {
        memcpy(numbers, x, sizeof numbers);
    }
    if (transposed)
        for (int32_t d = 0; d < n; d++)
            memcpy(group + (d * BC_KEYS + key) * size, numbers + d * size, (size_t)size);
    else
        memcpy(group + key * width * size, numbers, (size_t)(n * size));
    return group + BC_KEYS * width * size;
}

BC_INLINE void ISA(store_type)(const float *k, const float *v, int32_t head_dim, int32_t type, int64_t key, uint8_t *k_block,
                               uint8_t *v_block)
{
    for (int32_t d = 0; d < head_dim; d += BC_GROUP) {
        float tmp[BC_LANES];
        const int32_t n = (int32_t)bc_min(head_dim - d, BC_GROUP);
        k_block = ISA(store_group)(ISA(lanes_at)(k, d, head_dim, tmp), n, n, 1, type, key, k_block);
        v_block = ISA(store_group)(ISA(lanes_at)(v, d, head_dim, tmp), n, n > 16 ? 32 : 16, 0, type, key, v_block);
    }
}

/* keys are stored dimension by dimension within a block, so that the scores of 32 keys need no horizontal sum */
static void ISA(store_kv)(const float *k, const float *v, int32_t head_dim, int32_t type, int64_t key, void *k_cache, void *v_cache)
{
    uint8_t *k_block = (uint8_t *)k_cache + key / BC_KEYS * bc_key_block_bytes(type, head_dim);
    uint8_t *v_block = (uint8_t *)v_cache + key / BC_KEYS * bc_value_block_bytes(type, head_dim);
    if (type == BC_F32)
        ISA(store_type)(k, v, head_dim, BC_F32, key % BC_KEYS, k_block, v_block);
    else if (type == BC_F16)
        ISA(store_type)(k, v, head_dim, BC_F16, key % BC_KEYS, k_block, v_block);
    else
        ISA(store_type)(k, v, head_dim, BC_Q8_0, key % BC_KEYS, k_block, v_block);
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

#include "float_attention.h"
#include "float_dense.h"

/* the float half of an instruction set's row in the dispatch table */
#define BC_FLOAT_KERNELS                                                                                              \
    .norm = ISA(norm), .quantise = ISA(quantise), .silu_mul = ISA(silu_mul), .relu2_mul = ISA(relu2_mul),             \
    .exp = ISA(exp), .rope = ISA(rope), .store_kv = ISA(store_kv), .attend = ISA(attend),                             \
    .attend_segment = ISA(attend_segment), .merge_segments = ISA(merge_segments), .dense = ISA(dense),                 \
    .digits = ISA(q6_k_digits),                                                                                        \
    .widen = ISA(widen), .finish = ISA(finish)
