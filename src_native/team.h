/* The team: native threads that run phases of tasks, with a bounded wait.

   A waiting thread polls for some tens of microseconds, so that the next phase starts at once, and
   then sleeps. It never yields, which on a busy machine costs a time slice, and sleeps at once when
   it notices that it lost its core. A phase waits for its tasks, not for threads, so a worker that
   wakes up late delays nobody. */
#pragma once
#include <stdatomic.h>
#include <stdint.h>

/* Bytes of memory of its own that each thread has for a task: kernels/native/records.py's BLOCK rows
   of a panel. */
#define SCRATCH (256 * 4 * 64)

/* A kernel's entry: work `first` to `last` of its range. */
typedef void (*entry_t)(const int64_t *slots, int64_t first, int64_t last, void *scratch);

typedef struct {
    entry_t entry;
    const int64_t *slots;
    int64_t first, last;
} task_t;

/* What threads write lies on cache lines of its own. */
typedef struct {
    task_t *tasks;
    int64_t count;
    char pad0[48];
    _Atomic int64_t next; /* task */
    char pad1[56];
    _Atomic int64_t done;
    _Atomic uint32_t ended, sleepers;
    char pad2[48];
} phase_t;

/* Run the phases one after the other on up to `threads` threads, the caller's among them.
   `together`: tasks wait for each other, so one thread alone must not run them all. -1 if there
   are too few threads for that. If another caller has the team, the caller waits for it
   (`together`) or runs everything itself. */
int team_run(phase_t *phases, int64_t count, int threads, int together);

/* Run regions on the threads of the OpenMP library that is loaded, if there is one. */
void team_use_openmp(void);

/* Call a kernel on this thread. */
void call_entry(entry_t entry, const int64_t *slots, int64_t first, int64_t last);

/* Register what must happen in a forked child. */
void team_init(void);
