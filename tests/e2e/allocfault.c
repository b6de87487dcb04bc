/* Preloaded into a program: its allocator, of which the test orders faults while it runs. A file that both have mapped, named by
 * TD_ALLOC_FAULT_FILE, says how many calls are left until one fails; all threads count. The program's children are not disturbed. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

/* As test_serve_nomem.py has it. */
struct order {
    atomic_llong left;  /* calls until the first that fails; 0: none does */
    atomic_llong n;     /* so many fail */
    atomic_llong seen;  /* calls ever */
    atomic_llong fired; /* that failed */
};

static struct order none;
static _Atomic(struct order *) order = &none;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("TD_ALLOC_FAULT_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p =
        fd >= 0 ? mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;

    if (fd >= 0)
        close(fd);
    if (p != MAP_FAILED)
        atomic_store(&order, (struct order *)p);
    unsetenv("LD_PRELOAD");
}

static bool fails(void)
{
    struct order *o = atomic_load(&order);
    long long left;

    atomic_fetch_add(&o->seen, 1);
    if (atomic_load_explicit(&o->left, memory_order_relaxed) <= 0)
        return false;
    left = atomic_fetch_sub(&o->left, 1);
    if (left <= 0 || left > atomic_load(&o->n))
        return false;
    atomic_fetch_add(&o->fired, 1);
    errno = ENOMEM;
    return true;
}

void *malloc(size_t n)
{
    return fails() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return fails() ? NULL : __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    return fails() ? NULL : __libc_memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n)
{
    void *got = aligned_alloc(align, n);

    if (!got)
        return ENOMEM;
    *p = got;
    return 0;
}
