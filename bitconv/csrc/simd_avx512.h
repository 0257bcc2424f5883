/* The SIMD vocabulary of float_kernels.h on AVX-512 (F, BW, VL). */

#define VF __m512
#define VL 16

BC_INLINE VF ISA(vf_set1)(float x) { return _mm512_set1_ps(x); }
BC_INLINE VF ISA(vf_load)(const float *p) { return _mm512_loadu_ps(p); }
BC_INLINE VF ISA(vf_load_f16)(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
BC_INLINE VF ISA(vf_load_bf16)(const uint16_t *p)
{
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
BC_INLINE VF ISA(vf_load_i8)(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
BC_INLINE VF ISA(vf_load_i32)(const int32_t *p, int32_t minus)
{
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(minus)));
}
BC_INLINE VF ISA(vf_add)(VF a, VF b) { return _mm512_add_ps(a, b); }
BC_INLINE VF ISA(vf_sub)(VF a, VF b) { return _mm512_sub_ps(a, b); }
BC_INLINE VF ISA(vf_mul)(VF a, VF b) { return _mm512_mul_ps(a, b); }
BC_INLINE VF ISA(vf_div)(VF a, VF b) { return _mm512_div_ps(a, b); }
BC_INLINE VF ISA(vf_fma)(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
BC_INLINE VF ISA(vf_max)(VF a, VF b) { return _mm512_max_ps(a, b); } /* returns b when either is NaN, as the scalar form */
BC_INLINE VF ISA(vf_min)(VF a, VF b) { return _mm512_min_ps(a, b); }
BC_INLINE VF ISA(vf_abs)(VF a) { return _mm512_abs_ps(a); }
BC_INLINE VF ISA(vf_round)(VF a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
BC_INLINE VF ISA(vf_if_less)(VF a, VF b, VF then, VF other)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), other, then);
}
BC_INLINE VF ISA(vf_if_nan)(VF a, VF then, VF other)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), other, then);
}
BC_INLINE VF ISA(vf_scale)(VF a, VF n) { return _mm512_scalef_ps(a, n); }

BC_INLINE void ISA(vf_store)(float *p, VF a) { _mm512_storeu_ps(p, a); }
BC_INLINE void ISA(vf_store_f16)(uint16_t *p, VF a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

BC_INLINE int32_t ISA(vf_store_i8)(int8_t *p, VF a)
{
    const __m512i wide = _mm512_cvtps_epi32(a);
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(wide));
    return _mm512_reduce_add_epi32(wide);
}

BC_INLINE float ISA(vf_fold)(VF a)
{
    const __m256 high = _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(a), 1));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), high);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    x = _mm_add_ss(x, _mm_shuffle_ps(x, x, 1));
    return _mm_cvtss_f32(x);
}
