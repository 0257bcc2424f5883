/* Q6_K rows over their blocks, for instruction sets of x86-64 with ISA(q6_k_block): no include guard. The eight lanes of a
 * sum are one register, and the arguments those of q6_k_portable.h. */
BC_INLINE void ISA(q6_k_dot)(const uint8_t *row, int64_t row_step, int n_r, int64_t cols, const uint8_t *digits, int64_t step, int n_t,
                             float *sum)
{
    __m256 acc[BC_STREAMS > BC_DENSE_TOKENS ? BC_STREAMS : BC_DENSE_TOKENS];
    for (int i = 0; i < n_r * n_t; i++)
        acc[i] = _mm256_setzero_ps();
    for (int64_t b = 0; b < cols / 256; b++)
        for (int r = 0; r < n_r; r++)
            ISA(q6_k_block)(row + r * row_step + b * 210, digits + b * BC_DIGITS, step, n_t, acc + r);
    for (int i = 0; i < n_r * n_t; i++)
        sum[i] = vf_fold_avx2(acc[i]);
}
