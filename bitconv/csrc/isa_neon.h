/* NEON, the baseline of aarch64, and the dot product instruction in a target region of its own, which redoes what
 * multiplies codes and shares the rest. Types without kernels here use the scalar ones.
 */
#if defined(__aarch64__) && defined(__ARM_NEON) && defined(__GNUC__)
#define BC_HAVE_NEON 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static int bc_has_dotprod(void)
{
#if defined(__ARM_FEATURE_DOTPROD)
    return 1;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & 1 << 20) != 0; /* HWCAP_ASIMDDP, which old headers lack */
#elif defined(__APPLE__)
    int present = 0;
    size_t size = sizeof present;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &present, &size, NULL, 0) == 0 && present;
#else
    return 0;
#endif
}

/* clang before 16 declares the intrinsics only when the whole build may use them */
#if defined(__ARM_FEATURE_DOTPROD) || !defined(__clang__) || __clang_major__ >= 16
#define BC_HAVE_NEONDOT 1
#if defined(__ARM_FEATURE_DOTPROD)
#define BC_DOT_EVERYWHERE 1 /* the target region sets __ARM_FEATURE_DOTPROD itself, so that cannot be asked at its end */
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define ISA(name) name##_neondot
#define BC_NEON_DOT 1
#include "gemm_neon.h"
#include "i2_s_neon.h"

static const bc_ternary ternary_neondot[] = {
    BC_TWO_BIT(i2_s, BC_I2_S, neondot, neondot),
};
#undef ISA
#undef BC_NEON_DOT

#if defined(BC_DOT_EVERYWHERE)
#elif defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#define ISA(name) name##_neon
#define BC_ISA_NAME "neon"
#include "simd_neon.h"
#include "q6_k_portable.h"
#include "float_kernels.h"
#include "gemm_neon.h"
#include "i2_s_neon.h"
#include "tl1_neon.h"

static const bc_ternary ternary_neon[] = {
    BC_TWO_BIT(i2_s, BC_I2_S, neon, neon),
    BC_TERNARY(BC_TL1, tl1, bc_plain_panel_end, tl_row_step, tl1_prepare_neon),
};

static int usable_neon(void) { return 1; }

static const bc_isa isa_neon = {
    .name = "neon", .usable = usable_neon, .base = &isa_scalar, BC_FLOAT_KERNELS, BC_TILE(gemm_tile_neon),
    .peak = gemm_peak_neon, .ternary = ternary_neon, .n_ternary = sizeof ternary_neon / sizeof *ternary_neon,
};

#ifdef BC_HAVE_NEONDOT
/* BC_FLOAT_KERNELS still names those of NEON */
static const bc_isa isa_neondot = {
    .name = "neondot", .usable = bc_has_dotprod, .base = &isa_neon, BC_FLOAT_KERNELS, BC_TILE(gemm_tile_neondot),
    .peak = gemm_peak_neondot, .ternary = ternary_neondot, .n_ternary = sizeof ternary_neondot / sizeof *ternary_neondot,
};
#endif

#undef ISA
#undef BC_ISA_NAME
#undef VF
#undef VL
#undef NV
#undef BC_FLOAT_KERNELS
#endif
