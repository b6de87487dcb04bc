/* The allocator with a fault to order: the k-th call of one thread, or of all but one, gets nothing, whoever makes it: our code, a
 * library of others, libc. Defines malloc and its kin for the whole program, also under the sanitizers, so it is included by one test
 * file per executable. */
#ifndef TD_TESTS_ALLOC_FAULT_H
#define TD_TESTS_ALLOC_FAULT_H

#include "tests/unit/check.h"

#include "kernels/base/err.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* ---- the allocator ---- */

/* The real ones: the sanitizers' where they are linked, else glibc's. */
#define ALLOC_REAL(ret, name, args)                                                                \
    ret __interceptor_##name args __attribute__((weak));                                           \
    ret __libc_##name args
ALLOC_REAL(void *, malloc, (size_t));
ALLOC_REAL(void *, calloc, (size_t, size_t));
ALLOC_REAL(void *, realloc, (void *, size_t));
ALLOC_REAL(void *, memalign, (size_t, size_t));
#undef ALLOC_REAL

void *malloc(size_t n);
void *calloc(size_t n, size_t size);
void *realloc(void *p, size_t n);
void *reallocarray(void *p, size_t n, size_t size);
void *aligned_alloc(size_t align, size_t n);
int posix_memalign(void **p, size_t align, size_t n);
char *strdup(const char *s);
char *strndup(const char *s, size_t n);

static _Thread_local long alloc_left;      /* calls of this thread until one fails; 0: none does */
static _Thread_local bool alloc_fired;     /* it has failed */
static _Thread_local bool alloc_is_paused; /* for a while nothing fails */
static _Thread_local bool alloc_stays;     /* and so do all that follow */
static _Thread_local bool alloc_is_spared; /* from what is meant for all threads */
static atomic_long alloc_all_left;         /* the same for all threads that are not spared */
static atomic_int alloc_all_fired;

/* Where a debugger stops to see who is refused. */
static __attribute__((noinline)) bool alloc_refuse(void)
{
    errno = ENOMEM;
    __asm__ volatile("");
    return true;
}

static bool alloc_fails(void)
{
    if (alloc_is_paused)
        return false;
    if (alloc_fired && alloc_stays)
        return alloc_refuse();
    if (alloc_left > 0 && --alloc_left == 0) {
        alloc_fired = true;
        return alloc_refuse();
    }
    if (!alloc_is_spared && atomic_load_explicit(&alloc_all_left, memory_order_relaxed) > 0 &&
        atomic_fetch_sub(&alloc_all_left, 1) == 1) {
        atomic_fetch_add(&alloc_all_fired, 1);
        return alloc_refuse();
    }
    return false;
}

void *malloc(size_t n)
{
    if (alloc_fails())
        return NULL;
    return __interceptor_malloc ? __interceptor_malloc(n) : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    if (alloc_fails())
        return NULL;
    return __interceptor_calloc ? __interceptor_calloc(n, size) : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    if (alloc_fails())
        return NULL;
    return __interceptor_realloc ? __interceptor_realloc(p, n) : __libc_realloc(p, n);
}

void *reallocarray(void *p, size_t n, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(p, bytes);
}

void *aligned_alloc(size_t align, size_t n)
{
    if (alloc_fails())
        return NULL;
    return __interceptor_memalign ? __interceptor_memalign(align, n) : __libc_memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n)
{
    void *got = aligned_alloc(align, n);

    if (!got)
        return ENOMEM;
    *p = got;
    return 0;
}

char *strndup(const char *s, size_t n)
{
    size_t len = strnlen(s, n);
    char *copy = malloc(len + 1);

    if (copy) {
        memcpy(copy, s, len);
        copy[len] = '\0';
    }
    return copy;
}

char *strdup(const char *s)
{
    return strndup(s, SIZE_MAX);
}

/* ---- faults of this thread ---- */

/* The k-th call from now on fails; with `stays` all behind it too. */
static inline void alloc_fault_arm(long k, bool stays)
{
    alloc_fired = false;
    alloc_stays = stays;
    alloc_left = k;
}

/* Everything succeeds again. Whether a call has failed since. */
static inline bool alloc_fault_disarm(void)
{
    bool fired = alloc_fired;

    alloc_left = 0;
    alloc_fired = false;
    return fired;
}

/* Between the two everything succeeds and is not counted: what a path looks at when its faults are over. */
static inline void alloc_fault_pause(void)
{
    alloc_is_paused = true;
}

static inline void alloc_fault_resume(void)
{
    alloc_is_paused = false;
}

/* ---- faults of any thread but those that are spared ---- */

static inline void alloc_fault_spare(void)
{
    alloc_is_spared = true;
}

static inline void alloc_fault_arm_all(long k)
{
    atomic_store(&alloc_all_fired, 0);
    atomic_store(&alloc_all_left, k);
}

static inline bool alloc_fault_disarm_all(void)
{
    atomic_store(&alloc_all_left, 0);
    return atomic_exchange(&alloc_all_fired, 0) > 0;
}

/* ---- sweeps ---- */

/* Goes a path from its beginning to its end, frees what it took on the way and, where it says TD_OK, has looked at the result. */
typedef enum td_status alloc_path_fn(void *arg, struct td_err *err);

enum { ALLOC_SWEEP_MOST = 200000 };

/* Goes the path with the first, the second ... allocation failing until none fails any more; then the same with all that follow
 * failing too. Each time it ends with TD_NO_MEMORY and a cause, or does what it should by another way. Leaks are found by the
 * sanitizer. Returns how many allocations the path makes. */
static inline long alloc_sweep(const char *name, alloc_path_fn *path, void *arg)
{
    long n = 0;

    for (int stays = 0; stays < 2; stays++) {
        for (long k = 1;; k++) {
            struct td_err err = {0};
            enum td_status s;

            if (k > ALLOC_SWEEP_MOST)
                fail_msg("%s: more than %d allocations", name, ALLOC_SWEEP_MOST);
            alloc_fault_arm(k, stays != 0);
            s = path(arg, &err);
            if (!alloc_fault_disarm()) {
                if (s)
                    fail_msg("%s, undisturbed: %s: %s", name, td_status_name(s), err.cause);
                n = k - 1;
                break;
            }
            if (s && s != TD_NO_MEMORY)
                fail_msg("%s, allocation %ld%s: %s: %s", name, k, stays ? " and all behind it" : "",
                         td_status_name(s), err.cause);
            if (s && (err.status != s || !err.cause[0]))
                fail_msg("%s, allocation %ld%s: TD_NO_MEMORY without a cause", name, k,
                         stays ? " and all behind it" : "");
        }
    }
    print_message("%s: %ld allocations\n", name, n);
    return n;
}

/* What a path returns that has no td_err of its own on the way. */
static inline enum td_status alloc_no_memory(struct td_err *err)
{
    return td_err_set(err, TD_NO_MEMORY, "no memory");
}

#endif
