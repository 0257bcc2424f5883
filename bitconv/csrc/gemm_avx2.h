/* The int8 tile kernel on AVX2: 16 rows x up to 6 tokens in registers.
 *
 *   panel line (64 bytes): 4 columns of rows 0..7 | 4 columns of rows 8..15        token line: 4 columns of each token
 *
 * vpmaddubsw of a line half with one broadcast token dword gives, per row, two int16 sums of two products. With codes
 * 0..2 and |q| <= 127 a lane grows by at most 508 a step, so 64 steps (256 columns) fit; then the lanes are widened.
 * 12 accumulators, two line halves, one broadcast and one temporary: exactly the 16 registers.
 */
#define GEMM_FOR_2(X) X(0) X(1)
#define GEMM_FOR_4(X) GEMM_FOR_2(X) X(2) X(3)
#define GEMM_FOR_6(X) GEMM_FOR_4(X) X(4) X(5)
#define GEMM_ZERO(t) __m256i low##t = _mm256_setzero_si256(), high##t = _mm256_setzero_si256();
/* written out because compilers reload the line halves, copy sums or spill them; the order matters too: both products
 * before both additions keeps the multipliers fed */
#define GEMM_STEP(t)                                                                          \
    __asm__("vpbroadcastd %[word], %[b]\n\t"                                                  \
            "vpmaddubsw %[b], %[w0], %[product]\n\t"                                          \
            "vpmaddubsw %[b], %[w1], %[b]\n\t"                                                \
            "vpaddw %[product], %[low], %[low]\n\t"                                           \
            "vpaddw %[b], %[high], %[high]"                                                   \
            : [low] "+x"(low##t), [high] "+x"(high##t), [b] "=&x"(b), [product] "=&x"(product) \
            : [word] "m"(*(const int8_t(*)[4])(line + 4 * t)), [w0] "x"(w0), [w1] "x"(w1));
#define GEMM_WIDEN(t)                                                                                           \
    out = (__m256i *)(acc + t * BC_PANEL_ROWS);                                                                 \
    _mm256_storeu_si256(out, _mm256_add_epi32(_mm256_loadu_si256(out), _mm256_madd_epi16(low##t, ones)));       \
    _mm256_storeu_si256(out + 1, _mm256_add_epi32(_mm256_loadu_si256(out + 1), _mm256_madd_epi16(high##t, ones)));

/* line i from here on */
#define GEMM_LINE(T, i)                                                                 \
    {                                                                                   \
        const __m256i *rows = (const __m256i *)(panel + i * BC_TILE_ROWS * 4);          \
        const __m256i w0 = _mm256_loadu_si256(rows), w1 = _mm256_loadu_si256(rows + 1); \
        const int8_t *line = x + i * T * 4;                                             \
        __m256i b, product;                                                             \
        GEMM_FOR_##T(GEMM_STEP)                                                         \
    }
/* four lines at a time: the instructions of the loop itself cost 5 to 10 % where a neighbour on the core takes its share of them */
#define GEMM_TILE(T)                                                                                \
    static void gemm_tile##T##_avx2(const uint8_t *panel, const int8_t *x, int64_t k, int32_t *acc) \
    {                                                                                               \
        const __m256i ones = _mm256_set1_epi16(1);                                                  \
        for (int64_t g = 0; g < k / 4;) {                                                           \
            const int64_t end = bc_min(g + 64, k / 4);                                              \
            GEMM_FOR_##T(GEMM_ZERO)                                                                 \
            for (; g + 4 <= end; g += 4, panel += 4 * BC_TILE_ROWS * 4, x += 4 * T * 4) {           \
                GEMM_LINE(T, 0) GEMM_LINE(T, 1) GEMM_LINE(T, 2) GEMM_LINE(T, 3)                     \
            }                                                                                       \
            for (; g < end; g++, panel += BC_TILE_ROWS * 4, x += T * 4)                             \
                GEMM_LINE(T, 0)                                                                     \
            __m256i *out;                                                                           \
            GEMM_FOR_##T(GEMM_WIDEN)                                                                \
        }                                                                                           \
    }

GEMM_TILE(2)
GEMM_TILE(4)
GEMM_TILE(6)

BC_INLINE void gemm_tile16_avx2(const uint8_t *panel, const int8_t *tokens, int32_t tile, int64_t k, int32_t *acc)
{
    if (tile == 6)
        gemm_tile6_avx2(panel, tokens, k, acc);
    else if (tile == 4)
        gemm_tile4_avx2(panel, tokens, k, acc);
    else
        gemm_tile2_avx2(panel, tokens, k, acc);
}

BC_TILE_BY_ROWS(gemm_tile_avx2, gemm_tile16_avx2)

/* The most that vpmaddubsw + vpaddw can do: 12 independent sums in named registers, because gcc would keep an array in
 * memory. The empty asm makes each product a new one. Returns the multiply-adds done. */
#define GEMM_PEAK(t)                                                   \
    __asm__("" : "+x"(x));                                             \
    low##t = _mm256_add_epi16(low##t, _mm256_maddubs_epi16(w, x));     \
    __asm__("" : "+x"(x));                                             \
    high##t = _mm256_add_epi16(high##t, _mm256_maddubs_epi16(w, x));
#define GEMM_USE(t) __asm__ volatile("" : : "x"(low##t), "x"(high##t));

static int64_t gemm_peak_avx2(int64_t steps)
{
    const __m256i w = _mm256_set1_epi8(1);
    __m256i x = _mm256_set1_epi8(1);
    GEMM_FOR_6(GEMM_ZERO)
    for (int64_t s = 0; s < steps; s++) {
        GEMM_FOR_6(GEMM_PEAK)
    }
    GEMM_FOR_6(GEMM_USE)
    return steps * 12 * 32;
}
