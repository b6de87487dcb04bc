#include "shard/jsonalloc.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One text on its way. Once an allocation has failed the text ends, so that what jansson still asks for is little; it is served from the
 * reserve, in which the lexer's buffer for the longest token has room. */
struct load {
    struct td_str text; /* what is left */
    char *reserve;      /* owned */
    size_t reserve_bytes, used_bytes;
    bool failed;
};

/* Room for what may follow the lexer's buffer: a value, its key, a copy of a small token. */
enum { SLACK_BYTES = 1024, ALIGN = 16 };

/* jansson's allocator has no context of its own. */
static _Thread_local struct load *current;
static _Thread_local uint64_t n_failures;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void *take(size_t bytes)
{
    struct load *l = current;
    void *p = malloc(bytes);

    if (p)
        return p;
    n_failures++;
    if (!l)
        return NULL;
    l->failed = true;
    if (bytes > l->reserve_bytes - l->used_bytes)
        return NULL;
    p = l->reserve + l->used_bytes;
    bytes = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    l->used_bytes +=
        bytes < l->reserve_bytes - l->used_bytes ? bytes : l->reserve_bytes - l->used_bytes;
    return p;
}

static void give(void *p)
{
    const struct load *l = current;

    if (!l || (uintptr_t)p - (uintptr_t)l->reserve >= l->reserve_bytes)
        free(p);
}

static void set_allocator(void)
{
    json_set_alloc_funcs(take, give);
}

/* One byte at a time: none is read ahead of a failure. */
static size_t next_byte(void *buffer, size_t n_bytes, void *user)
{
    struct load *l = user;

    if (l->failed || l->text.len == 0 || n_bytes == 0)
        return 0;
    *(char *)buffer = *l->text.ptr;
    l->text = (struct td_str){l->text.ptr + 1, l->text.len - 1};
    return 1;
}

/* Bytes of the longest string with its quotes, number or word; more for what is no JSON. */
static size_t longest_token(struct td_str text)
{
    size_t longest = 0, len = 0;
    bool in_string = false;

    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];

        len++;
        if (in_string && c == '\\') {
            len++;
            i++;
        } else if (c == '"') {
            in_string = !in_string;
        }
        longest = len > longest ? len : longest;
        if (!in_string && (c == '"' || c == ',' || c == ':' || c == ' ' || c == '\n' || c == '[' ||
                           c == ']' || c == '{' || c == '}'))
            len = 0;
    }
    return longest;
}

static void no_memory(json_error_t *why)
{
    if (!why)
        return;
    memset(why, 0, sizeof *why);
    strcpy(why->text, "no memory");
    why->line = why->column = -1;
    why->text[JSON_ERROR_TEXT_LENGTH - 1] = json_error_out_of_memory; /* where jansson keeps it */
}

uint64_t td_jsonalloc_failures(void)
{
    pthread_once(&once, set_allocator);
    return n_failures;
}

json_t *td_jsonalloc_parse(struct td_str text, size_t flags, json_error_t *why)
{
    struct load load = {.text = text}, *outer = current;
    json_t *value = NULL;

    pthread_once(&once, set_allocator);
    /* The buffer doubles, so it is at most twice the longest token, and so is what was there before it. */
    load.reserve_bytes = 2 * longest_token(text) + SLACK_BYTES;
    load.reserve = malloc(load.reserve_bytes);
    if (!load.reserve) {
        no_memory(why);
        return NULL;
    }
    current = &load;
    value = json_load_callback(next_byte, &load, flags, why);
    if (load.failed) {
        json_decref(value);
        value = NULL;
        no_memory(why);
    }
    current = outer;
    free(load.reserve);
    return value;
}
