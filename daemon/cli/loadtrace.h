/* A trace of requests to play back: one JSON object per line with when it came, what it asked and how much was answered. Read
 * once, then read-only; knows no server. The names are those of the traces that Mooncake published (Qin et al. 2024). */
#ifndef TD_DAEMON_CLI_LOADTRACE_H
#define TD_DAEMON_CLI_LOADTRACE_H

#include "kernels/base/bytes.h"
#include "kernels/base/err.h"

#include <stdint.h>

enum {
    TD_LOADTRACE_BLOCK_TOKENS = 512,
    TD_LOADTRACE_MAX_ROWS = 1 << 22,
    TD_LOADTRACE_MAX_LINE_BYTES = 16 << 20
};

struct td_loadtrace_row {
    double at_s;       /* after the first row */
    char *prompt;      /* owned text without NUL; NULL: n_input words are drawn */
    uint32_t n_input;  /* tokens of the prompt; 0 with a prompt */
    uint32_t n_output; /* tokens of the answer */
    uint32_t *
        blocks; /* [n_blocks] owned: a number for each 512 tokens of the prompt, equal where the text was */
    uint32_t n_blocks; /* 0: not known */
};

struct td_loadtrace {
    struct td_loadtrace_row *rows; /* [n_rows] in order of time */
    size_t n_rows;                 /* at least 1 */
};

/* Reads lines like {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]} (timestamp in
 * milliseconds; hash_ids may be missing; "prompt": "text" may stand for input_length). Other keys are ignored, and so are empty
 * lines. TD_INVALID names the line and what is wrong; *out is owned by the caller (td_loadtrace_close). */
enum td_status td_loadtrace_parse(struct td_str text, struct td_loadtrace **out,
                                  struct td_err *err);
/* The same of a file. */
enum td_status td_loadtrace_open(const char *path, struct td_loadtrace **out, struct td_err *err);
void td_loadtrace_close(struct td_loadtrace *t);

#endif
