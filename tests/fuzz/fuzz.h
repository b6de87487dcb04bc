/* What every fuzz target shares: the entry point that libFuzzer calls, an exact copy of the input, and a check that stops
 * the run. A target reads one input, must free all it took, and returns 0. */
#ifndef TD_TESTS_FUZZ_FUZZ_H
#define TD_TESTS_FUZZ_FUZZ_H

#include "kernels/base/bytes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A promise of the code under test; a broken one is a finding. */
#define FUZZ_CHECK(promise)                                                                        \
    do {                                                                                           \
        if (!(promise)) {                                                                          \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #promise);                  \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* Every byte is read, so that the sanitizers see a slice that is longer than its memory. */
static inline void fuzz_touch(struct td_str s)
{
    static volatile unsigned char sink;

    for (size_t i = 0; i < s.len; i++)
        sink = (unsigned char)(sink ^ (unsigned char)s.ptr[i]);
}

/* The first byte of the input as a choice, the rest as the text. */
static inline struct td_str fuzz_split(const uint8_t *data, size_t size, uint8_t *choice)
{
    *choice = size ? data[0] : 0;
    return size ? (struct td_str){(const char *)data + 1, size - 1} : (struct td_str){"", 0};
}

/* Takes the text up to the next form feed off the front of *rest: inputs of several parts stay text files. */
static inline struct td_str fuzz_part(struct td_str *rest)
{
    const char *end = rest->len ? memchr(rest->ptr, '\f', rest->len) : NULL;
    struct td_str part = {rest->ptr, end ? (size_t)(end - rest->ptr) : rest->len};
    size_t used = part.len + (end != NULL);

    *rest = (struct td_str){rest->ptr + used, rest->len - used};
    return part;
}

/* An error always tells something, and in text that can be shown. */
static inline void fuzz_check_err(enum td_status status, const struct td_err *err)
{
    if (status) {
        FUZZ_CHECK(err->cause[0] != '\0');
        FUZZ_CHECK(err->status == status);
    }
}

#endif
