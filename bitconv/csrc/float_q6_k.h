/* Products with Q6_K weights, the usual type of a large head; a part of float_kernels.h.
 *
 * Widening six-bit weights to floats takes longer than reading them, so the activations become integers instead: 23 bits
 * with one power of two per token, x = (65536 * digit0 + 256 * digit1 + digit2) / 2^e, each digit an int8. No activation is
 * moved by more than 2^-22 of the largest one.
 *
 *   digits of one token: [3][cols] int8 | [3][cols / 16] int16, the sums of 16 digits | the float 1 / 2^e
 *
 * A block of 256 weights is summed exactly for each of 8 lanes, column i belonging to lane i / 4 % 8. Codes are 0..63
 * and stand for -32..31: 32 times the sums of 16, times their scales, is taken away, sums 2j and 2j + 1 in lane j. Then
 * lane += d * (65536 * p0 + 256 * p1 + p2), and lanes are folded as those of kernel_api.h.
 */

/* x of cols floats -> digits; all zero when a value is not finite, which the caller's norm has seen before */
static void ISA(q6_k_digits)(const float *x, int64_t cols, uint8_t *digits)
{
    int8_t *digit[3] = {(int8_t *)digits, (int8_t *)digits + cols, (int8_t *)digits + 2 * cols};
    int16_t *sums = (int16_t *)(digits + 3 * cols);
    float *inverse = (float *)(sums + 3 * (cols / 16)), most;
    memset(digits, 0, (size_t)bc_digits_bytes(cols));
    if (!ISA(absmax)(x, cols, 1e-30f, &most))
        return;
    const int exponent = (int)(bc_float_bits(most) >> 23) - 126; /* most < 2^exponent */
    const VF scale = ISA(vf_set1)(bc_bits_float((uint32_t)(127 + 22 - exponent) << 23)); /* so |x| < 2^22: every step below is exact */
    *inverse = bc_bits_float((uint32_t)(127 - 22 + exponent) << 23);
    for (int64_t i = 0; i < cols; i += VL) {
        const VF v = ISA(vf_round)(ISA(vf_mul)(ISA(vf_load)(x + i), scale));
        /* the bias keeps the second digit in -128..127 and, being half of an odd number, out of ties */
        const VF first = ISA(vf_round)(ISA(vf_mul)(ISA(vf_add)(v, ISA(vf_set1)(128.5f)), ISA(vf_set1)(1.0f / 65536)));
        const VF rest = ISA(vf_fma)(first, ISA(vf_set1)(-65536.0f), v);
        const VF second = ISA(vf_round)(ISA(vf_mul)(ISA(vf_add)(rest, ISA(vf_set1)(0.5f)), ISA(vf_set1)(1.0f / 256)));
        const VF third = ISA(vf_fma)(second, ISA(vf_set1)(-256.0f), rest);
        sums[i / 16] = (int16_t)(sums[i / 16] + ISA(vf_store_i8)(digit[0] + i, first));
        sums[(cols + i) / 16] = (int16_t)(sums[(cols + i) / 16] + ISA(vf_store_i8)(digit[1] + i, second));
        sums[(2 * cols + i) / 16] = (int16_t)(sums[(2 * cols + i) / 16] + ISA(vf_store_i8)(digit[2] + i, third));
    }
}

/* work: memory for the digits of BC_DENSE_TOKENS tokens */
static void ISA(q6_k_rows)(const bc_matrix *w, int64_t row0, int64_t row1, const float *x, int64_t ldx, int64_t n, float *out,
                           int64_t ldo, uint8_t *work)
{
    const int64_t bytes = w->cols / 256 * 210, part = (row1 - row0) / BC_STREAMS, step = bc_digits_bytes(w->cols);
    const uint8_t *rows = w->data + row0 * bytes;
    float sum[BC_STREAMS > BC_DENSE_TOKENS ? BC_STREAMS : BC_DENSE_TOKENS];
    for (int64_t t = 0; t < n; t += BC_DENSE_TOKENS) {
        const int tokens = (int)bc_min(n - t, BC_DENSE_TOKENS);
        for (int i = 0; i < BC_DENSE_TOKENS; i++)
            if (i < tokens)
                ISA(q6_k_digits)(x + (t + i) * ldx, w->cols, work + i * step);
        float *y = out + t * ldo;
        int64_t r = 0;
        for (; tokens == 1 && r < part; r++) {
            ISA(q6_k_dot)(rows + r * bytes, part * bytes, BC_STREAMS, w->cols, work, 0, 1, sum);
            for (int i = 0; i < BC_STREAMS; i++)
                y[i * part + r] = sum[i];
        }
        for (r *= BC_STREAMS; r < row1 - row0; r++) {
            _Static_assert(BC_DENSE_TOKENS == 4, "each number of tokens has a loop of its own");
            switch (tokens) {
            case 1: ISA(q6_k_dot)(rows + r * bytes, 0, 1, w->cols, work, 0, 1, sum); break;
            case 2: ISA(q6_k_dot)(rows + r * bytes, 0, 1, w->cols, work, step, 2, sum); break;
            case 3: ISA(q6_k_dot)(rows + r * bytes, 0, 1, w->cols, work, step, 3, sum); break;
            default: ISA(q6_k_dot)(rows + r * bytes, 0, 1, w->cols, work, step, 4, sum);
            }
            for (int i = 0; i < tokens; i++)
                y[i * ldo + r] = sum[i];
        }
    }
}
