#include "daemon/engine/verdict.h"

#include "daemon/text/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void td_verdict_deinit(struct td_verdict_report *report)
{
    free(report->lines);
    *report = (struct td_verdict_report){0};
}

/* Names and paths may hold any bytes, and a text that is cut may end inside a character: lines are whole UTF-8 without control
 * characters, for terminals and JSON. */
static void make_plain(char *text)
{
    size_t len = strlen(text), n_bytes;
    uint32_t cp;

    for (size_t i = 0; i < len; i += n_bytes) {
        struct td_str rest = {text + i, len - i};

        if (td_utf8_decode(rest, &cp, &n_bytes) != TD_UTF8_CHAR)
            memset(text + i, '?', n_bytes);
        else if (cp < 0x20 || cp == 0x7f)
            text[i] = '?';
    }
}

void td_verdict_add(struct td_verdict_report *report, enum td_verdict verdict, const char *check,
                    const char *where, const char *fmt, ...)
{
    struct td_verdict_line *line;
    va_list args;

    if (report->n == report->cap) {
        uint32_t cap = report->cap ? report->cap * 2 : 32;

        line = realloc(report->lines, cap * sizeof *line);
        if (!line) {
            report->lacks_memory = true;
            return;
        }
        report->lines = line;
        report->cap = cap;
    }
    line = &report->lines[report->n++];
    line->verdict = verdict;
    snprintf(line->check, sizeof line->check, "%s", check);
    snprintf(line->where, sizeof line->where, "%s", where);
    va_start(args, fmt);
    vsnprintf(line->text, sizeof line->text, fmt, args);
    va_end(args);
    make_plain(line->where);
    make_plain(line->text);
}

enum td_verdict td_verdict_worst(const struct td_verdict_report *report)
{
    enum td_verdict worst = report->lacks_memory ? TD_VERDICT_ERROR : TD_VERDICT_OK;

    for (uint32_t i = 0; i < report->n; i++)
        worst = report->lines[i].verdict > worst ? report->lines[i].verdict : worst;
    return worst;
}

const char *td_verdict_name(enum td_verdict verdict)
{
    return verdict == TD_VERDICT_OK ? "ok" : verdict == TD_VERDICT_WARNING ? "warning" : "error";
}
