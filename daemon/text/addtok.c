#include "daemon/text/addtok.h"

#include "daemon/text/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static const uint32_t NONE = UINT32_MAX;

struct td_addtok_node {
    uint32_t child;   /* first child, 0: none */
    uint32_t sibling; /* next child of the same parent, 0: none */
    uint32_t index;   /* token that ends here, NONE: none */
    unsigned char byte;
};

void td_addtok_trie_deinit(struct td_addtok_trie *t)
{
    free(t->nodes);
    *t = (struct td_addtok_trie){0};
}

/* A new node, 0 when there is no memory (0 is the root, which is never new here but at first). */
static uint32_t new_node(struct td_addtok_trie *t, unsigned char byte)
{
    if (t->n_nodes == t->cap) {
        uint32_t cap = t->cap ? t->cap * 2 : 256;
        struct td_addtok_node *nodes = realloc(t->nodes, cap * sizeof *nodes);

        if (!nodes)
            return 0;
        t->nodes = nodes;
        t->cap = cap;
    }
    t->nodes[t->n_nodes] = (struct td_addtok_node){.index = NONE, .byte = byte};
    return t->n_nodes++;
}

static uint32_t child_of(const struct td_addtok_trie *t, uint32_t node, unsigned char byte)
{
    uint32_t c = t->nodes[node].child;

    while (c && t->nodes[c].byte != byte)
        c = t->nodes[c].sibling;
    return c;
}

enum td_status td_addtok_trie_add(struct td_addtok_trie *t, struct td_str text, uint32_t index)
{
    uint32_t node = 0;

    if (!t->n_nodes) {
        new_node(t, 0);
        if (!t->n_nodes)
            return TD_NO_MEMORY;
    }
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.ptr[i];
        uint32_t c = child_of(t, node, byte);

        if (!c) {
            c = new_node(t, byte);
            if (!c)
                return TD_NO_MEMORY;
            t->nodes[c].sibling = t->nodes[node].child;
            t->nodes[node].child = c;
        }
        node = c;
    }
    t->first[(unsigned char)text.ptr[0]] = true;
    if (t->nodes[node].index == NONE)
        t->nodes[node].index = index;
    return TD_OK;
}

bool td_addtok_next(const struct td_addtok_trie *t, struct td_str text, size_t from,
                    td_addtok_accept_fn *accept, const void *user, struct td_addtok_match *match)
{
    if (!t->n_nodes)
        return false;
    for (size_t start = from; start < text.len; start++) {
        uint32_t node = 0;
        bool found = false;

        if (!t->first[(unsigned char)text.ptr[start]])
            continue;
        for (size_t at = start; at < text.len; at++) {
            node = child_of(t, node, (unsigned char)text.ptr[at]);
            if (!node)
                break;
            if (t->nodes[node].index != NONE && accept(user, t->nodes[node].index, start, at + 1)) {
                *match = (struct td_addtok_match){t->nodes[node].index, start, at + 1};
                found = true;
            }
        }
        if (found)
            return true;
    }
    return false;
}

static bool is_word(uint32_t cp)
{
    switch (utf8proc_category((int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

bool td_addtok_is_single_word(struct td_str text, size_t start, size_t end)
{
    uint32_t cp;
    size_t n;

    if (start > 0) {
        size_t at = start - 1;

        while (at > 0 && ((unsigned char)text.ptr[at] & 0xC0) == 0x80)
            at--;
        if (td_utf8_decode((struct td_str){text.ptr + at, start - at}, &cp, &n) == TD_UTF8_CHAR &&
            is_word(cp))
            return false;
    }
    return end >= text.len ||
           td_utf8_decode((struct td_str){text.ptr + end, text.len - end}, &cp, &n) !=
               TD_UTF8_CHAR ||
           !is_word(cp);
}
