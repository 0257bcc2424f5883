/* The SIMD vocabulary of float_kernels.h in portable C; ISA(x) pastes the suffix of the instruction set. */

#define VF ISA(vf)
#define VL 8 /* floats in a VF */

typedef struct { float f[VL]; } VF;

#define BC_MAP(expression)          \
    VF r;                           \
    for (int i = 0; i < VL; i++)    \
        r.f[i] = (expression);      \
    return r

BC_INLINE VF ISA(vf_set1)(float x) { BC_MAP(x); }
BC_INLINE VF ISA(vf_load)(const float *p) { BC_MAP(p[i]); }
BC_INLINE VF ISA(vf_load_f16)(const uint16_t *p) { BC_MAP(bc_f16_to_f32(p[i])); }
BC_INLINE VF ISA(vf_load_bf16)(const uint16_t *p) { BC_MAP(bc_bf16_to_f32(p[i])); }
BC_INLINE VF ISA(vf_load_i8)(const int8_t *p) { BC_MAP((float)p[i]); }
BC_INLINE VF ISA(vf_load_i32)(const int32_t *p, int32_t minus) { BC_MAP((float)(p[i] - minus)); }
BC_INLINE VF ISA(vf_add)(VF a, VF b) { BC_MAP(a.f[i] + b.f[i]); }
BC_INLINE VF ISA(vf_sub)(VF a, VF b) { BC_MAP(a.f[i] - b.f[i]); }
BC_INLINE VF ISA(vf_mul)(VF a, VF b) { BC_MAP(a.f[i] * b.f[i]); }
BC_INLINE VF ISA(vf_div)(VF a, VF b) { BC_MAP(a.f[i] / b.f[i]); }
BC_INLINE VF ISA(vf_fma)(VF a, VF b, VF c) { BC_MAP(fmaf(a.f[i], b.f[i], c.f[i])); } /* a * b + c, one rounding */
BC_INLINE VF ISA(vf_max)(VF a, VF b) { BC_MAP(a.f[i] > b.f[i] ? a.f[i] : b.f[i]); }  /* b when either is NaN */
BC_INLINE VF ISA(vf_min)(VF a, VF b) { BC_MAP(a.f[i] < b.f[i] ? a.f[i] : b.f[i]); }
BC_INLINE VF ISA(vf_abs)(VF a) { BC_MAP(fabsf(a.f[i])); }
BC_INLINE VF ISA(vf_round)(VF a) { BC_MAP(rintf(a.f[i])); }                          /* half to even */
BC_INLINE VF ISA(vf_if_less)(VF a, VF b, VF then, VF other) { BC_MAP(a.f[i] < b.f[i] ? then.f[i] : other.f[i]); }
BC_INLINE VF ISA(vf_if_nan)(VF a, VF then, VF other) { BC_MAP(a.f[i] != a.f[i] ? then.f[i] : other.f[i]); }
/* a * 2^n, -126 <= n <= 127 */
BC_INLINE VF ISA(vf_scale)(VF a, VF n) { BC_MAP(a.f[i] * bc_bits_float((uint32_t)((int32_t)n.f[i] + 127) << 23)); }

BC_INLINE void ISA(vf_store)(float *p, VF a) { memcpy(p, a.f, sizeof a.f); }

BC_INLINE void ISA(vf_store_f16)(uint16_t *p, VF a)
{
    for (int i = 0; i < VL; i++)
        p[i] = bc_f32_to_f16(a.f[i]);
}

/* integers in -127..127 -> int8; returns their sum */
BC_INLINE int32_t ISA(vf_store_i8)(int8_t *p, VF a)
{
    int32_t sum = 0;
    for (int i = 0; i < VL; i++)
        sum += p[i] = (int8_t)a.f[i];
    return sum;
}

/* the last steps of the reduction tree */
BC_INLINE float ISA(vf_fold)(VF a)
{
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            a.f[i] += a.f[i + half];
    return a.f[0];
}

#undef BC_MAP
