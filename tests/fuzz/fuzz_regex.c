/* A tokenizer's pattern and a text, parted by a form feed: the pattern as it is and as plain text. Matches go forward, within the
 * text, and a plain text is found where it stands. */
#include "tests/fuzz/fuzz.h"

#include "daemon/text/regex.h"

enum { MAX_TEXT_BYTES = 256, MAX_MATCHES = 64 };

static void match(const struct td_regex *re, struct td_str text, struct td_str literal)
{
    struct td_regex_work work = {0};
    size_t from = 0;

    for (int i = 0; i < MAX_MATCHES && from <= text.len; i++) {
        struct td_err err = {0};
        size_t start = 0, end = 0;
        bool found = false;
        enum td_status status = td_regex_next(re, &work, text, from, &found, &start, &end, &err);

        fuzz_check_err(status, &err);
        FUZZ_CHECK(!literal.len ||
                   (!status && found == (memmem(text.ptr + from, text.len - from, literal.ptr,
                                                literal.len) != NULL)));
        if (status || !found)
            break;
        FUZZ_CHECK(start >= from && start <= end && end <= text.len);
        FUZZ_CHECK(!literal.len ||
                   td_str_eq((struct td_str){text.ptr + start, end - start}, literal));
        from = end > start ? end : end + 1;
        while (from < text.len && ((unsigned char)text.ptr[from] & 0xC0) == 0x80)
            from++;
    }
    td_regex_work_deinit(&work);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct td_str text = {(const char *)data, size};
    struct td_str pattern = fuzz_part(&text);

    if (text.len > MAX_TEXT_BYTES || !td_str_is_utf8(text))
        return 0;
    for (int literal = 0; literal < 2; literal++) {
        struct td_regex *re = NULL;
        struct td_err err = {0};
        enum td_status status = td_regex_open(pattern, literal != 0, &re, &err);

        fuzz_check_err(status, &err);
        if (!status)
            match(re, text, literal ? pattern : (struct td_str){"", 0});
        td_regex_close(re);
    }
    return 0;
}
