/* Portable C for every CPU: the specification that every other instruction set equals bit for bit. */

#define ISA(name) name##_scalar
#include "simd_scalar.h"
#include "float_kernels.h"
#include "gemm_scalar.h"
#include "i2_s_scalar.h"

static int usable_scalar(void) { return 1; }

static const bc_isa isa_scalar = {
    .name = "scalar", .usable = usable_scalar, BC_FLOAT_KERNELS, .tile = gemm_tile_scalar,
    .ternary = ternary_scalar, .n_ternary = sizeof ternary_scalar / sizeof *ternary_scalar,
};

#undef ISA
#undef VF
#undef VL
#undef NV
#undef BC_FLOAT_KERNELS
