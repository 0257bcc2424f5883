/* Products with Q6_K weights, the usual type of a large head; a part of float_kernels.h.
 *
 * Widening six-bit weights to floats takes longer than reading them, so the activations become integers instead, of 16 bits
 * and with a power of two as the step of each block of 256: x = (256 * digit0 + digit1) * step, each digit an int8. No activation
 * is moved by more than 1 / 32512 of the largest in its block.
 *
 *   digits of a block: [2][256] int8 | [2][16] int16, the sums of 16 digits | the float step | nothing, up to BC_DIGITS bytes
 *
 * A block of 256 weights is summed exactly for each of 8 lanes, column i belonging to lane i / 4 % 8. Codes are 0..63
 * and stand for -32..31: 32 times the sums of 16, times their scales, is taken away, sums 2j and 2j + 1 in lane j. Then
 * lane += d * step * (256 * p0 + p1), and lanes are folded as those of kernel_api.h.
 */

/* x of cols floats -> digits; the step of a block that holds a value that is not finite is NaN, and so are its products */
static void ISA(q6_k_digits)(const float *x, int64_t cols, uint8_t *digits)
{
    memset(digits, 0, (size_t)bc_digits_bytes(cols));
    for (; cols > 0; cols -= 256, x += 256, digits += BC_DIGITS) {
        float most, step = NAN;
        memcpy(digits + BC_DIGIT_STEP, &step, sizeof step);
        if (!ISA(absmax)(x, 256, 1e-30f, &most))
            continue;
        /* rounded up to a power of two, so that all that follows is exact; 32512 is 127 * 256 */
        const uint32_t exponent = (bc_float_bits(most * (1.0f / 32512)) + 0x7fffff) >> 23;
        step = bc_bits_float(exponent << 23);
        const VF scale = ISA(vf_set1)(bc_bits_float((254 - exponent) << 23));
        int16_t *sums = (int16_t *)(digits + BC_DIGIT_SUMS);
        memcpy(digits + BC_DIGIT_STEP, &step, sizeof step);
        for (int i = 0; i < 256; i += VL) {
            const VF v = ISA(vf_round)(ISA(vf_mul)(ISA(vf_load)(x + i), scale));
            /* the bias keeps the second digit in -128..127 and, being half of an odd number, out of ties */
            const VF first = ISA(vf_round)(ISA(vf_mul)(ISA(vf_add)(v, ISA(vf_set1)(0.5f)), ISA(vf_set1)(1.0f / 256)));
            const VF second = ISA(vf_fma)(first, ISA(vf_set1)(-256.0f), v);
            sums[i / 16] = (int16_t)(sums[i / 16] + ISA(vf_store_i8)((int8_t *)digits + i, first));
            sums[16 + i / 16] = (int16_t)(sums[16 + i / 16] + ISA(vf_store_i8)((int8_t *)digits + 256 + i, second));
        }
    }
}

static void ISA(q6_k_rows)(const bc_matrix *w, int64_t row0, int64_t row1, const uint8_t *digits, int64_t n, float *out, int64_t ldo)
{
    const int64_t bytes = w->cols / 256 * 210, part = (row1 - row0) / BC_STREAMS, step = bc_digits_bytes(w->cols);
    const uint8_t *rows = w->data + row0 * bytes;
    float sum[BC_STREAMS > BC_DENSE_TOKENS ? BC_STREAMS : BC_DENSE_TOKENS];
    for (int64_t t = 0; t < n; t += BC_DENSE_TOKENS, digits += BC_DENSE_TOKENS * step) {
        const int tokens = (int)bc_min(n - t, BC_DENSE_TOKENS);
        float *y = out + t * ldo;
        int64_t r = 0;
        for (; tokens == 1 && r < part; r++) {
            ISA(q6_k_dot)(rows + r * bytes, part * bytes, BC_STREAMS, w->cols, digits, 0, 1, sum);
            for (int i = 0; i < BC_STREAMS; i++)
                y[i * part + r] = sum[i];
        }
        for (r *= BC_STREAMS; r < row1 - row0; r++) {
            _Static_assert(BC_DENSE_TOKENS == 4, "each number of tokens has a loop of its own");
            switch (tokens) {
            case 1: ISA(q6_k_dot)(rows + r * bytes, 0, 1, w->cols, digits, 0, 1, sum); break;
            case 2: ISA(q6_k_dot)(rows + r * bytes, 0, 1, w->cols, digits, step, 2, sum); break;
            case 3: ISA(q6_k_dot)(rows + r * bytes, 0, 1, w->cols, digits, step, 3, sum); break;
            default: ISA(q6_k_dot)(rows + r * bytes, 0, 1, w->cols, digits, step, 4, sum);
            }
            for (int i = 0; i < tokens; i++)
                y[i * ldo + r] = sum[i];
        }
    }
}
