/* The numerics vectors of the test data: 512 floats, and for each type the bytes that another implementation quantised them
 * to and the floats that it reads back. The numbers have nine digits, which tell any two F32 values apart. */
#ifndef TD_TESTS_QUANT_VECTORS_H
#define TD_TESTS_QUANT_VECTORS_H

#include "kernels/base/dtype.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VECTORS TD_SHARED "/data/numerics/ggml-quant-vectors.json"

enum { N = 512 };

static char *vectors; /* the whole file, or NULL when it is absent */

static inline int vectors_load(void **state)
{
    FILE *f = fopen(VECTORS, "rb");
    long n;

    (void)state;
    if (!f)
        return 0;
    fseek(f, 0, SEEK_END);
    n = ftell(f);
    rewind(f);
    vectors = calloc(1, (size_t)n + 1);
    if (!vectors || fread(vectors, 1, (size_t)n, f) != (size_t)n)
        return -1;
    fclose(f);
    return 0;
}

static inline int vectors_unload(void **state)
{
    (void)state;
    free(vectors);
    return 0;
}

static inline void vectors_skip_when_absent(void)
{
    if (!vectors) {
        print_message("SKIPPED: %s is absent\n", VECTORS);
        skip();
    }
}

/* The N numbers of the array that follows `key` at or after `from`. */
static inline void vectors_read_floats(const char *from, const char *key, float out[N])
{
    const char *p = strstr(from, key);
    char *end;

    assert_non_null(p);
    p = strchr(p, '[') + 1;
    for (int i = 0; i < N; i++) {
        out[i] = strtof(p, &end);
        assert_true(end > p);
        p = end + 1;
    }
    assert_int_equal(end[0], ']');
}

static inline void vectors_read_x(float x[N])
{
    vectors_read_floats(vectors, "\"x\":", x);
}

/* Stored bytes and their floats as the peer has them. It writes "q4_K" where we write "q4_k". */
static inline void vectors_read(enum td_dtype type, uint8_t *stored, float out[N])
{
    size_t bytes = td_dtype_row_bytes(type, N);
    char key[64];
    const char *p;
    unsigned byte;
    size_t n;

    snprintf(key, sizeof key, "\"name\":\"%s\"", td_dtype_info(type)->name);
    n = strlen(key);
    if (strcmp(key + n - 3, "_k\"") == 0)
        key[n - 2] = 'K';
    p = strstr(vectors, key);
    assert_non_null(p);
    vectors_read_floats(p, "\"dequantized\"", out);
    p = strstr(p, "\"q_hex\":\"");
    assert_non_null(p);
    p += strlen("\"q_hex\":\"");
    for (size_t i = 0; i < bytes; i++) {
        assert_int_equal(sscanf(p + 2 * i, "%2x", &byte), 1);
        stored[i] = (uint8_t)byte;
    }
    assert_int_equal(p[2 * bytes], '"');
}

#endif
