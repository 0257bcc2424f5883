/* AVX-512 with VNNI and VBMI, which looks bytes up across a whole register: the look-up types. Everything else is that of
 * AVX-512 VNNI. */
#ifdef BC_HAVE_AVX512VNNI

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")
#endif
#define ISA(name) name##_avx512vbmi
#include "tl1_avx512vbmi.h"
#include "tl2_avx512vbmi.h"
#undef ISA
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const bc_ternary ternary_avx512vbmi[] = {
    {BC_TL1, "tl1_gemv_avx512vbmi", "tl1_panel_avx512vbmi", tl1_gemv_avx512vbmi, tl1_panel_avx512vbmi, bc_plain_panel_end, tl1_begin, tl1_prefetch,
     tl_row_step, tl1_prepare_avx512vbmi, NULL, NULL},
    {BC_TL2, "tl2_gemv_avx512vbmi", "tl2_panel_avx512vbmi", tl2_gemv_avx512vbmi, tl2_panel_avx512vbmi, tl2_panel_end, tl2_begin, tl2_prefetch,
     tl_row_step, tl2_prepare_avx512vbmi, NULL, NULL},
};

static int usable_avx512vbmi(void) { return usable_avx512vnni() && __builtin_cpu_supports("avx512vbmi"); }

#define ISA(name) name##_avx512vnni /* of the float kernels */
static const bc_isa isa_avx512vbmi = {
    .name = "avx512vbmi", .usable = usable_avx512vbmi, .base = &isa_avx512vnni, BC_FLOAT_KERNELS, BC_TILE(gemm_tile_avx512vnni),
    .peak = gemm_peak_avx512vnni, .ternary = ternary_avx512vbmi, .n_ternary = sizeof ternary_avx512vbmi / sizeof *ternary_avx512vbmi,
};
#undef ISA
#endif
