/* The commands of the program: one row each, one file each, and what they share.
 * A command's function runs on the main thread and returns an exit status; it never exits itself. To add a command:
 * one row in TD_COMMANDS and daemon/cli/<name>.c with its td_cmd_<name>; its options name its TD_FOR_ bit in
 * option_table.c. */
#ifndef TD_DAEMON_CLI_COMMAND_H
#define TD_DAEMON_CLI_COMMAND_H

#include "daemon/cli/options.h"
#include "kernels/base/err.h"

/* X(name, TD_FOR_ bit, one line of help), in the order of --help. */
#define TD_COMMANDS(X)                                                                             \
    X(serve, TD_FOR_SERVE, "serve a model to HTTP and gRPC clients")                               \
    X(worker, TD_FOR_WORKER, "be a rank of a group that a coordinator leads")                      \
    X(generate, TD_FOR_GENERATE, "answer one prompt without a network service")                    \
    X(plan, TD_FOR_PLAN, "print who would hold what, without loading")                             \
    X(perplexity, TD_FOR_PERPLEXITY, "measure how well the model foretells a text")                \
    X(bench, TD_FOR_BENCH, "measure speed and the share of the memory bandwidth")                  \
    X(doctor, TD_FOR_DOCTOR, "check hosts, ranks and links before a group is started")             \
    X(quantize, TD_FOR_QUANTIZE, "store a model's weights in another type")                        \
    X(tokenize, TD_FOR_TOKENIZE, "turn a text into token ids")                                     \
    X(inspect, TD_FOR_INSPECT, "print what a checkpoint holds")                                    \
    X(status, TD_FOR_STATUS, "show what a running server does, rank by rank")                      \
    X(drain, TD_FOR_DRAIN, "let a running server finish what is open and take nothing new")        \
    X(roll, TD_FOR_ROLL, "let a new group take the place of a running server's")                   \
    X(chat, TD_FOR_CHAT, "talk to a running server")

/* Exit statuses of the program. */
enum { TD_EXIT_OK = 0, TD_EXIT_FAILURE = 1, TD_EXIT_USAGE = 2 };

typedef int td_command_fn(const struct td_options *opts);

struct td_command {
    const char *name;
    unsigned bit; /* enum td_option_command */
    const char *help;
    td_command_fn *run;
};

#define TD_COMMAND_PROTOTYPE(name, bit, help) td_command_fn td_cmd_##name;
TD_COMMANDS(TD_COMMAND_PROTOTYPE)
#undef TD_COMMAND_PROTOTYPE
/* Commands of two words, "bench serve". */
td_command_fn td_cmd_bench_serve;
td_command_fn td_cmd_bench_comm;
td_command_fn td_cmd_bench_scale;

/* The table; *n rows. */
const struct td_command *td_command_table(size_t *n);
const struct td_command *td_command_find(const char *name); /* NULL when there is none */
/* The command that argv[0 .. argc) begins with; *n_words of them name it. NULL when there is none. */
const struct td_command *td_command_match(int argc, char **argv, int *n_words);

/* The whole program: argv[1] names the command. Returns the exit status. */
int td_command_main(int argc, char **argv, char *const *envp);

/* Prints "tensord <command>: <error>" to stderr and returns TD_EXIT_FAILURE. */
int td_command_report(const struct td_options *opts, const struct td_err *err);

#endif
