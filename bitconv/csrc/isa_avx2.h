/* AVX2 with FMA and F16C, compiled in a target region so that one build serves every x86-64 CPU. */
#if defined(__x86_64__) && defined(__GNUC__)
#define BC_HAVE_AVX2 1
#include <cpuid.h>
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define ISA(name) name##_avx2
#define BC_ISA_NAME "avx2"
#include "simd_avx2.h"
#include "q6_k_avx2.h"
#include "float_kernels.h"
#include "gemm_avx2.h"
#include "common_avx2.h"
#include "two_bit_avx2.h"
#include "tl1_avx2.h"
#include "tl2_avx2.h"
#include "tq1_0_avx2.h"

static const bc_ternary ternary_avx2[] = {
    BC_TWO_BIT(i2_s, BC_I2_S, avx2, avx2),
    BC_TERNARY(BC_TL1, tl1, bc_plain_panel_end, tl_row_step, tl1_prepare_avx2),
    BC_TERNARY(BC_TL2, tl2, tl2_panel_end, tl_row_step, tl2_prepare_avx2),
    BC_TERNARY(BC_TQ1_0, tq1_0, bc_plain_panel_end, bc_any_row_step, NULL),
    BC_TWO_BIT(tq2_0, BC_TQ2_0, avx2, avx2),
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static int usable_avx2(void)
{
    unsigned a, b, c, d; /* __builtin_cpu_supports checks the system's part too, but older clangs do not know f16c */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static const bc_isa isa_avx2 = {
    .name = "avx2", .usable = usable_avx2, BC_FLOAT_KERNELS, BC_TILE(gemm_tile_avx2), .peak = gemm_peak_avx2,
    .ternary = ternary_avx2, .n_ternary = sizeof ternary_avx2 / sizeof *ternary_avx2,
};

#undef ISA
#undef BC_ISA_NAME
#undef VF
#undef VL
#undef NV
#endif
