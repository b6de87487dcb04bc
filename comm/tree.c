#include "comm/tree.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

/* Floats per pass: the temporaries of one pass stay in the first-level cache. */
enum { TILE = 512 };

static uint32_t span_of(uint32_t n_leaves)
{
    uint32_t span = 1;

    while (span < n_leaves)
        span *= 2;
    return span;
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t td_tree_parts(uint32_t n_leaves, struct td_leaf_run run,
                       struct td_leaf_run parts[TD_TREE_MAX_PARTS])
{
    uint32_t span = span_of(n_leaves);
    uint32_t n = 0;
    uint32_t at = run.begin;

    assert(n_leaves <= TD_TREE_MAX_LEAVES && run.end <= n_leaves);
    while (at < run.end) {
        uint32_t size = 1;

        /* The parent is whole as well if it starts here and its present leaves end inside the run. */
        while (size < span && at % (2 * size) == 0 && min_u32(at + 2 * size, n_leaves) <= run.end)
            size *= 2;
        parts[n].begin = at;
        parts[n].end = min_u32(at + size, n_leaves);
        at = parts[n].end;
        n++;
    }
    return n;
}

/* A program that is being made. */
struct maker {
    uint32_t n_leaves;
    uint32_t n_parts;
    const struct td_leaf_run *runs;
    uint32_t next; /* the part that is pushed next */
    uint8_t *n_adds;
};

static void emit(struct maker *m, uint32_t at, uint32_t size)
{
    uint32_t end = min_u32(at + size, m->n_leaves);

    assert(m->next < m->n_parts && m->runs[m->next].begin == at);
    if (m->runs[m->next].end == end) {
        m->n_adds[m->next++] = 0;
        return;
    }
    assert(size > 1); /* else a part is no subtree */
    size /= 2;
    emit(m, at, size);
    if (at + size < m->n_leaves) {
        emit(m, at + size, size);
        m->n_adds[m->next - 1]++;
    }
}

void td_tree_program_make(uint32_t n_leaves, uint32_t n_parts, const struct td_leaf_run *runs,
                          struct td_tree_program *program)
{
    struct maker m = {
        .n_leaves = n_leaves, .n_parts = n_parts, .runs = runs, .n_adds = program->n_adds};

    assert(n_leaves > 0 && n_leaves <= TD_TREE_MAX_LEAVES && n_parts <= TD_TREE_MAX_LEAVES);
    program->n_parts = n_parts;
    emit(&m, 0, span_of(n_leaves));
    assert(m.next == n_parts);
}

static void add(float *out, const float *left, const float *right, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = left[i] + right[i];
}

void td_tree_join(uint32_t n_leaves, uint32_t n_parts, const struct td_leaf_run *runs,
                  const float *const *part, float *out, size_t n_floats)
{
    struct td_tree_program p;
    float sums[TD_TREE_MAX_DEPTH][TILE];
    const float *stack[TD_TREE_MAX_DEPTH + 1];

    td_tree_program_make(n_leaves, n_parts, runs, &p);
    if (n_parts == 1) {
        if (out != part[0] && n_floats)
            memmove(out, part[0], n_floats * sizeof *out);
        return;
    }
    for (size_t at = 0; at < n_floats; at += TILE) {
        size_t n = n_floats - at < TILE ? n_floats - at : TILE;
        uint32_t depth = 0;

        for (uint32_t i = 0; i < n_parts; i++) {
            stack[depth++] = part[i] + at;
            for (uint32_t k = 0; k < p.n_adds[i]; k++) {
                bool last = i == n_parts - 1 && k + 1 == p.n_adds[i];
                float *sum = last ? out + at : sums[depth - 2];

                add(sum, stack[depth - 2], stack[depth - 1], n);
                stack[--depth - 1] = sum;
            }
        }
    }
}
