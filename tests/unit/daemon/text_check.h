/* Help for the tests of daemon/text: files and tokenizers. Include it after <cmocka.h>. */
#ifndef TD_TESTS_UNIT_DAEMON_TEXT_CHECK_H
#define TD_TESTS_UNIT_DAEMON_TEXT_CHECK_H

#include "../check.h"
#include "daemon/text/tokenizer.h"
#include "shard/gguf.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOKENIZERS TD_SHARED "/data/tokenizers/"
#define SKIP_WITHOUT_SHARED()                                                                      \
    do {                                                                                           \
        if (access(TD_SHARED "/data", R_OK) != 0)                                                  \
            TD_SKIP("shared: ../shared/data is absent");                                           \
    } while (0)

/* The whole file; empty when it is not there. */
static inline struct td_bytes text_read(const char *path)
{
    struct td_bytes out = {0};
    char block[65536];
    size_t n;
    FILE *f = fopen(path, "rb");

    while (f && (n = fread(block, 1, sizeof block, f)) > 0)
        assert_int_equal(td_bytes_append(&out, block, n), TD_OK);
    if (f)
        fclose(f);
    return out;
}

/* `path`: a folder with tokenizer.json, or a GGUF file. */
static inline struct td_tokenizer *text_open(const char *path)
{
    struct td_tokenizer *tok = NULL;
    struct td_err err = {0};
    char file[512];

    if (strstr(path, ".gguf")) {
        struct td_gguf *g = NULL;

        if (td_gguf_open(path, &g, &err) || td_tokenizer_open_gguf(g, &tok, &err))
            fail_msg("%s: %s", path, err.cause);
        td_gguf_close(g);
    } else {
        struct td_bytes json, config;

        snprintf(file, sizeof file, "%s/tokenizer.json", path);
        json = text_read(file);
        assert_true(json.len > 0);
        snprintf(file, sizeof file, "%s/tokenizer_config.json", path);
        config = text_read(file);
        if (td_tokenizer_open_json(td_bytes_str(&json), td_bytes_str(&config), &tok, &err))
            fail_msg("%s: %s", path, err.cause);
        td_bytes_deinit(&config);
        td_bytes_deinit(&json);
    }
    return tok;
}

/* A tokenizer out of JSON text written in a test. */
static inline struct td_tokenizer *text_open_literal(const char *json, const char *config)
{
    struct td_tokenizer *tok = NULL;
    struct td_err err = {0};

    if (td_tokenizer_open_json(td_str_from(json), td_str_from(config), &tok, &err))
        fail_msg("%s", err.cause);
    return tok;
}

static inline void text_check_ids(const struct td_tokenizer *tok, struct td_str text,
                                  unsigned flags, const uint32_t *want, size_t n)
{
    struct td_ids ids = {0};
    struct td_err err = {0};
    size_t same = 0;

    if (td_tokenizer_encode(tok, text, flags, &ids, &err))
        fail_msg("'%.*s': %s", (int)text.len, text.ptr, err.cause);
    while (same < n && same < ids.len && ids.data[same] == want[same])
        same++;
    if (same != n || ids.len != n)
        fail_msg("'%.*s': %zu ids, expected %zu; they differ from %zu on (%ld, expected %ld)",
                 (int)text.len, text.ptr, ids.len, n, same,
                 same < ids.len ? (long)ids.data[same] : -1L, same < n ? (long)want[same] : -1L);
    td_ids_deinit(&ids);
}

#endif
