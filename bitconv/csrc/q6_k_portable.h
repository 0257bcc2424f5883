/* Q6_K in portable C: the specification, and what instruction sets without a kernel of their own run. */

/* n_r rows, row_step bytes apart, times the digits of n_t tokens, step bytes apart; one of the two is 1 */
static void ISA(q6_k_dot)(const uint8_t *row, int64_t row_step, int n_r, int64_t cols, const uint8_t *digits, int64_t step, int n_t,
                          float *sum)
{
    for (int which = 0; which < n_r * n_t; which++) {
        const uint8_t *block = row + (n_r > 1 ? which : 0) * row_step, *x = digits + (n_t > 1 ? which : 0) * step;
        float lane[8] = {0};
        for (int64_t b = 0; b < cols / 256; b++, block += 210, x += BC_DIGITS) {
            const int8_t *scales = (const int8_t *)block + 192;
            const int16_t *sums = (const int16_t *)(x + BC_DIGIT_SUMS);
            int32_t p[2][8] = {{0}};
            float step_of_x;
            uint16_t half;
            memcpy(&step_of_x, x + BC_DIGIT_STEP, 4);
            memcpy(&half, block + 208, 2);
            for (int i = 0; i < 256; i++) {
                const int group = i / 32 % 4;
                const int low = block[i / 128 * 64 + group % 2 * 32 + i % 32] >> group / 2 * 4 & 15;
                const int high = block[128 + i / 128 * 32 + i % 32] >> group * 2 & 3;
                const int weight = (low | high << 4) * scales[i / 16];
                for (int digit = 0; digit < 2; digit++)
                    p[digit][i / 4 % 8] += weight * (int8_t)x[digit * 256 + i];
            }
            for (int i = 0; i < 16; i++)
                for (int digit = 0; digit < 2; digit++)
                    p[digit][i / 2] -= 32 * scales[i] * sums[digit * 16 + i];
            for (int j = 0; j < 8; j++) /* |p| < 2^27, so that a conversion rounds once */
                lane[j] = fmaf(bc_f16_to_f32(half) * step_of_x, fmaf((float)p[0][j], 256.0f, (float)p[1][j]), lane[j]);
        }
        for (int count = 4; count; count /= 2)
            for (int j = 0; j < count; j++)
                lane[j] += lane[j + count];
        sum[which] = lane[0];
    }
}
