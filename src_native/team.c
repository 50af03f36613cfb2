#define _GNU_SOURCE
#include "team.h"

#define POLL_BETWEEN_NS 200000 /* for the next call */
#define POLL_WITHIN_NS 50000   /* for the end of a phase */
#define LOST_CORE_NS 100000    /* between two looks at the clock */

#ifdef _WIN32
#include <windows.h>
typedef SRWLOCK lock_t;
static lock_t team_lock = SRWLOCK_INIT;
static int lock_try(lock_t *l) { return TryAcquireSRWLockExclusive(l); }
static void lock_take(lock_t *l) { AcquireSRWLockExclusive(l); }
static void lock_give(lock_t *l) { ReleaseSRWLockExclusive(l); }
static void sleep_while(_Atomic uint32_t *at, uint32_t value) {
    WaitOnAddress((volatile VOID *)at, &value, sizeof value, INFINITE);
}
static void wake_all(_Atomic uint32_t *at) { WakeByAddressAll((PVOID)at); }
static int64_t now_ns(void) {
    LARGE_INTEGER count, rate;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&rate);
    return (int64_t)((double)count.QuadPart * 1e9 / (double)rate.QuadPart);
}
#define THREAD DWORD WINAPI
static DWORD WINAPI worker(void *seen);
static int start_worker(uint32_t seen) {
    HANDLE thread = CreateThread(0, 0, worker, (void *)(uintptr_t)seen, 0, 0);
    return thread && CloseHandle(thread);
}
#else
#include <pthread.h>
#include <signal.h>
#include <time.h>
typedef pthread_mutex_t lock_t;
static lock_t team_lock = PTHREAD_MUTEX_INITIALIZER;
static int lock_try(lock_t *l) { return !pthread_mutex_trylock(l); }
static void lock_take(lock_t *l) { pthread_mutex_lock(l); }
static void lock_give(lock_t *l) { pthread_mutex_unlock(l); }
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
static void sleep_while(_Atomic uint32_t *at, uint32_t value) {
    syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, value, 0, 0, 0);
}
static void wake_all(_Atomic uint32_t *at) {
    syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
}
#else
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static void sleep_while(_Atomic uint32_t *at, uint32_t value) {
    pthread_mutex_lock(&sleep_lock);
    if (atomic_load(at) == value) pthread_cond_wait(&changed, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
}
static void wake_all(_Atomic uint32_t *at) {
    (void)at;
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&sleep_lock);
}
#endif
static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}
#define THREAD void *
static void *worker(void *seen);
static int start_worker(uint32_t seen) {
    pthread_t thread;
    pthread_attr_t detached;
    sigset_t all, before;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals are for Python's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, &detached, worker, (void *)(uintptr_t)seen);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&detached);
    return !failed;
}
#endif

/* In kernels, denormal numbers are 0: a saturated network has many, and an operation with one takes
   a hundred times as long. `flush_denormals` returns what `restore_mode` takes. */
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define PAUSE() _mm_pause()
typedef unsigned float_mode;
static float_mode flush_denormals(void) {
    float_mode before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* flush to zero, denormals are zero */
    return before;
}
static void restore_mode(float_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__) && !defined(_MSC_VER)
#define PAUSE() __asm__ volatile("yield")
typedef uint64_t float_mode;
static void restore_mode(float_mode before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
static float_mode flush_denormals(void) {
    float_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    restore_mode(before | UINT64_C(1) << 24);
    return before;
}
#else
#define PAUSE() (void)0
typedef int float_mode;
static float_mode flush_denormals(void) { return 0; }
static void restore_mode(float_mode before) { (void)before; }
#endif

/* The region that runs now. Written only by the thread that holds team_lock. */
static phase_t *region;
static int64_t region_count;
static int workers;
static _Atomic uint32_t generation;  /* of regions: workers wait for a new one */
static _Atomic int asleep;           /* workers */
static _Atomic int is_open, seats;   /* whether and how many workers may still enter */
static _Atomic uint32_t users;       /* workers that may look at the region */
static _Atomic int caller_sleeps;

/* Poll until *at is not `value`, for no longer than `limit`: whether it changed. */
static int poll_while(_Atomic uint32_t *at, uint32_t value, int64_t limit) {
    int64_t start = 0, before = 0;
    for (int k = 1; atomic_load_explicit(at, memory_order_acquire) == value; k++) {
        PAUSE();
        if (k % 32) continue;
        int64_t now = now_ns();
        if (!start) start = now;
        else if (now - start > limit || now - before > LOST_CORE_NS) return 0;
        before = now;
    }
    return 1;
}

static void run_phases(phase_t *phases, int64_t count) {
    _Alignas(64) char scratch[SCRATCH];
    float_mode mode = flush_denormals();
    for (phase_t *p = phases; p < phases + count; p++) {
        int64_t i;
        while ((i = atomic_fetch_add(&p->next, 1)) < p->count) {
            const task_t *t = p->tasks + i;
            t->entry(t->slots, t->first, t->last, scratch);
            if (atomic_fetch_add(&p->done, 1) + 1 == p->count) {
                atomic_store(&p->ended, 1);
                if (atomic_load(&p->sleepers)) wake_all(&p->ended);
            }
        }
        if (p->count && !poll_while(&p->ended, 0, POLL_WITHIN_NS)) {
            atomic_fetch_add(&p->sleepers, 1);
            while (!atomic_load(&p->ended)) sleep_while(&p->ended, 0);
        }
    }
    restore_mode(mode);
}

static THREAD worker(void *argument) {
    uint32_t seen = (uint32_t)(uintptr_t)argument;
    for (;;) {
        while (!poll_while(&generation, seen, POLL_BETWEEN_NS)) {
            atomic_fetch_add(&asleep, 1);
            sleep_while(&generation, seen);
            atomic_fetch_sub(&asleep, 1);
        }
        seen = atomic_load(&generation);
        atomic_fetch_add(&users, 1); /* first announce, then look: see team_run */
        if (atomic_load(&is_open) && atomic_fetch_sub(&seats, 1) > 0)
            run_phases(region, region_count);
        if (atomic_fetch_sub(&users, 1) == 1 && atomic_load(&caller_sleeps)) wake_all(&users);
    }
    return 0;
}

void call_entry(entry_t entry, const int64_t *slots, int64_t first, int64_t last) {
    _Alignas(64) char scratch[SCRATCH];
    float_mode mode = flush_denormals();
    entry(slots, first, last, scratch);
    restore_mode(mode);
}

static void run_alone(phase_t *phases, int64_t count) {
    for (phase_t *p = phases; p < phases + count; p++)
        for (const task_t *t = p->tasks; t < p->tasks + p->count; t++)
            call_entry(t->entry, t->slots, t->first, t->last);
}

/* PyTorch's OpenMP workers poll for milliseconds after each of its operations and would take our
   cores: where they exist, they run our regions. */
#ifdef __linux__
#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <string.h>
static struct {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*in_parallel)(void), (*max_threads)(void);
} openmp;
static _Atomic int use_openmp; /* set last */
static int forked;

/* Only the name is taken here: the loader's lock is held. */
static int find_openmp(struct dl_phdr_info *info, size_t size, void *name) {
    (void)size;
    if (!strstr(info->dlpi_name, "gomp") && !strstr(info->dlpi_name, "omp5")) return 0;
    if (strlen(info->dlpi_name) >= PATH_MAX) return 0;
    strcpy(name, info->dlpi_name);
    return 1;
}

void team_use_openmp(void) {
    char name[PATH_MAX];
    if (forked || use_openmp || !dl_iterate_phdr(find_openmp, name)) return;
    void *library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return;
    openmp.in_parallel = (int (*)(void))dlsym(library, "omp_in_parallel");
    openmp.max_threads = (int (*)(void))dlsym(library, "omp_get_max_threads");
    openmp.parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))dlsym(
        library, "GOMP_parallel");
    atomic_store(&use_openmp, openmp.in_parallel && openmp.max_threads && openmp.parallel);
}

static void openmp_body(void *unused) {
    (void)unused;
    run_phases(region, region_count);
}

/* Only with as many threads as it has anyway: another number makes it start and end threads. */
static int openmp_run(int threads, int together) {
    if (!atomic_load(&use_openmp) || together || openmp.in_parallel() || openmp.max_threads() != threads)
        return 0;
    openmp.parallel(openmp_body, 0, threads, 0);
    return 1;
}
#else
void team_use_openmp(void) {}
static int openmp_run(int threads, int together) { return (void)threads, (void)together, 0; }
#endif

int team_run(phase_t *phases, int64_t count, int threads, int together) {
    if (threads > 1 && !lock_try(&team_lock)) {
        if (together) lock_take(&team_lock);
        else threads = 1;
    }
    if (threads <= 1) {
        run_alone(phases, count);
        return 0;
    }
    region = phases;
    region_count = count;
    if (openmp_run(threads, together)) {
        lock_give(&team_lock);
        return 0;
    }
    while (workers < threads - 1 && start_worker(atomic_load(&generation))) workers++;
    if (together && workers < threads - 1) {
        lock_give(&team_lock);
        return -1;
    }
    atomic_store(&seats, threads - 1);
    atomic_store(&is_open, 1);
    atomic_fetch_add(&generation, 1);
    if (atomic_load(&asleep)) wake_all(&generation);
    run_phases(phases, count);
    atomic_store(&is_open, 0);
    /* All tasks are done, but a worker may still be looking for one. */
    for (uint32_t left; (left = atomic_load(&users));)
        if (!poll_while(&users, left, POLL_WITHIN_NS)) {
            atomic_store(&caller_sleeps, 1);
            sleep_while(&users, left);
            atomic_store(&caller_sleeps, 0);
        }
    lock_give(&team_lock);
    return 0;
}

#ifndef _WIN32
static void in_child(void) { /* which has no workers, and a region only in its parent */
    workers = 0;
#ifdef __linux__
    forked = 1; /* OpenMP would wait for threads that the child does not have */
    atomic_store(&use_openmp, 0);
#else
    pthread_mutex_init(&sleep_lock, 0);
    pthread_cond_init(&changed, 0);
#endif
    atomic_store(&asleep, 0);
    atomic_store(&is_open, 0);
    atomic_store(&users, 0);
    atomic_store(&caller_sleeps, 0);
    pthread_mutex_init(&team_lock, 0);
}
#endif

void team_init(void) {
#ifndef _WIN32
    pthread_atfork(0, 0, in_child);
#endif
}
