/* Codes that no weight has, found before a file is run: there kernels of different instruction sets would not agree. */
#ifndef BITCONV_VALIDATE_H
#define BITCONV_VALIDATE_H

#include "kernel_api.h"

enum { BC_PIECES = 16 }; /* of one weight: megabytes each where weights are large */

/* Simple loops over bytes, which compilers vectorise; each returns non-zero when one of n bytes is wrong. */
static int bc_has_code_3(const uint8_t *p, int64_t n)
{
    uint8_t wrong = 0;
    for (int64_t i = 0; i < n; i++)
        wrong |= p[i] & p[i] >> 1 & 0x55;
    return wrong;
}

/* a nibble larger than most */
static int bc_has_nibble_above(const uint8_t *p, int64_t n, uint8_t most)
{
    const uint8_t add = (uint8_t)(15 - most);
    uint8_t wrong = 0;
    for (int64_t i = 0; i < n; i++)
        wrong |= (uint8_t)((p[i] & 15) + add) | (uint8_t)((p[i] >> 4) + add);
    return wrong & 16;
}

/* whether piece `part` of `parts` of a ternary weight holds a code that no weight has */
static int bc_is_malformed(const bc_matrix *w, int64_t part, int64_t parts)
{
    const int64_t n = w->rows * w->cols, first = n / 4 * part / parts, last = n / 4 * (part + 1) / parts;
    int wrong = 0;
    if (w->type == BC_I2_S)
        return bc_has_code_3(w->data + first, last - first);
    if (w->type == BC_TL1)
        return bc_has_nibble_above(w->data + first, last - first, 8);
    if (w->type == BC_TQ2_0) {
        for (int64_t block = n / 256 * part / parts; block < n / 256 * (part + 1) / parts; block++)
            wrong |= bc_has_code_3(w->data + block * 66, 64);
    } else if (w->type == BC_TL2) {
        const int64_t three_k = w->cols / w->tile_cols * w->tile_cols;
        const int64_t nibbles = w->rows * three_k / 6, pairs = w->rows * (w->cols - three_k) / 4;
        const int64_t from = nibbles * part / parts, pairs_from = pairs * part / parts;
        wrong = bc_has_nibble_above(w->data + from, nibbles * (part + 1) / parts - from, 13);
        wrong |= bc_has_nibble_above(w->data + nibbles + nibbles / 4 + pairs_from, pairs * (part + 1) / parts - pairs_from, 8);
    }
    return wrong; /* every byte of TQ1_0 is five digits */
}

/* The first of n weights that is malformed, or n. One team for all of them: on a busy machine it costs more to gather
 * threads for every weight than to read it. Pieces are handed out in the order of the file, which disks like. */
static int64_t bc_first_malformed(const bc_matrix *w, int64_t n, int32_t threads)
{
    int64_t first = n;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(min : first)
#endif
    for (int64_t piece = 0; piece < n * BC_PIECES; piece++)
        if (bc_is_malformed(w + piece / BC_PIECES, piece % BC_PIECES, BC_PIECES) && piece / BC_PIECES < first)
            first = piece / BC_PIECES;
    (void)threads;
    return first;
}

#endif
