/* The SIMD vocabulary of float_kernels.h on NEON, which every aarch64 CPU has, conversions of halves included. */

#define VF float32x4_t
#define VL 4

BC_INLINE VF ISA(vf_set1)(float x) { return vdupq_n_f32(x); }
BC_INLINE VF ISA(vf_load)(const float *p) { return vld1q_f32(p); }
BC_INLINE VF ISA(vf_load_f16)(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
BC_INLINE VF ISA(vf_load_bf16)(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
BC_INLINE VF ISA(vf_load_i8)(const int8_t *p)
{
    int32_t word;
    memcpy(&word, p, 4);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(word)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
BC_INLINE VF ISA(vf_load_i32)(const int32_t *p, int32_t minus) { return vcvtq_f32_s32(vsubq_s32(vld1q_s32(p), vdupq_n_s32(minus))); }
BC_INLINE VF ISA(vf_add)(VF a, VF b) { return vaddq_f32(a, b); }
BC_INLINE VF ISA(vf_sub)(VF a, VF b) { return vsubq_f32(a, b); }
BC_INLINE VF ISA(vf_mul)(VF a, VF b) { return vmulq_f32(a, b); }
BC_INLINE VF ISA(vf_div)(VF a, VF b) { return vdivq_f32(a, b); }
BC_INLINE VF ISA(vf_fma)(VF a, VF b, VF c) { return vfmaq_f32(c, a, b); }
/* not vmaxq and vminq: those return NaN when either is NaN, the scalar form returns b */
BC_INLINE VF ISA(vf_max)(VF a, VF b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
BC_INLINE VF ISA(vf_min)(VF a, VF b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
BC_INLINE VF ISA(vf_abs)(VF a) { return vabsq_f32(a); }
BC_INLINE VF ISA(vf_round)(VF a) { return vrndnq_f32(a); }
BC_INLINE VF ISA(vf_if_less)(VF a, VF b, VF then, VF other) { return vbslq_f32(vcltq_f32(a, b), then, other); }
BC_INLINE VF ISA(vf_if_nan)(VF a, VF then, VF other) { return vbslq_f32(vceqq_f32(a, a), other, then); }
BC_INLINE VF ISA(vf_scale)(VF a, VF n)
{
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)));
}

BC_INLINE void ISA(vf_store)(float *p, VF a) { vst1q_f32(p, a); }
BC_INLINE void ISA(vf_store_f16)(uint16_t *p, VF a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }

BC_INLINE int32_t ISA(vf_store_i8)(int8_t *p, VF a)
{
    const int32x4_t wide = vcvtq_s32_f32(a);
    const int16x4_t words = vmovn_s32(wide);
    const int32_t codes = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
    memcpy(p, &codes, 4);
    return vaddvq_s32(wide);
}

BC_INLINE float ISA(vf_fold)(VF a)
{
    const float32x2_t x = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(x, 0) + vget_lane_f32(x, 1);
}
