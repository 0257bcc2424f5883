/* Who chooses: the instruction sets that this build knows, best first. A new one is its header and one row here. */
#ifndef BITCONV_DISPATCH_H
#define BITCONV_DISPATCH_H

#include "kernel_api.h"
#include "half.h"

#include "isa_scalar.h"
#include "isa_avx2.h"
#include "isa_avxvnni.h"
#include "isa_avx512vnni.h"
#include "isa_avx512vbmi.h"
#include "isa_neon.h"

static const bc_isa *const bc_isas[] = {
#ifdef BC_HAVE_AVX512VNNI
    &isa_avx512vbmi,
    &isa_avx512vnni,
#endif
#ifdef BC_HAVE_AVXVNNI
    &isa_avxvnni,
#endif
#ifdef BC_HAVE_AVX2
    &isa_avx512vnni256,
    &isa_avx2,
#endif
#ifdef BC_HAVE_NEONDOT
    &isa_neondot,
#endif
#ifdef BC_HAVE_NEON
    &isa_neon,
#endif
    &isa_scalar,
};
enum { BC_N_ISAS = sizeof bc_isas / sizeof *bc_isas };

/* the kernels of a ternary type, or NULL when the type is not executed from its own layout */
static const bc_ternary *bc_find_ternary(const bc_isa *isa, int32_t type)
{
    for (; isa; isa = isa->base)
        for (int32_t i = 0; i < isa->n_ternary; i++)
            if (isa->ternary[i].type == type)
                return &isa->ternary[i];
    return NULL;
}

#endif
