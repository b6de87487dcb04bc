#include "comm/ncclpeers.h"

#include "comm/comm_impl.h"

#include <stdlib.h>
#include <string.h>

struct td_ncclpeers {
    struct td_comm *comm; /* borrowed */
    const struct td_ncclplug *plug;
    struct td_ncclplug_memory mine;
    struct td_peersum_memory *of[TD_PEERSUM_MAX_RANKS]; /* NULL: not attached; the own: mine's */
    size_t most_floats;
};

/* Whether all ranks got so far; what one did not is TD_UNSUPPORTED for all. */
static enum td_status agree(struct td_comm *comm, enum td_status status, struct td_err *err)
{
    enum td_status all = TD_OK, sent = td_comm_agree(comm, status, &all, err);

    return sent ? sent : all ? TD_UNSUPPORTED : TD_OK;
}

static enum td_status check_group(const struct td_comm *comm, struct td_err *err)
{
    if (comm->size > TD_PEERSUM_MAX_RANKS)
        return td_err_set(err, TD_UNSUPPORTED, "%u ranks read each other's GPUs, expected up to %d",
                          comm->size, TD_PEERSUM_MAX_RANKS);
    for (uint32_t r = 1; r < comm->size; r++)
        if (comm->topology.host[r] != comm->topology.host[0])
            return td_err_set(err, TD_UNSUPPORTED, "ranks 0 and %u are on different hosts", r);
    return TD_OK;
}

/* Every rank tells the name of its memory, and opens the others'. */
static enum td_status attach_all(struct td_ncclpeers *p, struct td_err *err)
{
    uint8_t name[TD_PEERSUM_MAX_RANKS][TD_NCCLPLUG_NAME_BYTES];
    size_t bytes[TD_PEERSUM_MAX_RANKS];
    enum td_status status;

    for (uint32_t r = 0; r < p->comm->size; r++)
        bytes[r] = sizeof *name;
    status = td_comm_all_gather(p->comm, p->mine.name, bytes, name, err);
    for (uint32_t r = 0; r < p->comm->size && status == TD_OK; r++) {
        void *memory = p->mine.device;

        if (r != p->comm->rank)
            status = p->plug->attach(name[r], &memory, err);
        p->of[r] = memory;
    }
    return status;
}

enum td_status td_ncclpeers_open(struct td_comm *comm, const struct td_ncclplug *plug,
                                 struct td_ncclpeers **out, struct td_err *err)
{
    struct td_err own = {.status =
                             TD_OK}; /* one that is there for agree, also when `err` is NULL */
    struct td_ncclpeers *p;
    enum td_status status = check_group(comm, err);

    if (status != TD_OK)
        return status;
    p = calloc(1, sizeof *p);
    if (!p)
        return td_err_set(err, TD_NO_MEMORY, "no memory for the GPUs of %u ranks", comm->size);
    p->comm = comm;
    p->plug = plug;
    status = agree(comm, plug->share(sizeof(struct td_peersum_memory), &p->mine, &own), &own);
    if (status == TD_OK)
        status = agree(comm, attach_all(p, &own), &own);
    if (status != TD_OK) {
        td_ncclpeers_close(p, status == TD_UNSUPPORTED);
        if (err)
            *err = own;
        return status;
    }
    *out = p;
    return TD_OK;
}

void td_ncclpeers_close(struct td_ncclpeers *p, bool together)
{
    if (!p)
        return;
    for (uint32_t r = 0; r < TD_PEERSUM_MAX_RANKS; r++)
        if (p->of[r] && p->of[r] != p->mine.device)
            p->plug->detach(p->of[r]);
    if (together)
        (void)td_comm_barrier(p->comm, NULL); /* who does not come reads no more either */
    p->plug->unshare(&p->mine);
    free(p);
}

void td_ncclpeers_end(struct td_ncclpeers *p)
{
    if (p)
        __atomic_store_n(p->mine.is_ended, 1, __ATOMIC_RELEASE);
}

void td_ncclpeers_set_most(struct td_ncclpeers *p, size_t n_floats)
{
    if (p)
        p->most_floats = n_floats;
}

size_t td_ncclpeers_limit(const struct td_ncclsum *sum)
{
    uint32_t most_parts = 1;

    for (uint32_t r = 0; r < sum->n_ranks; r++) {
        const uint32_t n = (uint32_t)(sum->first[r + 1] - sum->first[r]);

        most_parts = n > most_parts ? n : most_parts;
    }
    return TD_PEERSUM_FLOATS / most_parts;
}

bool td_ncclpeers_takes(const struct td_ncclpeers *p, const struct td_ncclsum *sum, size_t n_floats)
{
    return p && n_floats && n_floats <= p->most_floats && n_floats <= td_ncclpeers_limit(sum) &&
           !td_ncclsum_goes_in_slices(sum, n_floats);
}

enum td_status td_ncclpeers_sum(struct td_ncclpeers *p, const struct td_ncclsum *sum,
                                const float *parts, size_t n_floats, float *out, void *stream,
                                struct td_err *err)
{
    struct td_peersum s = {.is_ended = p->mine.is_ended,
                           .rank = sum->rank,
                           .n_ranks = sum->n_ranks,
                           .parts = parts,
                           .n_own = (uint32_t)(sum->first[sum->rank + 1] - sum->first[sum->rank]),
                           .n_floats = n_floats,
                           .out = out};

    memcpy(s.of, p->of, sizeof s.of);
    for (uint32_t slot = 0; slot < TD_PEERSUM_SLOTS; slot++) {
        s.join[slot].program = sum->program;
        for (uint32_t r = 0; r < sum->n_ranks; r++)
            for (uint32_t k = sum->first[r]; k < sum->first[r + 1]; k++)
                s.join[slot].part[k] = (r == sum->rank ? parts : p->of[r]->slot[slot]) +
                                       (k - sum->first[r]) * n_floats;
    }
    return p->plug->peer_sum(&s, stream, err);
}
