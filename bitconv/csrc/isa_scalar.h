/* Portable C for every CPU: the specification that every other instruction set equals bit for bit. */

#define ISA(name) name##_scalar
#define BC_ISA_NAME "scalar"
#include "simd_scalar.h"
#include "q6_k_portable.h"
#include "float_kernels.h"
#include "gemm_scalar.h"
#include "i2_s_scalar.h"
#include "tl1_scalar.h"
#include "tl2_scalar.h"
#include "tq1_0_scalar.h"
#include "tq2_0_scalar.h"

static const bc_ternary ternary_scalar[] = {
    BC_TERNARY(BC_I2_S, i2_s, bc_plain_panel_end, bc_any_row_step, NULL),
    BC_TERNARY(BC_TL1, tl1, bc_plain_panel_end, tl_row_step, NULL),
    BC_TERNARY(BC_TL2, tl2, tl2_panel_end, tl_row_step, NULL),
    BC_TERNARY(BC_TQ1_0, tq1_0, bc_plain_panel_end, bc_any_row_step, NULL),
    BC_TERNARY(BC_TQ2_0, tq2_0, bc_plain_panel_end, bc_any_row_step, NULL),
};

static int usable_scalar(void) { return 1; }

static const bc_isa isa_scalar = {
    .name = "scalar", .usable = usable_scalar, BC_FLOAT_KERNELS, BC_TILE(gemm_tile_scalar),
    .ternary = ternary_scalar, .n_ternary = sizeof ternary_scalar / sizeof *ternary_scalar,
};

#undef ISA
#undef BC_ISA_NAME
#undef VF
#undef VL
#undef NV
#undef BC_FLOAT_KERNELS
