/* VNNI on 256-bit registers, twice from the same source: AVX-VNNI for CPUs that have VNNI without AVX-512 (Alder Lake and
 * later), and the AVX-512VL encoding, which lets CPUs with AVX-512 test it and avoids their 512-bit registers. Everything
 * but the int8 products is that of AVX2.
 */
#if defined(__x86_64__) && defined(__GNUC__)

/* _mm256_dpbusd_avx_epi32 came with gcc 11 and clang 12, which Apple counts as 13 */
#if !defined(__clang__) ? __GNUC__ >= 11 : defined(__apple_build_version__) ? __clang_major__ >= 13 : __clang_major__ >= 12
#define BC_HAVE_AVXVNNI 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#define ISA(name) name##_avxvnni
#define DPBUSD _mm256_dpbusd_avx_epi32
#include "gemm_vnni256.h"
#include "two_bit_vnni256.h"
#undef ISA
#undef DPBUSD
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const bc_ternary ternary_avxvnni[] = {
    BC_TWO_BIT(i2_s, BC_I2_S, avxvnni, avx2),
    BC_TWO_BIT(tq2_0, BC_TQ2_0, avxvnni, avx2),
};
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512vl,avx512vnni")
#endif
#define ISA(name) name##_avx512vnni256
#define DPBUSD _mm256_dpbusd_epi32
#include "gemm_vnni256.h"
#include "two_bit_vnni256.h"
#undef ISA
#undef DPBUSD
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static const bc_ternary ternary_avx512vnni256[] = {
    BC_TWO_BIT(i2_s, BC_I2_S, avx512vnni256, avx2),
    BC_TWO_BIT(tq2_0, BC_TQ2_0, avx512vnni256, avx2),
};

static int bc_has_avxvnni(void)
{
    unsigned a, b, c, d; /* leaf 7, subleaf 1: older compilers do not know the name */
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 4);
}

static int usable_avxvnni(void) { return usable_avx2() && bc_has_avxvnni(); }

static int usable_avx512vnni256(void)
{
    return usable_avx2() && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

#define ISA(name) name##_avx2 /* of the float kernels */
#ifdef BC_HAVE_AVXVNNI
static const bc_isa isa_avxvnni = {
    .name = "avxvnni", .usable = usable_avxvnni, .base = &isa_avx2, BC_FLOAT_KERNELS, BC_TILE(gemm_tile_avxvnni),
    .peak = gemm_peak_avxvnni, .ternary = ternary_avxvnni, .n_ternary = sizeof ternary_avxvnni / sizeof *ternary_avxvnni,
};
#endif
static const bc_isa isa_avx512vnni256 = {
    .name = "avx512vnni256", .usable = usable_avx512vnni256, .base = &isa_avx2, BC_FLOAT_KERNELS,
    BC_TILE(gemm_tile_avx512vnni256), .peak = gemm_peak_avx512vnni256, .ternary = ternary_avx512vnni256,
    .n_ternary = sizeof ternary_avx512vnni256 / sizeof *ternary_avx512vnni256,
};
#undef ISA
#endif
