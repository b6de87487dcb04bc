#include "daemon/cli/command.h"
#include "daemon/cli/config.h"
#include "daemon/text/tokenizer.h"
#include "shard/checkpoint.h"

#include <jansson.h>
#include <stdio.h>

enum { MAX_TEXT_BYTES = 1 << 30 };

/* --text, else --file, else standard input. The slice borrows from the options or from *buffer. */
static enum td_status read_text(const struct td_options *opts, struct td_bytes *buffer,
                                struct td_str *text, struct td_err *err)
{
    enum td_status status;

    if (opts->text) {
        *text = td_str_from(opts->text);
        return TD_OK;
    }
    status =
        td_config_read_file(opts->file ? opts->file : "/dev/stdin",
                            opts->file ? "--file" : "standard input", MAX_TEXT_BYTES, buffer, err);
    if (status == TD_OK)
        *text = td_bytes_str(buffer);
    return status;
}

/* {"ids": [...], "pieces": [...]}; a piece that is no whole UTF-8 text is null. */
static enum td_status print_json(const struct td_tokenizer *tok, const struct td_ids *ids,
                                 struct td_err *err)
{
    json_t *root = json_object(), *array = json_array(), *pieces = json_array();
    bool ok = root && array && pieces;

    for (size_t i = 0; i < ids->len && ok; i++) {
        struct td_str piece = td_tokenizer_piece(tok, ids->data[i]);

        ok = json_array_append_new(array, json_integer(ids->data[i])) == 0 &&
             json_array_append_new(pieces, td_str_is_utf8(piece)
                                               ? json_stringn(piece.len ? piece.ptr : "", piece.len)
                                               : json_null()) == 0;
    }
    ok = ok && json_object_set(root, "ids", array) == 0 &&
         json_object_set(root, "pieces", pieces) == 0 && json_dumpf(root, stdout, 0) == 0;
    json_decref(array);
    json_decref(pieces);
    json_decref(root);
    putchar('\n');
    return ok ? TD_OK
              : td_err_set(err, TD_NO_MEMORY, "no memory for the JSON of %zu ids", ids->len);
}

/* One line of ids; --verbose: a line per token with its piece, other bytes than visible ASCII as \xNN. */
static void print_plain(const struct td_tokenizer *tok, const struct td_ids *ids, bool verbose)
{
    for (size_t i = 0; i < ids->len && verbose; i++) {
        struct td_str piece = td_tokenizer_piece(tok, ids->data[i]);

        printf("%8u  '", ids->data[i]);
        for (size_t k = 0; k < piece.len; k++)
            printf(piece.ptr[k] >= 0x20 && piece.ptr[k] < 0x7f ? "%c" : "\\x%02x",
                   (unsigned char)piece.ptr[k]);
        puts("'");
    }
    for (size_t i = 0; i < ids->len && !verbose; i++)
        printf("%s%u", i ? " " : "", ids->data[i]);
    if (!verbose)
        putchar('\n');
}

int td_cmd_tokenize(const struct td_options *opts)
{
    unsigned flags =
        (opts->add_bos ? TD_ENCODE_BOS : 0u) | (opts->parse_special ? TD_ENCODE_SPECIAL : 0u);
    struct td_checkpoint *ck = NULL;
    struct td_tokenizer *tok = NULL;
    struct td_bytes buffer = {0};
    struct td_ids ids = {0};
    struct td_str text;
    struct td_err err;
    enum td_status status;

    status = read_text(opts, &buffer, &text, &err);
    if (status == TD_OK)
        status = td_checkpoint_open(opts->model, &ck, &err);
    if (status == TD_OK)
        status = td_tokenizer_open(ck, &tok, &err);
    if (status == TD_OK)
        status = td_tokenizer_encode(tok, text, flags, &ids, &err);
    if (status == TD_OK && opts->json)
        status = print_json(tok, &ids, &err);
    else if (status == TD_OK)
        print_plain(tok, &ids, opts->verbose);
    td_ids_deinit(&ids);
    td_tokenizer_close(tok);
    td_checkpoint_close(ck);
    td_bytes_deinit(&buffer);
    return status == TD_OK ? TD_EXIT_OK : td_command_report(opts, &err);
}
