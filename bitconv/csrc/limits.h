/* What this machine can do at best, measured beside every benchmark: int8 multiply-adds and reading memory.
 *
 * Threads start together at a barrier, and a time is that of the slowest of them.
 */
#ifndef BITCONV_LIMITS_H
#define BITCONV_LIMITS_H

#include <time.h>

#include "forward.h"

static double bc_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Seconds from the common start of all threads to the end of the last. */
static double bc_time_team(int32_t threads, void (*work)(void *job, bc_thread *thread), void *job)
{
    bc_team team = {0};
    double start = INFINITY, end = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(min : start) reduction(max : end)
    {
        bc_thread thread = {.team = &team, .index = omp_get_thread_num(), .size = omp_get_num_threads()};
#else
    {
        bc_thread thread = {.team = &team, .index = 0, .size = 1};
        (void)threads;
#endif
        bc_barrier(&thread);
        start = bc_seconds();
        work(job, &thread);
        end = bc_seconds();
    }
    return end - start;
}

typedef struct {
    const bc_isa *isa;
    int64_t done;
} bc_peak_job;

static void bc_peak_work(void *job, bc_thread *thread)
{
    bc_peak_job *peak = job;
    (void)thread;
    __atomic_fetch_add(&peak->done, peak->isa->peak(200000), __ATOMIC_RELAXED);
}

/* Multiply-adds a second of all threads at once, on registers alone; 0 where the instruction set has no such loop. */
static double bc_int8_peak(const bc_isa *isa, int32_t threads)
{
    bc_peak_job job = {.isa = isa};
    if (!isa->peak)
        return 0;
    const double seconds = bc_time_team(threads, bc_peak_work, &job);
    return (double)job.done / seconds;
}

enum { BC_READ_STEP = 256 }; /* bytes of one stream before the next stream's turn */

/* Exclusive or of streams * each bytes, read by loads of `width` bytes as `streams` streams that lie `each` bytes apart and are
 * stepped together; what comes `ahead` bytes later is prefetched. Few instructions a line, because what waits for memory
 * is a window of instructions. */
#define BC_READER(name, width, attribute)                                                                            \
    attribute static uint64_t name(const uint8_t *p, int64_t each, int32_t streams, int64_t ahead)                     \
    {                                                                                                                \
        typedef uint64_t word __attribute__((vector_size(width), aligned(8), may_alias));                              \
        word sum[BC_READ_STEP / width] = {0};                                                                          \
        uint64_t all = 0;                                                                                              \
        for (int64_t i = 0; i < each; i += BC_READ_STEP)                                                               \
            for (int32_t s = 0; s < streams; s++) {                                                                    \
                const uint8_t *at = p + s * each + i;                                                                  \
                for (int l = 0; ahead && l < BC_READ_STEP; l += 64)                                                    \
                    __builtin_prefetch(at + ahead + l);                                                                \
                for (int j = 0; j < BC_READ_STEP / width; j++)                                                         \
                    sum[j] ^= ((const word *)at)[j];                                                                   \
            }                                                                                                          \
        for (int j = 0; j < BC_READ_STEP / width; j++)                                                                 \
            for (int i = 0; i < width / 8; i++)                                                                        \
                all ^= sum[j][i];                                                                                      \
        return all;                                                                                                    \
    }

typedef struct {
    int32_t width;
    uint64_t (*read)(const uint8_t *p, int64_t each, int32_t streams, int64_t ahead);
    int (*usable)(void);
} bc_reader;

BC_READER(bc_read_16, 16, )
#ifdef BC_HAVE_AVX2
BC_READER(bc_read_32, 32, __attribute__((target("avx2"))))
BC_READER(bc_read_64, 64, __attribute__((target("avx512f"))))
static int usable_avx512f(void) { return __builtin_cpu_supports("avx512f"); }
#endif

/* widest first */
static const bc_reader bc_readers[] = {
#ifdef BC_HAVE_AVX2
    {64, bc_read_64, usable_avx512f},
    {32, bc_read_32, usable_avx2},
#endif
    {16, bc_read_16, usable_scalar},
};
enum { BC_N_READERS = sizeof bc_readers / sizeof *bc_readers };

/* chunks of `chunk` bytes, a multiple of streams * BC_READ_STEP, which threads take in turn */
typedef struct {
    const bc_reader *reader;
    const uint8_t *data;
    int64_t chunks, chunk, ahead;
    int32_t streams;
    uint64_t sum;
} bc_read_job;

static void bc_read_work(void *job, bc_thread *thread)
{
    bc_read_job *read = job;
    uint64_t sum = 0;
    for (int64_t i; (i = bc_next_task(thread)) < read->chunks;)
        sum ^= read->reader->read(read->data + i * read->chunk, read->chunk / read->streams, read->streams, read->ahead);
    __atomic_fetch_xor(&read->sum, sum, __ATOMIC_RELAXED);
}

/* Products of one shape, one after the other as in a pass, so that each weight comes from where a pass finds it. */
typedef struct {
    const bc_isa *isa;
    const bc_matrix *weights;
    int64_t n;
    bc_input *in; /* by_panels is not given */
    float *out;
} bc_linear_job;

static void bc_linear_work(void *job, bc_thread *thread)
{
    const bc_linear_job *walk = job;
    bc_input in = *walk->in;
    in.tables += thread->index * BC_MAX_LINEARS * (BC_GEMM_TOKENS - 1) * in.codes_stride * BC_TABLE_BYTES;
    for (int64_t i = 0; i < walk->n; i++) {
        const bc_matrix *w = walk->weights + i;
        bc_linear linear = {.w = w, .ternary = bc_find_ternary(walk->isa, w->type), .table = -1, .out = walk->out, .ldo = w->rows};
        bc_build_tables(&linear, 1, &in);
        bc_apply(walk->isa, thread, &linear, 1, &in, NULL);
        bc_barrier(thread);
    }
}

/* Seconds of job->n products. The input has codes, scales and sums; memory for its tiles and each thread's
 * tables, and for out, is the caller's. Packing tiles is not timed: in a pass the quantiser does it. */
static double bc_time_linears(bc_linear_job *job, int32_t threads)
{
    bc_input *in = job->in;
    in->by_panels = bc_by_panels(bc_find_ternary(job->isa, job->weights->type), in->n);
    for (int64_t t = 0; in->by_panels && t < in->n; t += bc_tile(in->n - t))
        bc_pack_tile(in, in->codes + t * in->codes_stride, t, bc_tile(in->n - t));
    return bc_time_team(threads, bc_linear_work, job);
}

#endif
