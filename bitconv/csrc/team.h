/* The threads of one forward pass: a spin barrier and a counter that hands out tasks.
 *
 * A pass crosses about ten barriers a layer, so a barrier must cost a fraction of a microsecond; threads that outnumber
 * the cores give way after a short spin. Which thread takes a task never changes a result.
 */
#ifndef BITCONV_TEAM_H
#define BITCONV_TEAM_H

#include <fenv.h>
#include <sched.h>
#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct {
    _Alignas(64) int64_t next;   /* the next task of the current step */
    _Alignas(64) int32_t arrived;
    _Alignas(64) int32_t phase;
} bc_team;

/* one thread's place in the team */
typedef struct {
    bc_team *team;
    int32_t index, size, phase;
} bc_thread;

static inline void bc_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait for the whole team; the last one to arrive makes the task counter start again. */
static void bc_barrier(bc_thread *t)
{
    bc_team *team = t->team;
    const int32_t phase = ++t->phase;
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == t->size) {
        team->arrived = 0;
        team->next = 0;
        __atomic_store_n(&team->phase, phase, __ATOMIC_RELEASE);
        return;
    }
    for (int32_t spins = 0; __atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) != phase; spins++) {
        if (spins < 4000)
            bc_pause();
        else
            sched_yield();
    }
}

static inline int64_t bc_next_task(bc_thread *t) { return __atomic_fetch_add(&t->team->next, 1, __ATOMIC_RELAXED); }

#endif
