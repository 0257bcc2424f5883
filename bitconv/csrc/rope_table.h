/* sin and cos of the RoPE angles, the same on every machine: libm, numpy and torch differ in the last bit.
 *
 * An angle is the float32 product of a float32 frequency and a float32 position, as transformers forms it. Its sine and
 * cosine are computed in float64 and rounded once.
 */
#ifndef BITCONV_ROPE_TABLE_H
#define BITCONV_ROPE_TABLE_H

#include <math.h>
#include <stdint.h>

/* x >= 0: reduced by multiples of pi/2, given in three parts of 33, 33 and 53 bits (products with n < 2^20 are exact) */
static void bc_sincos(double x, double *sine, double *cosine)
{
    const double n = rint(x * 0.63661977236758134308);
    const double r = ((x - n * 0x1.921fb544p+0) - n * 0x1.0b4611a6p-34) - n * 0x1.3198a2e037073p-69;
    const double z = r * r;
    double s = 0, c = 0;
    for (int k = 19; k >= 1; k -= 2) /* Taylor to r^21 and r^20: |r| <= pi/4 leaves less than 2^-60 */
        s = (1 + s) * -z / ((k + 1) * (k + 2));
    for (int k = 18; k >= 0; k -= 2)
        c = (1 + c) * -z / ((k + 1) * (k + 2));
    s = r + r * s;
    c = 1 + c;
    switch ((int64_t)n & 3) {
    case 0: *sine = s; *cosine = c; break;
    case 1: *sine = c; *cosine = -s; break;
    case 2: *sine = -s; *cosine = -c; break;
    default: *sine = -c; *cosine = s; break;
    }
}

/* rows first..last-1 of cos and sin [position][half] */
static void bc_rope_rows(const float *inv_freq, int32_t half, int64_t first, int64_t last, float *cos_table, float *sin_table)
{
    for (int64_t position = first; position < last; position++)
        for (int32_t i = 0; i < half; i++) {
            double s, c;
            const float angle = inv_freq[i] * (float)position;
            bc_sincos(angle, &s, &c);
            cos_table[position * half + i] = (float)c;
            sin_table[position * half + i] = (float)s;
        }
}

#endif
