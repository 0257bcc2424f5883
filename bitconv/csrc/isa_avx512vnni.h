/* AVX-512 with VNNI, in a target region of its own. The types that it has no kernel of its own for use those of AVX2. */
#if defined(__x86_64__) && defined(__GNUC__)
#define BC_HAVE_AVX512VNNI 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#define ISA(name) name##_avx512vnni
#define BC_ISA_NAME "avx512vnni"
#include "simd_avx512.h"
#include "q6_k_avx512vnni.h"
#include "float_kernels.h"
#include "gemm_avx512vnni.h"
#include "two_bit_avx512vnni.h"
#include "tq1_0_avx512vnni.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const bc_ternary ternary_avx512vnni[] = {
    BC_TWO_BIT(i2_s, BC_I2_S, avx512vnni, avx2),
    BC_TERNARY(BC_TQ1_0, tq1_0, bc_plain_panel_end, bc_any_row_step, NULL),
    BC_TWO_BIT(tq2_0, BC_TQ2_0, avx512vnni, avx2),
};

static int usable_avx512vnni(void)
{
    return usable_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

static const bc_isa isa_avx512vnni = {
    .name = "avx512vnni", .usable = usable_avx512vnni, .base = &isa_avx2, BC_FLOAT_KERNELS, BC_TILE(gemm_tile_avx512vnni), .peak = gemm_peak_avx512vnni,
    .ternary = ternary_avx512vnni, .n_ternary = sizeof ternary_avx512vnni / sizeof *ternary_avx512vnni,
};

#undef ISA
#undef BC_ISA_NAME
#undef VF
#undef VL
#undef NV
#endif
