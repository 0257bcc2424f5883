/* The SIMD vocabulary of float_kernels.h on AVX2 + FMA + F16C. */

#define VF __m256
#define VL 8

BC_INLINE VF ISA(vf_set1)(float x) { return _mm256_set1_ps(x); }
BC_INLINE VF ISA(vf_load)(const float *p) { return _mm256_loadu_ps(p); }
BC_INLINE VF ISA(vf_load_f16)(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
BC_INLINE VF ISA(vf_load_bf16)(const uint16_t *p)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
BC_INLINE VF ISA(vf_load_i8)(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
BC_INLINE VF ISA(vf_load_i32)(const int32_t *p, int32_t minus)
{
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)p), _mm256_set1_epi32(minus)));
}
BC_INLINE VF ISA(vf_add)(VF a, VF b) { return _mm256_add_ps(a, b); }
BC_INLINE VF ISA(vf_sub)(VF a, VF b) { return _mm256_sub_ps(a, b); }
BC_INLINE VF ISA(vf_mul)(VF a, VF b) { return _mm256_mul_ps(a, b); }
BC_INLINE VF ISA(vf_div)(VF a, VF b) { return _mm256_div_ps(a, b); }
BC_INLINE VF ISA(vf_fma)(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
BC_INLINE VF ISA(vf_max)(VF a, VF b) { return _mm256_max_ps(a, b); } /* returns b when either is NaN, as the scalar form */
BC_INLINE VF ISA(vf_min)(VF a, VF b) { return _mm256_min_ps(a, b); }
BC_INLINE VF ISA(vf_abs)(VF a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
BC_INLINE VF ISA(vf_round)(VF a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
BC_INLINE VF ISA(vf_if_less)(VF a, VF b, VF then, VF other)
{
    return _mm256_blendv_ps(other, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
BC_INLINE VF ISA(vf_if_nan)(VF a, VF then, VF other)
{
    return _mm256_blendv_ps(other, then, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
BC_INLINE VF ISA(vf_scale)(VF a, VF n)
{
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

BC_INLINE void ISA(vf_store)(float *p, VF a) { _mm256_storeu_ps(p, a); }
BC_INLINE void ISA(vf_store_f16)(uint16_t *p, VF a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

BC_INLINE int32_t ISA(vf_store_i8)(int8_t *p, VF a)
{
    const __m256i wide = _mm256_cvtps_epi32(a);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    __m128i sum = _mm_madd_epi16(words, _mm_set1_epi16(1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
    return _mm_cvtsi128_si32(sum);
}

BC_INLINE float ISA(vf_fold)(VF a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    x = _mm_add_ss(x, _mm_shuffle_ps(x, x, 1));
    return _mm_cvtss_f32(x);
}
