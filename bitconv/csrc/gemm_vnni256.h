/* The int8 tile kernel on 256-bit VNNI: vpdpbusd adds four exact products to an int32 lane, so nothing is widened.
 *
 * A panel line of 16 rows x 4 columns is two registers. 12 accumulators, the two line halves and one broadcast token dword:
 * 15 of the 16 registers. Needs ISA and DPBUSD, because the instruction has one name in AVX-VNNI and one in AVX-512.
 */

BC_INLINE void ISA(gemm_tile_n)(const uint8_t *panel, const int8_t *x, int64_t k, int32_t *acc, const int tile)
{
    __m256i low[BC_MAX_TILE], high[BC_MAX_TILE];
#pragma GCC unroll 6
    for (int t = 0; t < tile; t++) {
        low[t] = _mm256_loadu_si256((const __m256i *)(acc + t * BC_PANEL_ROWS));
        high[t] = _mm256_loadu_si256((const __m256i *)(acc + t * BC_PANEL_ROWS) + 1);
    }
    for (int64_t g = 0; g < k / 4; g++, panel += BC_TILE_ROWS * 4, x += tile * 4) {
        const __m256i w0 = _mm256_loadu_si256((const __m256i *)panel);
        const __m256i w1 = _mm256_loadu_si256((const __m256i *)panel + 1);
#pragma GCC unroll 6
        for (int t = 0; t < tile; t++) {
            int32_t word;
            memcpy(&word, x + 4 * t, 4);
            const __m256i b = _mm256_set1_epi32(word);
            low[t] = DPBUSD(low[t], w0, b);
            high[t] = DPBUSD(high[t], w1, b);
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < tile; t++) {
        _mm256_storeu_si256((__m256i *)(acc + t * BC_PANEL_ROWS), low[t]);
        _mm256_storeu_si256((__m256i *)(acc + t * BC_PANEL_ROWS) + 1, high[t]);
    }
}

BC_INLINE void ISA(gemm_tile16)(const uint8_t *panel, const int8_t *tokens, int32_t tile, int64_t k, int32_t *acc)
{
    if (tile == 6)
        ISA(gemm_tile_n)(panel, tokens, k, acc, 6);
    else if (tile == 4)
        ISA(gemm_tile_n)(panel, tokens, k, acc, 4);
    else
        ISA(gemm_tile_n)(panel, tokens, k, acc, 2);
}

BC_TILE_BY_ROWS(ISA(gemm_tile), ISA(gemm_tile16))

/* The most that vpdpbusd can do: 12 independent sums in named registers. Returns the multiply-adds done. */
#define VNNI256_FOR_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define VNNI256_ZERO(i) __m256i sum##i = _mm256_setzero_si256();
#define VNNI256_PEAK(i)        \
    __asm__("" : "+x"(x));     \
    sum##i = DPBUSD(sum##i, w, x);
#define VNNI256_USE(i) __asm__ volatile("" : : "x"(sum##i));

static int64_t ISA(gemm_peak)(int64_t steps)
{
    const __m256i w = _mm256_set1_epi8(1);
    __m256i x = _mm256_set1_epi8(1);
    VNNI256_FOR_12(VNNI256_ZERO)
    for (int64_t s = 0; s < steps; s++) {
        VNNI256_FOR_12(VNNI256_PEAK)
    }
    VNNI256_FOR_12(VNNI256_USE)
    return steps * 12 * 32;
}

#undef VNNI256_FOR_12
#undef VNNI256_ZERO
#undef VNNI256_PEAK
#undef VNNI256_USE
