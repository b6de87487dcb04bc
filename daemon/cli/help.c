#include "daemon/cli/help.h"

#include <string.h>

void td_help_overview(FILE *out)
{
    size_t n;
    const struct td_command *commands = td_command_table(&n);

    fputs("tensord " TD_VERSION ": serves one large language model from many processes\n\n"
          "usage: tensord COMMAND [options]\n\ncommands:\n",
          out);
    for (size_t i = 0; i < n; i++)
        fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].help);
    fputs("\n'tensord COMMAND --help' lists the options of one command, 'tensord --version' the "
          "versions of all parts.\nExit status: 0 done, 1 failed, 2 wrong usage.\n",
          out);
}

/* What a value must be and what none means, "(an integer from 0 to 65535; default 8000)". */
static void print_range(FILE *out, const struct td_option *row)
{
    char expected[160];

    td_options_expected(row, expected, sizeof expected);
    if (row->type != TD_OPTION_FLAG && row->type != TD_OPTION_STRING && row->type != TD_OPTION_LIST)
        fprintf(out, "        %s\n", expected);
    if (row->preset || row->preset_note)
        fprintf(out, "        default: %s\n", row->preset ? row->preset : row->preset_note);
}

static void print_option(FILE *out, const struct td_option *row)
{
    bool is_enum = row->type == TD_OPTION_ENUM || row->type == TD_OPTION_ENUMS;

    fputs("  ", out);
    if (row->short_name)
        fprintf(out, "-%s, ", row->short_name);
    fprintf(out, "--%s", row->name);
    if (is_enum)
        for (size_t i = 0; row->values[i]; i++)
            fprintf(out, "%c%s", i ? '|' : ' ', row->values[i]);
    else if (row->metavar)
        fprintf(out, " %s", row->metavar);
    fprintf(out, "\n        %s\n", row->help);
    if (!is_enum)
        print_range(out, row);
    else if (row->preset)
        fprintf(out, "        default: %s\n", row->preset);
}

void td_help_command(FILE *out, const struct td_command *command)
{
    size_t n;
    const struct td_option *rows = td_options_table(&n);
    const char *group = NULL, *printed = NULL;
    bool takes_model = (rows[0].commands & command->bit) != 0;

    fprintf(out, "tensord %s: %s\n\nusage: tensord %s%s%s [options]\n", command->name,
            command->help, command->name, takes_model ? " [MODEL]" : "",
            command->bit == TD_FOR_QUANTIZE ? " [OUTPUT]" : "");
    for (size_t i = 0; i < n; i++) {
        if (rows[i].group)
            group = rows[i].group;
        if (!(rows[i].commands & command->bit))
            continue;
        if (group != printed)
            fprintf(out, "\n%s:\n", group);
        printed = group;
        print_option(out, &rows[i]);
    }
    fputs("\nEvery option is also a variable (--max-num-seqs: TENSORD_MAX_NUM_SEQS) and a key of "
          "the YAML file of\n--config (max-num-seqs: 16). A flag wins over the variable, the "
          "variable over the file.\n",
          out);
}

/* '|' would end a cell. */
static void print_cell(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '|')
            fputc('\\', out);
        fputc(*text, out);
    }
}

static void print_row(FILE *out, const struct td_option *row)
{
    char expected[160];

    fprintf(out, "| `--%s`", row->name);
    if (row->short_name)
        fprintf(out, ", `-%s`", row->short_name);
    td_options_expected(row, expected, sizeof expected);
    fputs(" | ", out);
    print_cell(out, row->type == TD_OPTION_FLAG ? "flag" : expected);
    fputs(" | ", out);
    if (row->preset)
        fprintf(out, "`%s`", row->preset);
    else if (row->preset_note)
        print_cell(out, row->preset_note);
    fputs(" | ", out);
    if (row->commands == TD_FOR_ALL) {
        fputs("all", out);
    } else {
        const char *comma = "";

        for (unsigned bit = 1; bit <= TD_FOR_ALL; bit <<= 1) {
            if (!(row->commands & bit))
                continue;
            fprintf(out, "%s%s", comma, td_options_command_name(bit));
            comma = ", ";
        }
    }
    fputs(" | ", out);
    print_cell(out, row->help);
    fputs(" |\n", out);
}

void td_help_markdown(FILE *out)
{
    size_t n;
    const struct td_option *rows = td_options_table(&n);

    fputs("| Option | Value | Default | Commands | What it does |\n|---|---|---|---|---|\n", out);
    for (size_t i = 0; i < n; i++)
        print_row(out, &rows[i]);
}
