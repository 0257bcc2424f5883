/* IEEE half and bfloat16 <-> float32, in integer arithmetic: the specification of every conversion here. */
#ifndef BITCONV_HALF_H
#define BITCONV_HALF_H

#include <stdint.h>
#include <string.h>

static inline float bc_bits_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t bc_float_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float bc_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
    uint32_t bits;
    if (magnitude >= 0x7c00) { /* infinity, or NaN made quiet as the hardware does */
        bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
        if (magnitude > 0x7c00)
            bits |= 0x400000;
    } else if (magnitude >= 0x0400) {
        bits = (magnitude << 13) + (112u << 23);
    } else { /* zero or subnormal: magnitude * 2^-24 is exact */
        bits = bc_float_bits((float)magnitude * 5.9604644775390625e-08f);
    }
    return bc_bits_float(sign | bits);
}

/* Round to nearest, ties to even; overflow gives infinity. */
static inline uint16_t bc_f32_to_f16(float f)
{
    const uint32_t bits = bc_float_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude >= 0x38800000) {
        const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
        return (uint16_t)(sign | (rounded - (112u << 23)) >> 13);
    }
    /* subnormal half: adding 0.5 aligns the last half bit with the last float bit, and rounds to even */
    return (uint16_t)(sign | (bc_float_bits(bc_bits_float(magnitude) + 0.5f) - 0x3f000000));
}

static inline float bc_bf16_to_f32(uint16_t h) { return bc_bits_float((uint32_t)h << 16); }

#endif
