#include "daemon/cli/command.h"

#include "comm/comm_mpi.h"

#include "daemon/cli/help.h"
#include "daemon/cli/version.h"
#include "daemon/coordinator/keeper.h"
#include "daemon/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct td_command table[] = {
#define TD_COMMAND_ROW(name, bit, help) {#name, bit, help, td_cmd_##name},
    TD_COMMANDS(TD_COMMAND_ROW)
#undef TD_COMMAND_ROW
        {"bench serve", TD_FOR_BENCH_SERVE, "measure a running server under load",
         td_cmd_bench_serve},
    {"bench comm", TD_FOR_BENCH_COMM, "measure what the group's links and collectives reach",
     td_cmd_bench_comm},
    {"bench scale", TD_FOR_BENCH_SCALE, "measure how speed grows with ranks, and over links",
     td_cmd_bench_scale},
};

const struct td_command *td_command_table(size_t *n)
{
    *n = sizeof table / sizeof table[0];
    return table;
}

const struct td_command *td_command_find(const char *name)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

const struct td_command *td_command_match(int argc, char **argv, int *n_words)
{
    char two[32];

    if (argc > 1 && (size_t)snprintf(two, sizeof two, "%s %s", argv[0], argv[1]) < sizeof two &&
        td_command_find(two)) {
        *n_words = 2;
        return td_command_find(two);
    }
    *n_words = 1;
    return argc > 0 ? td_command_find(argv[0]) : NULL;
}

int td_command_report(const struct td_options *opts, const struct td_err *err)
{
    char text[sizeof err->cause + sizeof err->context + 4];

    fprintf(stderr, "tensord %s: %s\n", td_options_command_name(opts->command),
            td_err_format(err, text, sizeof text));
    return TD_EXIT_FAILURE;
}

/* Output that cannot be written (a full disk) is a failure too, however well the command went. */
static int finish(int status)
{
    if (fflush(stdout) != 0 || ferror(stdout)) {
        perror("tensord: cannot write the output");
        return status == TD_EXIT_OK ? TD_EXIT_FAILURE : status;
    }
    return status;
}

static bool asks_for_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

/* A misspelt variable would be ignored without a word. Only the first rank of an MPI job speaks. */
static void warn_unknown_env(char *const *envp)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *entry;
    size_t cursor = 0;

    if (rank && strcmp(rank, "0") != 0)
        return;
    while ((entry = td_options_unknown_env(envp, &cursor)) != NULL)
        fprintf(stderr, "tensord: warning: the variable %.*s names no option and is ignored\n",
                (int)strcspn(entry, "="), entry);
}

static int run(const struct td_command *command, int argc, char **argv, char *const *envp)
{
    struct td_options opts;
    struct td_err err;
    int status;

    if (asks_for_help(argc, argv)) {
        td_help_command(stdout, command);
        return TD_EXIT_OK;
    }
    if (td_options_parse(&opts, command->bit, argc, argv, envp, &err) != TD_OK) {
        char text[sizeof err.cause + sizeof err.context + 4];

        fprintf(stderr, "tensord %s: %s\nSee 'tensord %s --help'.\n", command->name,
                td_err_format(&err, text, sizeof text), command->name);
        return TD_EXIT_USAGE;
    }
    warn_unknown_env(envp);
    td_log_set_level(opts.verbose && !td_options_is_set(&opts, &opts.log_level)
                         ? TD_LOG_DEBUG
                         : (enum td_log_level)opts.log_level);
    td_comm_mpi_configure(opts.transport == TD_TRANSPORT_MPI, 0);
    status = command->run(&opts);
    td_options_deinit(&opts);
    return status;
}

/* `tensord help [COMMAND]` and the words that are no command. */
static int run_word(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    int n_words;

    if (strcmp(word, "help") == 0 && argc > 2) {
        const struct td_command *command = td_command_match(argc - 2, argv + 2, &n_words);

        if (command) {
            td_help_command(stdout, command);
            return TD_EXIT_OK;
        }
        word = argv[2];
    } else if (strcmp(word, "help") == 0 || strcmp(word, "--help") == 0 ||
               strcmp(word, "-h") == 0) {
        td_help_overview(stdout);
        return TD_EXIT_OK;
    } else if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        td_version_print(stdout);
        return TD_EXIT_OK;
    } else if (strcmp(word, TD_KEEPER_WORD) == 0 && argc == 3) { /* of a launch, not for people */
        return td_keeper_run(argv[2]) ? TD_EXIT_OK : TD_EXIT_USAGE;
    } else if (strcmp(word, "--help-markdown") == 0) {
        td_help_markdown(stdout);
        return TD_EXIT_OK;
    } else if (!*word) {
        td_help_overview(stderr);
        return TD_EXIT_USAGE;
    }
    fprintf(stderr, "tensord: unknown %s '%.80s'; 'tensord --help' lists the commands\n",
            word[0] == '-' ? "option" : "command", word);
    return TD_EXIT_USAGE;
}

int td_command_main(int argc, char **argv, char *const *envp)
{
    int n_words = 0;
    const struct td_command *command =
        argc > 1 ? td_command_match(argc - 1, argv + 1, &n_words) : NULL;

    return finish(command ? run(command, argc - 1 - n_words, argv + 1 + n_words, envp)
                          : run_word(argc, argv));
}
