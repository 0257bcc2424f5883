/* I2_S and TQ2_0 with 256-bit VNNI: the products of two_bit_256.h in exact int32 lanes, so there is no limit to watch. Of one token
 * 8 accumulators, 4 registers of activations, 2 masks, the packed bytes and their shift are exactly the 16 registers.
 */

#define TWO_BIT_COLS (INT64_MAX / 4)
enum { ISA(two_bit_ahead) = BC_FAR };
BC_INLINE void ISA(add_products)(__m256i *sum, __m256i codes, __m256i x)
{
    *sum = DPBUSD(*sum, codes, x);
    __asm__("" : "+x"(*sum)); /* or gcc copies and spills the sums */
}

BC_INLINE __m256i ISA(widened)(__m256i sum) { return sum; }
BC_INLINE void ISA(add_quarter)(__m256i *sum, __m256i sum4) { *sum = _mm256_add_epi32(*sum, _mm256_srai_epi32(sum4, 2)); }
#include "two_bit_256.h"
