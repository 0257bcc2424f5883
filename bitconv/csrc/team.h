/* The threads of one forward pass: a spin barrier and counters that hand out tasks.
 *
 * A pass crosses five or six barriers a layer, so a barrier must cost a fraction of a microsecond: threads spin. A thread that
 * spins for long waits for one that has lost its core, so it goes to sleep and leaves its own. Which thread takes a task
 * never changes a result.
 */
#ifndef BITCONV_TEAM_H
#define BITCONV_TEAM_H

#include <fenv.h>
#include <sched.h>
#include <stdint.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

enum { BC_SHARES = 32 }; /* of a step: each belongs to one thread, or to some where there are more */

/* the tasks of one share that were taken, in steps of even and of odd phase */
typedef struct {
    _Alignas(64) int64_t next[2];
} bc_share;

typedef struct {
    _Alignas(64) int64_t next;   /* the next task of the current step, where all take from one counter */
    bc_share shares[BC_SHARES];
    _Alignas(64) int32_t arrived;
    _Alignas(64) int32_t phase;
    int32_t sleepers;            /* threads that sleep until phase changes, or are about to */
} bc_team;

enum { BC_SPINS = 4000 }; /* some 0.1 ms: longer than a step is uneven, shorter than a time slice of the system */

/* one thread's place in the team */
typedef struct {
    bc_team *team;
    int32_t index, size, phase;
    int32_t shares_done; /* shares of this step that this thread saw the end of, from its own on */
} bc_thread;

static inline void bc_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Sleep until the phase is no longer `from`; may return early. Where there is no futex, only let others run. */
static void bc_sleep(bc_team *team, int32_t from)
{
#ifdef __linux__
    __atomic_add_fetch(&team->sleepers, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &team->phase, FUTEX_WAIT_PRIVATE, from, NULL, NULL, 0); /* returns at once if the phase is another */
    __atomic_sub_fetch(&team->sleepers, 1, __ATOMIC_SEQ_CST);
#else
    (void)team, (void)from;
    sched_yield();
#endif
}

/* Wait for the whole team; the task counters start again. */
static void bc_barrier(bc_thread *t)
{
    bc_team *team = t->team;
    const int32_t phase = ++t->phase;
    t->shares_done = 0;
    if (t->index < BC_SHARES)
        team->shares[t->index].next[phase & 1] = 0; /* nobody takes from it before everybody is here */
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == t->size) {
        team->arrived = 0;
        team->next = 0;
        __atomic_store_n(&team->phase, phase, __ATOMIC_SEQ_CST);
#ifdef __linux__
        if (__atomic_load_n(&team->sleepers, __ATOMIC_SEQ_CST))
            syscall(SYS_futex, &team->phase, FUTEX_WAKE_PRIVATE, t->size, NULL, NULL, 0);
#endif
        return;
    }
    for (int32_t spins = 0; __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) != phase; spins++) {
        if (spins < BC_SPINS)
            bc_pause();
        else
            bc_sleep(team, phase - 1);
    }
}

/* The next task of a step of n_tasks, or -1. Each thread has a share of its own, tasks in a row, and helps with the others when
 * that is done. Steps whose tasks go by tokens give a thread the same tokens every time, which are in its caches. */
static int64_t bc_own_task(bc_thread *t, int64_t n_tasks)
{
    const int32_t shares = t->size < BC_SHARES ? t->size : BC_SHARES, own = (int32_t)((int64_t)t->index * shares / t->size);
    for (; t->shares_done < shares; t->shares_done++) {
        const int32_t share = (own + t->shares_done) % shares;
        const int64_t first = n_tasks * share / shares, last = n_tasks * (share + 1) / shares;
        const int64_t task = first + __atomic_fetch_add(&t->team->shares[share].next[t->phase & 1], 1, __ATOMIC_RELAXED);
        if (task < last)
            return task;
    }
    return -1;
}

/* The next task of a step where all take from one counter: better for few tasks, whose data fits any cache. */
static inline int64_t bc_next_task(bc_thread *t) { return __atomic_fetch_add(&t->team->next, 1, __ATOMIC_RELAXED); }

#endif
