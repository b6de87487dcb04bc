/* `tensord chat`: a conversation with the served model on a terminal, from a pipe (one message a line), or once. */
#include "daemon/api/json.h"
#include "daemon/cli/client.h"
#include "daemon/cli/command.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

struct chat {
    const struct td_options *opts;
    char *model;             /* owned; as the server names it */
    json_t *messages;        /* owned; the conversation so far */
    struct td_bytes answer;  /* that is arriving */
    bool is_done, was_cut;   /* [DONE] came; it ended at --max-tokens */
    bool is_shown;           /* a part of the answer was written */
    bool to_terminal;        /* standard output is one */
    struct td_err event_err; /* what an event said; TD_OK: nothing */
};

/* A signal's handler reaches nothing else. */
static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static struct td_client_request request_to(const struct chat *c, const char *method,
                                           const char *path)
{
    const struct td_options *o = c->opts;

    return (struct td_client_request){.url = o->url,
                                      .api_key = o->api_key.n ? o->api_key.items[0] : NULL,
                                      .ca_file = o->ssl_certfile,
                                      .method = method,
                                      .path = path,
                                      .stop = &interrupted};
}

/* Asks which model there is; tells at once when the server or the key is not right. */
static enum td_status find_model(struct chat *c, struct td_err *err)
{
    struct td_client_request request = request_to(c, "GET", "/v1/models");
    struct td_bytes body = {0};
    json_t *root = NULL;
    const char *id;
    int http_status = 0;
    enum td_status s = td_client_call(&request, &http_status, &body, err);

    s = s ? s : td_client_check(http_status, td_bytes_str(&body), err);
    s = s ? s : td_json_parse(td_bytes_str(&body), 0, &root, err);
    if (!s) {
        id = json_string_value(
            json_object_get(json_array_get(json_object_get(root, "data"), 0), "id"));
        c->model = id ? strdup(id) : NULL;
        if (!c->model)
            s = td_err_set(err, TD_UNAVAILABLE, "the server at %s has no model loaded",
                           c->opts->url);
    }
    json_decref(root);
    td_bytes_deinit(&body);
    return s;
}

/* ---- one answer ---- */

/* On a terminal a model's control characters (C0 but tab and line feed, DEL, C1) would be commands: they become U+FFFD. */
static void show(const struct chat *c, struct td_str text)
{
    size_t shown = 0;

    for (size_t i = 0; c->to_terminal && i < text.len; i++) {
        unsigned char byte = (unsigned char)text.ptr[i];
        bool c1 = byte == 0xc2 && i + 1 < text.len && (unsigned char)text.ptr[i + 1] < 0xa0;

        if ((byte >= 0x20 && byte != 0x7f && !c1) || byte == '\n' || byte == '\t')
            continue;
        fwrite(text.ptr + shown, 1, i - shown, stdout);
        fputs("\xef\xbf\xbd", stdout);
        i += c1;
        shown = i + 1;
    }
    fwrite(text.ptr + shown, 1, text.len - shown, stdout);
    fflush(stdout);
}

/* td_client_event_fn */
static bool on_event(struct td_str data, void *user)
{
    struct chat *c = user;
    json_t *root = NULL, *choice;
    const json_t *content, *error;

    if (td_str_eq(data, TD_STR("[DONE]"))) {
        c->is_done = true;
        return true;
    }
    if (td_json_parse(data, 0, &root, &c->event_err))
        return false;
    error = json_object_get(root, "error");
    if (error) {
        const char *message = json_string_value(json_object_get(error, "message"));

        td_err_set(&c->event_err, TD_UNAVAILABLE, "the server ended the answer: %s",
                   message ? message : "it does not say why");
        json_decref(root);
        return false;
    }
    choice = json_array_get(json_object_get(root, "choices"), 0);
    content = json_object_get(json_object_get(choice, "delta"), "content");
    if (json_string_length(content) > 0) {
        struct td_str text = {json_string_value(content), json_string_length(content)};

        show(c, text);
        c->is_shown = true;
        if (td_bytes_append_str(&c->answer, text))
            td_err_set(&c->event_err, TD_NO_MEMORY, "no memory for the answer");
    }
    content = json_object_get(choice, "finish_reason");
    if (json_is_string(content) && strcmp(json_string_value(content), "length") == 0)
        c->was_cut = true;
    json_decref(root);
    /* Nobody reads any more when the output is closed. */
    return !c->event_err.status && !ferror(stdout);
}

/* Fields that not every server knows: only those that the user asked for. */
static void add_sampling(const struct td_options *o, json_t *body)
{
    const struct {
        const char *name;
        const double *value;
    } numbers[] = {{"typical_p", &o->typical_p},
                   {"top_n_sigma", &o->top_n_sigma},
                   {"xtc_probability", &o->xtc_probability},
                   {"xtc_threshold", &o->xtc_threshold},
                   {"dynatemp_range", &o->dynatemp_range},
                   {"dynatemp_exponent", &o->dynatemp_exponent},
                   {"dry_multiplier", &o->dry_multiplier},
                   {"dry_base", &o->dry_base},
                   {"mirostat_tau", &o->mirostat_tau},
                   {"mirostat_eta", &o->mirostat_eta}};
    const struct {
        const char *name;
        const int64_t *value;
    } counts[] = {{"repeat_last_n", &o->repeat_last_n},
                  {"dry_allowed_length", &o->dry_allowed_length},
                  {"dry_penalty_last_n", &o->dry_penalty_last_n},
                  {"mirostat", &o->mirostat}};
    const struct td_option_list *breakers = &o->dry_sequence_breakers;
    json_t *texts;

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (td_options_is_set(o, numbers[i].value))
            json_object_set_new(body, numbers[i].name, json_real(*numbers[i].value));
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        if (td_options_is_set(o, counts[i].value))
            json_object_set_new(body, counts[i].name, json_integer(*counts[i].value));
    if (breakers->n == 0)
        return;
    texts = json_array();
    for (uint32_t i = 0; i < breakers->n; i++)
        if (breakers->n > 1 || strcmp(breakers->items[i], "none") != 0)
            json_array_append_new(texts, json_string(breakers->items[i]));
    json_object_set_new(body, "dry_sequence_breakers", texts);
}

static json_t *body_of(const struct chat *c)
{
    const struct td_options *o = c->opts;
    json_t *stop = json_array(), *body;

    for (uint32_t i = 0; i < o->stop.n; i++)
        json_array_append_new(stop, json_string(o->stop.items[i]));
    body = json_pack("{s:s,s:O,s:b,s:I,s:f,s:I,s:f,s:f,s:f,s:f,s:f,s:o}", "model", c->model,
                     "messages", c->messages, "stream", 1, "max_tokens", (json_int_t)o->max_tokens,
                     "temperature", o->temperature, "top_k", (json_int_t)o->top_k, "top_p",
                     o->top_p, "min_p", o->min_p, "repetition_penalty", o->repetition_penalty,
                     "presence_penalty", o->presence_penalty, "frequency_penalty",
                     o->frequency_penalty, "stop", stop);
    if (body)
        add_sampling(o, body);
    if (body && td_options_is_set(o, &o->seed))
        json_object_set_new(body, "seed", json_integer((json_int_t)o->seed));
    return body;
}

static enum td_status stream_answer(struct chat *c, struct td_err *err)
{
    struct td_client_request request = request_to(c, "POST", "/v1/chat/completions");
    struct td_bytes error_body = {0};
    json_t *json = body_of(c);
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    int http_status = 0;
    enum td_status s;

    json_decref(json);
    if (!text)
        return td_err_set(err, TD_INVALID, "a --stop text is not UTF-8");
    request.body = td_str_from(text);
    request.on_event = on_event;
    request.user = c;
    s = td_client_call(&request, &http_status, &error_body, err);
    if (s && c->event_err.status) {
        *err = c->event_err;
        s = err->status;
    }
    s = s ? s : td_client_check(http_status, td_bytes_str(&error_body), err);
    if (!s && !c->is_done)
        s = td_err_set(err, TD_PEER_LOST, "the server's answer ended before it was whole");
    free(text);
    td_bytes_deinit(&error_body);
    return s;
}

static enum td_status remember(struct chat *c, const char *role, struct td_str text)
{
    json_t *message =
        json_pack("{s:s,s:s%}", "role", role, "content", text.len ? text.ptr : "", text.len);

    return message && json_array_append_new(c->messages, message) == 0 ? TD_OK : TD_INVALID;
}

/* Asks and prints the answer. A question without an answer is forgotten; an answer that was stopped is kept as far as it
 * came (TD_CANCELLED). */
static enum td_status ask(struct chat *c, struct td_str question, struct td_err *err)
{
    enum td_status s;

    if (remember(c, "user", question))
        return td_err_set(err, TD_INVALID, "the message is not UTF-8");
    td_bytes_clear(&c->answer);
    c->is_done = c->was_cut = c->is_shown = false;
    c->event_err.status = TD_OK;
    s = stream_answer(c, err);
    if (c->is_shown || !s)
        putchar('\n');
    fflush(stdout);
    if (s && (s != TD_CANCELLED || c->answer.len == 0))
        json_array_remove(c->messages, json_array_size(c->messages) - 1);
    else
        remember(c, "assistant", td_bytes_str(&c->answer));
    return s;
}

/* ---- where questions come from ---- */

static enum td_status from_pipe(struct chat *c, struct td_err *err)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    enum td_status s = TD_OK;

    while (!s && (n = getline(&line, &cap, stdin)) >= 0) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            n--;
        if (n > 0)
            s = ask(c, (struct td_str){line, (size_t)n}, err);
    }
    free(line);
    return s;
}

static char *prompt(EditLine *editor)
{
    static char text[] = "> ";

    (void)editor;
    return text;
}

/* One character for libedit. Its own reader would go on after a signal; Ctrl-C must give up the line. */
static int read_char(EditLine *editor, wchar_t *out)
{
    mbstate_t state = {0};
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};

    (void)editor;
    for (;;) {
        char byte;
        ssize_t n;
        size_t used;

        while (poll(&in, 1, 100) == 0 && !interrupted)
            ;
        if (interrupted)
            return -1;
        n = read(STDIN_FILENO, &byte, 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return (int)n;
        used = mbrtowc(out, &byte, 1, &state);
        if (used == (size_t)-1) {
            *out = L'?';
            return 1;
        }
        if (used != (size_t)-2)
            return 1;
    }
}

static enum td_status from_terminal(struct chat *c, struct td_err *err)
{
    struct sigaction action = {.sa_handler = on_interrupt}, before;
    EditLine *editor;

    if (!setlocale(LC_CTYPE, "") || MB_CUR_MAX == 1)
        setlocale(LC_CTYPE, "C.UTF-8");
    editor = el_init("tensord", stdin, stdout, stderr);
    if (!editor)
        return td_err_set(err, TD_IO, "no line editor for this terminal");
    /* No history: what was said is kept nowhere but in the conversation. */
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_PROMPT, prompt);
    el_set(editor, EL_GETCFN, read_char);
    sigaction(SIGINT, &action, &before);
    fprintf(stderr, "%s at %s. Ctrl-C stops an answer, Ctrl-D leaves, /new begins anew.\n",
            c->model, c->opts->url);
    for (;;) {
        int n = 0;
        const char *line;
        char text[sizeof err->cause + sizeof err->context + 4];

        interrupted = 0;
        /* Before the prompt: a Ctrl-D that is typed as soon as it stands there must not meet the system's line discipline. */
        el_set(editor, EL_PREP_TERM, 1);
        line = el_gets(editor, &n);
        if (interrupted) {
            el_reset(editor);
            fputs("^C\n", stdout);
            continue;
        }
        if (!line || n <= 0)
            break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            n--;
        if (n == 4 && memcmp(line, "/new", 4) == 0)
            json_array_clear(c->messages);
        else if (n > 0 && ask(c, (struct td_str){line, (size_t)n}, err))
            fprintf(stderr, "%s\n",
                    err->status != TD_CANCELLED ? td_err_format(err, text, sizeof text)
                    : c->is_shown               ? "(stopped)"
                                                : "\n(stopped)");
        else if (n > 0 && c->was_cut)
            fprintf(stderr, "(cut at --max-tokens %lld)\n", (long long)c->opts->max_tokens);
    }
    putchar('\n');
    sigaction(SIGINT, &before, NULL);
    el_end(editor);
    return TD_OK;
}

int td_cmd_chat(const struct td_options *opts)
{
    struct chat c = {.opts = opts, .messages = json_array(), .to_terminal = isatty(STDOUT_FILENO)};
    struct td_err err;
    enum td_status s = find_model(&c, &err);

    if (s)
        ;
    else if (opts->once)
        s = ask(&c, td_str_from(opts->once), &err);
    else if (isatty(STDIN_FILENO) && c.to_terminal)
        s = from_terminal(&c, &err);
    else
        s = from_pipe(&c, &err);
    json_decref(c.messages);
    td_bytes_deinit(&c.answer);
    free(c.model);
    return s ? td_command_report(opts, &err) : TD_EXIT_OK;
}
