/* What the cases share: random data, memory that faults when a kernel reads or writes past it, and the report. */
#ifndef BITCONV_HARNESS_H
#define BITCONV_HARNESS_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "forward.h"

static uint64_t random_state = 20240601;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static int32_t random_in(int32_t low, int32_t high) { return low + (int32_t)(random_u32() % (uint32_t)(high - low + 1)); }
static float random_float(float size) { return ((float)random_in(-1000000, 1000000) / 1000000) * size; }

/* zeroed memory whose last byte is the last of a page, the next page being out of bounds; free it with release() */
enum { MAX_BLOCKS = 128 };
static struct { void *at; size_t bytes; } blocks[MAX_BLOCKS];
static int n_blocks;

static void *take(int64_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), used = ((size_t)bytes + page - 1) / page * page;
    uint8_t *at = mmap(NULL, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || n_blocks == MAX_BLOCKS || mprotect(at + used, page, PROT_NONE)) {
        fprintf(stderr, "harness: no memory for a case\n");
        exit(2);
    }
    blocks[n_blocks].at = at, blocks[n_blocks++].bytes = used + page;
    return at + (used - (size_t)bytes);
}

static void release(void)
{
    while (n_blocks)
        n_blocks--, munmap(blocks[n_blocks].at, blocks[n_blocks].bytes);
}

enum { NORMAL, TIES, LARGE, TINY, ZEROS, ANY_BITS, ONE_NAN, ONE_INFINITE, N_KINDS };

static float *take_floats(int64_t n, int64_t n_pad, int kind)
{
    float *x = take(n_pad * 4);
    for (int64_t i = 0; i < n; i++)
        x[i] = kind == ANY_BITS ? bc_bits_float(random_u32())
               : kind == ZEROS  ? 0.0f
               : kind == TIES   ? (i ? (float)random_in(-253, 253) / 2 : 127.0f) /* codes that lie half-way */
                                : random_float(kind == LARGE ? 3e38f : kind == TINY ? 1e-39f : 8.0f);
    if (n && kind == ONE_NAN)
        x[random_in(0, (int32_t)n - 1)] = NAN;
    if (n && kind == ONE_INFINITE)
        x[random_in(0, (int32_t)n - 1)] = -INFINITY;
    return x;
}

static uint8_t *take_bytes(int64_t n)
{
    uint8_t *p = take(n);
    for (int64_t i = 0; i < n; i++)
        p[i] = (uint8_t)random_u32();
    return p;
}

/* the bits, but for which NaN it is: compilers may swap the operands of an addition, and so choose between two NaNs */
static int same_floats(const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (bc_float_bits(a[i]) != bc_float_bits(b[i]) && !(a[i] != a[i] && b[i] != b[i]))
            return 0;
    return 1;
}

static int all_wrong; /* cases of all kernels that were not equal */
static int cases, wrong;

static void expect(int equal)
{
    cases++;
    wrong += !equal;
    release();
}

static void report(const bc_isa *isa, const char *kernel)
{
    printf("%-10s  %-24s %5d cases  %s\n", isa->name, kernel, cases, wrong ? "DIFFERENT" : "equal");
    if (wrong)
        printf("    %d of them are not equal\n", wrong);
    fflush(stdout);
    all_wrong += wrong + !cases;
    cases = wrong = 0;
}

#endif
