/* What this machine can do at best, measured beside every benchmark: int8 multiply-adds and sequential reading. */
#ifndef BITCONV_LIMITS_H
#define BITCONV_LIMITS_H

#include <time.h>

#include "forward.h"
#ifdef _OPENMP
#include <omp.h>
#endif

static double bc_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Multiply-adds a second of all threads at once, on registers alone; 0 where the instruction set has no such loop. */
static double bc_int8_peak(const bc_isa *isa, int32_t threads)
{
    if (!isa->peak)
        return 0;
    int64_t done = 0;
    const double start = bc_seconds();
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(+ : done)
#endif
    done += isa->peak(200000);
    (void)threads;
    return (double)done / (bc_seconds() - start);
}

/* sum of n words, read as `streams` streams that lie n/streams apart and are stepped together */
static uint64_t bc_read(const uint64_t *p, int64_t n, int32_t streams)
{
    uint64_t sum[8] = {0}, total = 0;
    const int64_t each = n / streams / 8 * 8;
    for (int64_t i = 0; i < each; i += 8)
        for (int32_t s = 0; s < streams; s++)
            for (int j = 0; j < 8; j++)
                sum[j] ^= p[s * each + i + j];
    for (int j = 0; j < 8; j++)
        total ^= sum[j];
    return total;
}

/* Bytes a second that the threads read together, each from its own part of the buffer. */
static double bc_read_bandwidth(const uint8_t *data, int64_t bytes, int32_t threads, int32_t streams, uint64_t *sum)
{
    const int64_t words = bytes / 8 / threads / (8 * streams) * (8 * streams);
    uint64_t all = 0;
    const double start = bc_seconds();
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(^ : all)
    all ^= bc_read((const uint64_t *)data + omp_get_thread_num() * words, words, streams);
    const int32_t team = threads;
#else
    all = bc_read((const uint64_t *)data, words, streams);
    const int32_t team = 1;
#endif
    const double elapsed = bc_seconds() - start;
    *sum = all;
    return (double)(words * 8 * team) / elapsed;
}

/* Seconds of one product alone, weights as they come: the shortest of `repeats`. in has codes, scales and sums; memory for
 * its tiles and tables, and for out, is the caller's. */
static double bc_time_linear(const bc_isa *isa, const bc_matrix *w, bc_input *in, float *out, int32_t threads, int32_t repeats)
{
    double best = INFINITY;
    for (int64_t t = 0; in->n >= BC_GEMM_TOKENS && t < in->n; t += bc_tile(in->n - t))
        bc_pack_tile(in, t, bc_tile(in->n - t));
    for (int32_t i = 0; i < repeats; i++) {
        bc_team team = {0};
        const double start = bc_seconds();
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
        {
            bc_thread thread = {.team = &team, .index = omp_get_thread_num(), .size = omp_get_num_threads()};
#else
        {
            bc_thread thread = {.team = &team, .index = 0, .size = 1};
            (void)threads;
#endif
            bc_linear linear = {w, bc_find_ternary(isa, w->type), -1, out, w->rows, NULL};
            if (bc_share_tables(&linear, 1, in)) {
                bc_build_tables(&thread, &linear, 1, in);
                bc_barrier(&thread);
            }
            bc_apply(isa, &thread, &linear, 1, in);
        }
        const double elapsed = bc_seconds() - start;
        best = elapsed < best ? elapsed : best;
    }
    return best;
}

#endif
