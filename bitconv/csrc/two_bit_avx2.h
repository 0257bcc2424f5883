/* I2_S and TQ2_0 on AVX2: the products of two_bit_256.h in int16 lanes, and panels. */

#define TWO_BIT_COLS 1024
enum { ISA(two_bit_ahead) = BC_FAR / 2 };
BC_INLINE __m256i ISA(widened)(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
BC_INLINE void ISA(add_quarter)(__m256i *sum, __m256i sum4) { *sum = _mm256_add_epi16(*sum, _mm256_srai_epi16(sum4, 2)); }
#include "two_bit_256.h"

/* A dword of a row holds columns 4j..4j+3 of four groups of 32 columns. Transposing 8 rows first puts the dwords of the
 * rows side by side; shifting and masking then gives panel lines without any byte shuffle. */
BC_INLINE void two_bit_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel, int is_i2_s)
{
    const __m256i mask = _mm256_set1_epi8(3);
    for (int64_t first = 0; first < BC_PANEL_ROWS; first += 8) {
        const uint8_t *row[8];
        for (int i = 0; i < 8; i++)
            row[i] = w->data + bc_min(row0 + first + i, w->rows - 1) * bc_two_bit_at(w->cols, is_i2_s);
        for (int64_t k = k0; k < k1; k += 128) {
            __m256i x[8];
            for (int i = 0; i < 8; i++)
                x[i] = _mm256_loadu_si256((const __m256i *)(row[i] + bc_two_bit_at(k, is_i2_s)));
            transpose8_avx2(x);
            uint8_t *line = panel + bc_panel_at(first, k - k0, k1 - k0); /* 4 columns of 8 rows */
            for (int group = 0; group < 4; group++)
                for (int j = 0; j < 8; j++, line += BC_TILE_ROWS * 4) {
                    const __m256i bits = _mm256_srli_epi16(x[j], is_i2_s ? 6 - 2 * group : 2 * group);
                    _mm256_storeu_si256((__m256i *)line, _mm256_and_si256(bits, mask));
                }
        }
    }
}

static void i2_s_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    two_bit_panel_avx2(w, row0, k0, k1, panel, 1);
}

static void tq2_0_panel_avx2(const bc_matrix *w, int64_t row0, int64_t k0, int64_t k1, uint8_t *panel)
{
    two_bit_panel_avx2(w, row0, k0, k1, panel, 0);
}
