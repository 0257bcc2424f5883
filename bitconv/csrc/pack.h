/* From the bytes of a checkpoint to the bytes of a tensor: exact statistics, rounding and packing in one pass each.
 *
 * The bottleneck is memory: a weight is read twice (statistics, then packing), everything between lies in L1. All
 * arithmetic is exact, so neither the order of the pieces nor the instruction set nor the number of threads shows.
 * What the NumPy code of tensor_types/ gives is the specification. The kernels are plain loops in pack_kernels.h,
 * compiled for every CPU, for AVX2 and for AVX-512.
 */
#ifndef BITCONV_PACK_H
#define BITCONV_PACK_H

#include <stdlib.h>
#include <string.h>

#include "dispatch.h"

enum { BC_LIMBS = 6 };

/* What one pass over a master matrix tells. sum is sum |w| in units of 2^-149, little limb first: 2^40 weights of at
 * most 2^128 fit. largest and smallest are float32 bits of max |w| and of min |w| - 1 over w != 0 (all ones: none);
 * the sum means nothing once largest is infinite or NaN. */
typedef struct {
    uint64_t sum[BC_LIMBS];
    uint32_t largest, smallest;
} bc_statistics;

/* How the rows of a matrix are stored. A weight becomes -1 or +1, by its sign, when its magnitude as bits is at least
 * the threshold, else 0: for any scale, rounding is monotone in the magnitude. */
enum { BC_STORED_16 = 0, BC_STORED_32 = 1, BC_STORED_2BIT = 2, BC_STORED_TRITS = 3 };

typedef struct {
    const uint8_t *data; /* row `first` and those after it; of BC_STORED_2BIT always the whole matrix */
    int64_t cols, first;
    int64_t quarter;     /* packed rows of BC_STORED_2BIT: row i * quarter + r lies in bits 2i, 2i + 1 of row r */
    int64_t head_rows;   /* rows of an attention head whose halves are interleaved on the way, or 0 */
    int32_t stored;
    uint32_t threshold;
} bc_source;

typedef struct {
    uint8_t *data; /* the whole tensor */
    int64_t rows, cols;
    int32_t type, tile_rows, tile_cols, micro_rows;
    uint16_t d;    /* float16 bits, of TQ1_0 and TQ2_0 */
} bc_target;

typedef struct {
    const char *name;
    int (*usable)(void);
    void (*statistics)(const void *data, int32_t type, int64_t n, bc_statistics *s);
    /* out = the weights in another type, F32, F16 or BF16, rounded half to even; returns n, or where a block begins that
     * holds a weight that is not finite or too large */
    int64_t (*convert)(const void *data, int32_t from, int64_t n, int32_t to, void *out);
    /* place rows row0..row1, of TL1 and TL2 in groups of 32; returns how many are not zero, -1 for a code 3 */
    int64_t (*pack)(const bc_source *s, int64_t row0, int64_t row1, const bc_target *t);
} bc_packer;

enum {
    BC_PACK_ROWS = 32,  /* rows of a group of TL1 and TL2 */
    BC_PACK_COLS = 256, /* columns at a time: a block of TQ, and at least a tile of TL1 and TL2 */
};

/* sum += value * 2^place */
static void bc_add_at(uint64_t *sum, uint64_t value, int place)
{
    int i = place / 64;
    const int shift = place % 64;
    uint64_t part = value << shift, rest = shift ? value >> (64 - shift) : 0;
    for (; (part || rest) && i < BC_LIMBS; i++) {
        sum[i] += part;
        part = rest + (sum[i] < part); /* rest < 2^63: no carry out of this */
        rest = 0;
    }
}

/* sum += value, a double that is a multiple of 2^-149 and not negative */
static void bc_add_double(uint64_t *sum, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, 8);
    if (!bits)
        return;
    uint64_t mantissa = (bits & ((1ull << 52) - 1)) | 1ull << 52;
    int place = (int)(bits >> 52) - 1075 + 149; /* never subnormal: 2^-149 is far above */
    if (place < 0) {
        mantissa >>= -place;
        place = 0;
    }
    bc_add_at(sum, mantissa, place);
}

/* magnitude of a weight as float32 bits */
static inline uint32_t bc_magnitude(const void *data, int32_t type, int64_t i)
{
    if (type == BC_F32)
        return ((const uint32_t *)data)[i] & 0x7fffffff;
    const uint16_t bits = ((const uint16_t *)data)[i] & 0x7fff;
    return type == BC_BF16 ? (uint32_t)bits << 16 : bc_float_bits(bc_f16_to_f32(bits));
}

/* sum += |w| of at most 2^32 finite weights, whatever their exponents */
static void bc_add_by_exponent(const void *data, int32_t type, int64_t n, uint64_t *sum)
{
    uint64_t mantissas[2][256] = {{0}}; /* two tables: equal exponents in a row do not wait for each other */
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = bc_magnitude(data, type, i), exponent = bits >> 23;
        mantissas[i & 1][exponent] += (bits & 0x7fffff) + (exponent ? 0x800000u : 0);
    }
    for (int e = 0; e < 255; e++)
        for (int half = 0; half < 2; half++)
            bc_add_at(sum, mantissas[half][e], e ? e - 1 : 0);
}

#define ISA(name) name##_plain
#include "pack_kernels.h"
static const bc_packer packer_plain = {"plain", usable_scalar, statistics_plain, convert_plain, pack_plain};
#undef ISA

#ifdef BC_HAVE_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif
#define ISA(name) name##_wide
#include "pack_kernels.h"
#undef ISA
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
static const bc_packer packer_avx2 = {"avx2", usable_avx2, statistics_wide, convert_wide, pack_wide};
#endif

#ifdef BC_HAVE_AVX512VNNI
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c,prefer-vector-width=512")
#endif
#define ISA(name) name##_widest
#include "pack_kernels.h"
#undef ISA
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
static int usable_widest(void) { return usable_avx512vnni() && __builtin_cpu_supports("avx512dq"); }
static const bc_packer packer_avx512 = {"avx512", usable_widest, statistics_widest, convert_widest, pack_widest};
#endif

/* the packers of this build, the one for every CPU last */
static const bc_packer *const bc_packers[] = {
#ifdef BC_HAVE_AVX512VNNI
    &packer_avx512,
#endif
#ifdef BC_HAVE_AVX2
    &packer_avx2,
#endif
    &packer_plain,
};
enum { BC_N_PACKERS = sizeof bc_packers / sizeof *bc_packers };

#endif
