#include "shard/offload.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

struct slot {
    uint64_t hash;
    bool is_full;
};

struct td_offload {
    uint32_t n_slots[TD_OFFLOAD_TIERS];
    size_t slot_bytes;
    struct slot *slots; /* owned [all slots] */
    uint8_t *memory;    /* owned mapping [n_slots[0] x slot_bytes]; NULL: none */
    uint8_t *buffer;    /* owned [slot_bytes], on the way to and from the file */
    int fd;             /* -1: no file */
};

static size_t tier_bytes(const struct td_offload *o, enum td_offload_tier tier)
{
    return o->n_slots[tier] * o->slot_bytes;
}

/* A file without a name; on file systems that have no such thing, one whose name goes at once. */
static int open_nameless(const char *dir)
{
    char *path = NULL;
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
        return fd;
    if (asprintf(&path, "%s/tensord-kv-XXXXXX", dir) < 0)
        return -1;
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0)
        unlink(path);
    free(path);
    return fd;
}

static enum td_status open_file(struct td_offload *o, const char *dir, struct td_err *err)
{
    size_t bytes = tier_bytes(o, TD_OFFLOAD_FILE);
    int failed;

    o->fd = open_nameless(dir);
    if (o->fd < 0)
        return td_err_set(err, TD_IO, "cannot create a file in '%.160s' for KV blocks: %s", dir,
                          strerror(errno));
    failed = fallocate(o->fd, 0, 0, (off_t)bytes) ? errno : 0;
    if (failed == EOPNOTSUPP) /* then a full disk shows when a block is written */
        failed = ftruncate(o->fd, (off_t)bytes) ? errno : 0;
    if (failed)
        return td_err_set(err, TD_IO, "cannot reserve %zu bytes in '%.160s' for KV blocks: %s",
                          bytes, dir, strerror(failed));
    return TD_OK;
}

enum td_status td_offload_open(const struct td_offload_params *params, struct td_offload **out,
                               struct td_err *err)
{
    struct td_offload *o = calloc(1, sizeof *o);
    size_t n_slots = (size_t)params->n_slots[0] + params->n_slots[1], bytes;
    enum td_status st = TD_OK;

    if (!o)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the offloaded KV cache");
    memcpy(o->n_slots, params->n_slots, sizeof o->n_slots);
    o->slot_bytes = params->slot_bytes;
    o->fd = -1;
    o->slots = calloc(n_slots ? n_slots : 1, sizeof *o->slots);
    o->buffer = malloc(o->slot_bytes ? o->slot_bytes : 1);
    bytes = tier_bytes(o, TD_OFFLOAD_MEMORY);
    if (bytes) {
        o->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        o->memory = o->memory == MAP_FAILED ? NULL : o->memory;
    }
    if (!o->slots || !o->buffer || (bytes && !o->memory))
        st = td_err_set(err, TD_NO_MEMORY, "no memory for %zu bytes of offloaded KV blocks", bytes);
    if (!st && tier_bytes(o, TD_OFFLOAD_FILE))
        st = open_file(o, params->dir, err);
    if (st) {
        td_offload_close(o);
        return st;
    }
    *out = o;
    return TD_OK;
}

void td_offload_close(struct td_offload *o)
{
    if (!o)
        return;
    if (o->fd >= 0)
        close(o->fd);
    if (o->memory)
        munmap(o->memory, tier_bytes(o, TD_OFFLOAD_MEMORY));
    free(o->buffer);
    free(o->slots);
    free(o);
}

static bool in_memory(const struct td_offload *o, uint32_t slot)
{
    return td_offload_tier_of(o->n_slots, slot) == TD_OFFLOAD_MEMORY;
}

static uint8_t *bytes_of(const struct td_offload *o, uint32_t slot)
{
    return in_memory(o, slot) && o->memory ? o->memory + slot * o->slot_bytes : o->buffer;
}

void *td_offload_begin(struct td_offload *o, uint32_t slot)
{
    assert(slot < o->n_slots[0] + o->n_slots[1]);
    o->slots[slot].is_full = false;
    return bytes_of(o, slot);
}

/* All of the slot in the file, from or into the buffer. */
static enum td_status transfer(struct td_offload *o, uint32_t slot, bool write, struct td_err *err)
{
    off_t at = (off_t)((slot - o->n_slots[TD_OFFLOAD_MEMORY]) * o->slot_bytes);

    for (size_t done = 0; done < o->slot_bytes;) {
        size_t left = o->slot_bytes - done;
        ssize_t n = write ? pwrite(o->fd, o->buffer + done, left, at + (off_t)done)
                          : pread(o->fd, o->buffer + done, left, at + (off_t)done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return td_err_set(err, TD_IO, "cannot %s a KV block of %zu bytes in its file: %s",
                              write ? "write" : "read", o->slot_bytes,
                              n == 0 ? "it ends early" : strerror(errno));
        done += (size_t)n;
    }
    return TD_OK;
}

enum td_status td_offload_put(struct td_offload *o, uint32_t slot, struct td_err *err)
{
    struct slot *s = &o->slots[slot];
    enum td_status st = in_memory(o, slot) ? TD_OK : transfer(o, slot, true, err);

    if (st)
        return st;
    s->hash = XXH3_64bits(bytes_of(o, slot), o->slot_bytes);
    s->is_full = true;
    return TD_OK;
}

enum td_status td_offload_get(struct td_offload *o, uint32_t slot, const void **bytes,
                              struct td_err *err)
{
    const struct slot *s = &o->slots[slot];
    enum td_status st;
    uint64_t hash;

    assert(slot < o->n_slots[0] + o->n_slots[1]);
    if (!s->is_full)
        return td_err_set(err, TD_NOT_FOUND, "slot %u holds no KV block", slot);
    st = in_memory(o, slot) ? TD_OK : transfer(o, slot, false, err);
    if (st)
        return st;
    hash = XXH3_64bits(bytes_of(o, slot), o->slot_bytes);
    if (hash != s->hash)
        return td_err_set(err, TD_CORRUPT,
                          "the KV block in slot %u (%s) has checksum %016llx, expected %016llx",
                          slot, in_memory(o, slot) ? "memory" : "file", (unsigned long long)hash,
                          (unsigned long long)s->hash);
    *bytes = bytes_of(o, slot);
    return TD_OK;
}
