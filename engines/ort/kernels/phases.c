/* Threads take pieces of a phase until none is left, then wait for those that others still compute. In turns they get
 * pieces from as many stretches as there are threads, so that each mostly reads in order.
 *
 * A thread that comes late finds the first phases done; one that never comes is not waited for. So it runs with however
 * many threads ONNX Runtime gives, one included.
 */
#include "phases.h"
#include "lines.h"

#if defined(__GNUC__) && !defined(_WIN32)

#include <sched.h>
#include <unistd.h>

/* PATIENCE: looks at a counter before the processor is given to another thread. */
enum { PATIENCE = 10000 };

/* Each on a cache line of its own. */
typedef struct {
    int64_t number;
    char padding[MEGREZ_LINE - sizeof(int64_t)];
} counter;

typedef struct {
    counter taken[MEGREZ_MOST_PHASES], done[MEGREZ_MOST_PHASES];
    const megrez_phase *phases;
    size_t count;
    int64_t expected, joined; /* threads: as many as took part in the last step, and those that do in this one */
    void *work;
} team;

static void wait_for(const counter *done, int64_t pieces) {
    for (int looks = 0; __atomic_load_n(&done->number, __ATOMIC_ACQUIRE) < pieces; looks++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
        if (looks >= PATIENCE) sched_yield();
    }
}

static void join(void *opaque, size_t thread) {
    team *all = opaque;
    const size_t last = all->count - 1;
    (void)thread;
    if (__atomic_load_n(&all->done[last].number, __ATOMIC_ACQUIRE) == all->phases[last].pieces) return;
    __atomic_fetch_add(&all->joined, 1, __ATOMIC_RELAXED);
    for (size_t n = 0; n < all->count; n++) {
        const megrez_phase *phase = all->phases + n;
        const int64_t each = (phase->pieces + all->expected - 1) / all->expected;
        int64_t turn, mine = 0;
        while ((turn = __atomic_fetch_add(&all->taken[n].number, 1, __ATOMIC_RELAXED)) < each * all->expected) {
            const int64_t piece = turn % all->expected * each + turn / all->expected;
            if (piece >= phase->pieces) continue;
            phase->run(all->work, piece);
            mine++;
        }
        if (mine) __atomic_fetch_add(&all->done[n].number, mine, __ATOMIC_RELEASE);
        wait_for(&all->done[n], phase->pieces);
    }
}

ort_status *megrez_run_phases(
    const ort_api *api, const ort_context *context, const megrez_phase *phases, size_t count, void *work
) {
    static long processors;
    static int64_t took_part = 1;
    if (processors < 1 && (processors = sysconf(_SC_NPROCESSORS_ONLN)) < 1) processors = 1;
    const int64_t expected = __atomic_load_n(&took_part, __ATOMIC_RELAXED);
    team all = {.phases = phases, .count = count, .expected = expected, .work = work};
    ort_status *status = ort_parallel_for(api)(context, join, (size_t)processors, 0, &all);
    if (all.joined > 0) __atomic_store_n(&took_part, all.joined, __ATOMIC_RELAXED);
    return status;
}

#else /* one thread */

ort_status *megrez_run_phases(
    const ort_api *api, const ort_context *context, const megrez_phase *phases, size_t count, void *work
) {
    (void)api, (void)context;
    for (size_t n = 0; n < count; n++)
        for (int64_t piece = 0; piece < phases[n].pieces; piece++) phases[n].run(work, piece);
    return NULL;
}

#endif
