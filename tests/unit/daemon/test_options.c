#include "daemon/cli/options.h"
#include "tests/unit/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ARGS = 64 };

/* Splits `line` at blanks into writable arguments and parses them. */
static enum td_status parse_env(struct td_options *o, unsigned command, const char *line,
                                char *const *envp, struct td_err *err)
{
    static char copy[4096];
    char *argv[MAX_ARGS], *save = NULL;
    int argc = 0;

    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        assert_true(argc < MAX_ARGS);
        argv[argc++] = word;
    }
    memset(err, 0, sizeof *err);
    return td_options_parse(o, command, argc, argv, envp, err);
}

static enum td_status parse(struct td_options *o, unsigned command, const char *line,
                            struct td_err *err)
{
    return parse_env(o, command, line, NULL, err);
}

static void write_config(char path[32], const char *text)
{
    FILE *file;
    int fd;

    strcpy(path, "/tmp/td_options_XXXXXX");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    file = fdopen(fd, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void test_options_have_the_promised_defaults(void **state)
{
    struct td_options o;
    struct td_err err;

    (void)state;
    assert_int_equal(parse(&o, TD_FOR_SERVE, "--model m", &err), TD_OK);
    assert_string_equal(o.model, "m");
    assert_string_equal(o.host, "127.0.0.1");
    assert_int_equal(o.port, 8000);
    assert_int_equal(o.max_num_seqs, 16);
    assert_int_equal(o.max_num_batched_tokens, 512);
    assert_int_equal(o.max_queue, 256);
    assert_int_equal(o.block_size, 16);
    assert_int_equal(o.kv_cache_dtype.n, 1);
    assert_int_equal(o.kv_cache_dtype.value[0], TD_KV_DTYPE_AUTO);
    assert_int_equal(o.ranks, 0);
    assert_false(td_options_is_set(&o, &o.port));
    assert_false(td_options_is_set(&o, &o.seed));
    assert_true(td_options_source(&o, &o.model) == TD_SOURCE_FLAG);
    td_options_deinit(&o);
}

static void test_options_read_every_type(void **state)
{
    struct td_options o;
    struct td_err err;

    (void)state;
    assert_int_equal(
        parse(&o, TD_FOR_GENERATE,
              "-m=m -tp 2 -pp=3 -n 6 --shares 3:1:1 --kv-cache-memory-bytes 1.5GiB "
              "--memory-bytes 4096 --kv-cache-dtype BF16 --prompt-ids [1,2,3,300] "
              "--temperature 0.7 --top_p 0.9 --presence-penalty -1.5 --top-k -1 "
              "--repeat-last-n 64 --typical-p 0.5 --top-n-sigma -1 --xtc-probability 0.5 "
              "--dry-multiplier 0.8 --dry-sequence-breakers , --dry_sequence_breakers : "
              "--mirostat 2 --mirostat-tau 3 "
              "--stop a,b --stop c --seed 9223372036854775807 --ignore-eos --json",
              &err),
        TD_OK);
    assert_int_equal(o.tensor_parallel_size, 2);
    assert_int_equal(o.pipeline_parallel_size, 3);
    assert_int_equal(o.ranks, 6);
    assert_int_equal(o.shares.n, 3);
    assert_int_equal(o.shares.share[0], 3);
    assert_int_equal(o.shares.share[2], 1);
    assert_true(o.kv_cache_memory_bytes == 1610612736u);
    assert_true(o.memory_bytes == 4096);
    assert_int_equal(o.kv_cache_dtype.n, 1);
    assert_int_equal(o.kv_cache_dtype.value[0], TD_KV_DTYPE_BF16);
    assert_int_equal(o.prompt_ids.n, 4);
    assert_int_equal(o.prompt_ids.ids[3], 300);
    assert_true(o.temperature == 0.7 && o.top_p == 0.9 && o.presence_penalty == -1.5);
    assert_int_equal(o.top_k, -1);
    assert_true(o.repeat_last_n == 64 && o.typical_p == 0.5 && o.top_n_sigma == -1);
    assert_true(o.xtc_probability == 0.5 && o.xtc_threshold == 0.1);
    assert_true(o.dynatemp_range == 0 && o.dynatemp_exponent == 1);
    assert_true(o.dry_multiplier == 0.8 && o.dry_base == 1.75);
    assert_true(o.dry_allowed_length == 2 && o.dry_penalty_last_n == -1);
    assert_int_equal(o.dry_sequence_breakers.n, 2);
    assert_string_equal(o.dry_sequence_breakers.items[0], ",");
    assert_true(o.mirostat == 2 && o.mirostat_tau == 3 && o.mirostat_eta == 0.1);
    assert_int_equal(o.stop.n, 2); /* a stop text may hold a comma */
    assert_string_equal(o.stop.items[0], "a,b");
    assert_string_equal(o.stop.items[1], "c");
    assert_true(o.seed == INT64_MAX);
    assert_true(o.ignore_eos && o.json && !o.verbose);
    td_options_deinit(&o);

    assert_int_equal(parse(&o, TD_FOR_WORKER, "--coordinator [::1]:77 --no-verbose", &err), TD_OK);
    assert_string_equal(o.coordinator.host, "::1");
    assert_int_equal(o.coordinator.port, 77);
    td_options_deinit(&o);
}

static void test_options_take_several_numbers_where_a_command_sweeps(void **state)
{
    char *env[] = {(char[]){"TENSORD_DEPTH=0,1024"}, NULL};
    struct td_options o;
    struct td_err err;

    (void)state;
    if (parse_env(&o, TD_FOR_BENCH_SCALE, "m --ranks 1,2,4 --layouts pp,tpxpp", env, &err))
        fail_msg("%s", err.cause);
    assert_int_equal(o.sweep_ranks.n, 3);
    assert_int_equal(o.sweep_ranks.value[0], 1);
    assert_int_equal(o.sweep_ranks.value[2], 4);
    assert_int_equal(o.sweep_depth.n, 2);
    assert_int_equal(o.sweep_depth.value[0], 0);
    assert_int_equal(o.sweep_depth.value[1], 1024);
    assert_int_equal(o.sweep_prompt_tokens.n, 1); /* the default */
    assert_int_equal(o.sweep_prompt_tokens.value[0], 512);
    assert_true(td_options_is_set(&o, &o.ranks) && td_options_is_set(&o, &o.depth));
    assert_false(td_options_is_set(&o, &o.prompt_tokens));
    assert_int_equal(o.layouts.n, 2);
    assert_int_equal(o.layouts.value[1], TD_LAYOUT_TPXPP);
    td_options_deinit(&o);
    /* The same names are one number elsewhere. */
    assert_int_equal(parse(&o, TD_FOR_BENCH, "m --ranks 4", &err), TD_OK);
    assert_int_equal(o.ranks, 4);
    assert_int_equal(o.sweep_ranks.n, 0);
    td_options_deinit(&o);
}

static void test_options_read_long_id_lists(void **state)
{
    struct td_options o;
    struct td_err err;
    char argv0[] = "--prompt-ids", argv2[] = "--model=m";
    size_t len = 0, cap = 200000;
    char *text = malloc(cap);
    char *argv[] = {argv0, text, argv2};

    (void)state;
    assert_non_null(text);
    for (unsigned i = 0; i < 20000; i++)
        len += (size_t)snprintf(text + len, cap - len, "%u,", i);
    assert_int_equal(td_options_parse(&o, TD_FOR_GENERATE, 3, argv, NULL, &err), TD_OK);
    assert_int_equal(o.prompt_ids.n, 20000);
    for (unsigned i = 0; i < 20000; i++)
        assert_int_equal(o.prompt_ids.ids[i], i);
    td_options_deinit(&o);
    free(text);
}

static void test_options_flag_wins_over_environment_over_file_over_default(void **state)
{
    struct td_options o;
    struct td_err err;
    char path[32], line[128];
    char env1[] = "TENSORD_PORT=9002", env2[] = "TENSORD_MAX_NUM_SEQS=8", env3[] = "TENSORD_SEED=";
    char *envp[] = {env1, env2, env3, NULL};

    (void)state;
    write_config(path, "model: /from/file\nport: 9001\nmax_num_seqs: 4\nmax-queue: 7\n"
                       "api-key: [k1, k2]\nverify: yes\nshares: 2:1\n");
    snprintf(line, sizeof line, "--config %s --port 9003", path);
    assert_int_equal(parse_env(&o, TD_FOR_SERVE, line, envp, &err), TD_OK);
    assert_string_equal(o.model, "/from/file");
    assert_int_equal(o.port, 9003);
    assert_int_equal(o.max_num_seqs, 8);
    assert_int_equal(o.max_queue, 7);
    assert_int_equal(o.block_size, 16);
    assert_int_equal(o.api_key.n, 2);
    assert_int_equal(o.shares.n, 2);
    assert_true(o.verify);
    assert_true(td_options_source(&o, &o.port) == TD_SOURCE_FLAG);
    assert_true(td_options_source(&o, &o.max_num_seqs) == TD_SOURCE_ENV);
    assert_true(td_options_source(&o, &o.max_queue) == TD_SOURCE_CONFIG);
    assert_true(td_options_source(&o, &o.seed) == TD_SOURCE_DEFAULT); /* empty is as not set */
    td_options_deinit(&o);
    unlink(path);
}

static void test_options_lists_of_a_stronger_source_replace_weaker_ones(void **state)
{
    struct td_options o;
    struct td_err err;
    char path[32], line[128];
    char env1[] = "TENSORD_API_KEY=envkey", env2[1][64];
    char *envp[] = {env1, env2[0], NULL};

    (void)state;
    write_config(path, "api-key: filekey\nserved-model-name: [x]\n");
    snprintf(env2[0], sizeof env2[0], "TENSORD_CONFIG=%s", path);
    snprintf(line, sizeof line, "m --served-model-name a,b --served-model-name c");
    assert_int_equal(parse_env(&o, TD_FOR_SERVE, line, envp, &err), TD_OK);
    assert_int_equal(o.api_key.n, 0 + 1);
    assert_string_equal(o.api_key.items[0], "envkey");
    assert_int_equal(o.served_model_name.n, 3);
    assert_string_equal(o.served_model_name.items[2], "c");
    td_options_deinit(&o);
    unlink(path);
}

static void test_options_add_the_keys_of_the_key_file(void **state)
{
    struct td_options o;
    struct td_err err;
    char path[32], line[128];

    (void)state;
    write_config(path, "# keys\nfile-key-1\nfile-key-2\n");
    snprintf(line, sizeof line, "m --api-key flag-key --api-key-file %s --host 0.0.0.0", path);
    assert_int_equal(parse(&o, TD_FOR_SERVE, line, &err), TD_OK);
    assert_int_equal(o.api_key.n, 3);
    assert_string_equal(o.api_key.items[0], "flag-key");
    assert_string_equal(o.api_key.items[2], "file-key-2");
    td_options_deinit(&o);
    unlink(path);
}

static void test_options_errors_name_flag_value_and_expectation(void **state)
{
    static const struct {
        unsigned command;
        const char *line, *says[3];
    } cases[] = {
        {TD_FOR_SERVE, "m --port 99999", {"--port", "'99999'", "from 0 to 65535"}},
        {TD_FOR_SERVE, "m --port 80x", {"--port", "'80x'", "an integer"}},
        {TD_FOR_SERVE, "m --port=", {"--port", "''", "an integer"}},
        {TD_FOR_SERVE, "m --port 0x50", {"--port", "'0x50'", "an integer"}},
        {TD_FOR_SERVE, "m -tp 0", {"-tp", "'0'", "from 1 to 256"}},
        {TD_FOR_SERVE, "m --seed 9223372036854775808", {"--seed", "9223372036854775808", "2^63"}},
        {TD_FOR_GENERATE, "m --prompt x --temperature nan", {"--temperature", "'nan'", "0 to 100"}},
        {TD_FOR_GENERATE, "m --prompt x --mirostat 3", {"--mirostat", "'3'", "from 0 to 2"}},
        {TD_FOR_GENERATE, "m --prompt x --dry-base 0.5", {"--dry-base", "'0.5'", "1 to 100"}},
        {TD_FOR_CHAT, "--repeat-last-n -2", {"--repeat-last-n", "'-2'", "from -1 to 1048576"}},
        {TD_FOR_GENERATE, "m --prompt x --top-p 0", {"--top-p", "'0'", "above 0 to 1"}},
        {TD_FOR_GENERATE, "m --prompt x --top-p 1e400", {"--top-p", "'1e400'", "above 0 to 1"}},
        {TD_FOR_SERVE,
         "m --kv-cache-dtype int8",
         {"--kv-cache-dtype", "'int8'", "auto, f32, bf16"}},
        {TD_FOR_PERPLEXITY,
         "m --file x --kv-cache-dtype auto,fp8_e5m2",
         {"'auto,fp8_e5m2'", "q4_0", "E5M2 is not built"}},
        {TD_FOR_PERPLEXITY, "m --file x --kv-cache-dtype auto,", {"'auto,'", "one of auto", ""}},
        {TD_FOR_PERPLEXITY,
         "m --file x --kv-cache-dtype f32,f32,f32,f32,f32,f32,f32,f32,f32",
         {"f32,f32", "one of auto", ""}},
        {TD_FOR_SERVE,
         "m --kv-cache-dtype auto,q8_0",
         {"--kv-cache-dtype", "2 values, 'serve' takes one", "for: perplexity"}},
        {TD_FOR_BENCH, "m --kv-cache-dtype q8_0,q4_0", {"2 values", "'bench' takes one", ""}},
        {TD_FOR_SERVE, "m --memory-bytes 5GB", {"--memory-bytes", "'5GB'", "KiB, MiB"}},
        {TD_FOR_SERVE, "m --memory-bytes 0", {"--memory-bytes", "'0'", "above 0"}},
        {TD_FOR_SERVE, "m --memory-bytes 99999999TiB", {"--memory-bytes", "99999999TiB", "bytes"}},
        {TD_FOR_SERVE, "m --shares 3::1", {"--shares", "'3::1'", "separated by ':'"}},
        {TD_FOR_SERVE, "m --shares 0:0", {"--shares", "'0:0'", "not all 0"}},
        {TD_FOR_GENERATE, "m --prompt-ids 1,x", {"--prompt-ids", "'1,x'", "token ids"}},
        {TD_FOR_GENERATE, "m --prompt-ids 4294967296", {"--prompt-ids", "token ids", "4294967295"}},
        {TD_FOR_WORKER, "--coordinator host", {"--coordinator", "'host'", "HOST:PORT"}},
        {TD_FOR_WORKER, "--coordinator ::1:80", {"--coordinator", "'::1:80'", "[IPV6]:PORT"}},
        {TD_FOR_WORKER, "--coordinator h:0", {"--coordinator", "'h:0'", "1 to 65535"}},
        {TD_FOR_SERVE, "m --verify=maybe", {"--verify", "'maybe'", "true or false"}},
        {TD_FOR_SERVE, "m --port", {"--port", "no value", "from 0 to 65535"}},
        {TD_FOR_SERVE, "m --host --port 1", {"--host", "no value", "--option=value"}},
        {TD_FOR_SERVE, "m --tensor-paralel-size 2", {"unknown option", "did you mean", "parallel"}},
        {TD_FOR_SERVE, "m --prot 2", {"unknown option '--prot'", "did you mean", "--port"}},
        {TD_FOR_SERVE, "m --zzzzzz 2", {"unknown option '--zzzzzz'", "", ""}},
        {TD_FOR_SERVE, "m -x", {"unknown option '-x'", "", ""}},
        {TD_FOR_SERVE, "m --prompt x", {"--prompt is no option of 'serve'", "generate", ""}},
        {TD_FOR_SERVE, "m n", {"takes no argument 'n'", "", ""}},
        {TD_FOR_SERVE, "", {"'serve' needs --model", "", ""}},
        {TD_FOR_WORKER, "", {"'worker' needs --coordinator", "", ""}},
        {TD_FOR_GENERATE, "m", {"one of --prompt", "got 0", ""}},
        {TD_FOR_GENERATE, "m --prompt a --prompt-ids 1", {"one of --prompt", "got 2", ""}},
        {TD_FOR_SERVE, "m --ssl-keyfile k", {"go together", "only --ssl-keyfile", ""}},
        {TD_FOR_SERVE, "m --host 0.0.0.0", {"--host 0.0.0.0", "--api-key", "--insecure"}},
        {TD_FOR_BENCH, "m --ranks 1,2", {"--ranks", "'1,2'", "an integer from 1 to 256"}},
        {TD_FOR_BENCH, "m --depth 0", {"--depth", "'0'", "an integer from 1"}},
        {TD_FOR_BENCH_SCALE, "m --ranks 1,,2", {"--ranks", "'1,,2'", "separated by commas"}},
        {TD_FOR_BENCH_SCALE, "m --ranks 257", {"--ranks", "'257'", "integers from 1 to 256"}},
        {TD_FOR_BENCH_SCALE, "m --ranks", {"--ranks", "no value", "separated by commas"}},
        {TD_FOR_BENCH_SCALE,
         "m --ranks 1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
         {"--ranks", "at most 16", ""}},
        {TD_FOR_BENCH_SCALE, "m --layouts dp", {"--layouts", "'dp'", "tp, pp, tpxpp, all"}},
        {TD_FOR_SERVE, "m --config /nonexistent", {"--config", "'/nonexistent'", ""}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct td_options o;
        struct td_err err;
        enum td_status status = parse(&o, cases[i].command, cases[i].line, &err);

        if (status == TD_OK)
            fail_msg("'%s' was accepted", cases[i].line);
        for (size_t k = 0; k < 3; k++)
            if (!strstr(err.cause, cases[i].says[k]))
                fail_msg("'%s': error '%s' does not say '%s'", cases[i].line, err.cause,
                         cases[i].says[k]);
    }
}

static void test_options_errors_name_the_variable_or_the_line_of_the_file(void **state)
{
    struct td_options o;
    struct td_err err;
    char path[32], line[64], env1[] = "TENSORD_MAX_NUM_SEQS=many";
    char *envp[] = {env1, NULL};

    (void)state;
    assert_int_equal(parse_env(&o, TD_FOR_SERVE, "m", envp, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "TENSORD_MAX_NUM_SEQS: got 'many'"));

    write_config(path, "model: m\nport: high\n");
    snprintf(line, sizeof line, "--config %s", path);
    assert_int_equal(parse(&o, TD_FOR_SERVE, line, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "line 2: port: got 'high', expected an integer"));
    unlink(path);

    write_config(path, "model: m\n\nprot: 1\n");
    snprintf(line, sizeof line, "--config %s", path);
    assert_int_equal(parse(&o, TD_FOR_SERVE, line, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "line 3: prot is no option"));
    assert_non_null(strstr(err.cause, "did you mean port?"));
    unlink(path);

    write_config(path, "config: other.yaml\n");
    snprintf(line, sizeof line, "--config %s", path);
    assert_int_equal(parse(&o, TD_FOR_SERVE, line, &err), TD_INVALID);
    unlink(path);
}

static void test_options_never_show_a_key(void **state)
{
    struct td_options o;
    struct td_err err;
    char path[32], line[128], env1[] = "TENSORD_API_KEY=se cret";
    char a0[] = "m", a1[] = "--api-key", a2[] = "secret-key", a3[] = "secret-two";
    char *argv[] = {a0, a1, a2, a3}, *envp[] = {env1, NULL};

    (void)state;
    assert_int_equal(td_options_parse(&o, TD_FOR_SERVE, 4, argv, NULL, &err), TD_INVALID);
    assert_null(strstr(err.cause, "secret"));
    assert_string_equal(a2, "xxxxxxxxxx");
    assert_int_equal(parse(&o, TD_FOR_SERVE, "m --api-key=,secret", &err), TD_INVALID);
    assert_null(strstr(err.cause, "secret"));
    assert_int_equal(parse_env(&o, TD_FOR_SERVE, "m", envp, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "TENSORD_API_KEY"));
    assert_null(strstr(err.cause, "se cret"));
    write_config(path, "model: m\napi-key: \"secret\\tkey\"\n");
    snprintf(line, sizeof line, "--config %s", path);
    assert_int_equal(parse(&o, TD_FOR_SERVE, line, &err), TD_INVALID);
    assert_null(strstr(err.cause, "secret"));
    unlink(path);
    assert_int_equal(parse(&o, TD_FOR_SERVE, "m --api-kez=secret", &err), TD_INVALID);
    assert_null(strstr(err.cause, "secret"));
}

static void test_options_ignore_variables_of_other_commands(void **state)
{
    struct td_options o;
    struct td_err err;
    char env1[] = "TENSORD_FILE=x", env2[] = "TENSORD_MAX_TOKENS=bad";
    char *envp[] = {env1, env2, NULL};

    (void)state;
    assert_int_equal(parse_env(&o, TD_FOR_SERVE, "m", envp, &err), TD_OK);
    assert_null(o.file);
    td_options_deinit(&o);
}

static void test_options_find_variables_that_name_no_option(void **state)
{
    char env1[] = "TENSORD_MAX_NUM_SEQS=1", env2[] = "TENSORD_MAX_NUM_SEQ=1", env3[] = "HOME=/",
         env4[] = "TENSORD_=2";
    char *envp[] = {env1, env2, env3, env4, NULL};
    size_t cursor = 0;

    (void)state;
    assert_ptr_equal(td_options_unknown_env(envp, &cursor), env2);
    assert_ptr_equal(td_options_unknown_env(envp, &cursor), env4);
    assert_null(td_options_unknown_env(envp, &cursor));
}

static void test_options_end_at_two_dashes(void **state)
{
    struct td_options o;
    struct td_err err;

    (void)state;
    assert_int_equal(parse(&o, TD_FOR_INSPECT, "--json -- --odd-model-name", &err), TD_OK);
    assert_string_equal(o.model, "--odd-model-name");
    assert_true(o.json);
    td_options_deinit(&o);
}

static void test_options_table_is_consistent(void **state)
{
    size_t n;
    const struct td_option *rows = td_options_table(&n);

    (void)state;
    assert_non_null(rows[0].group);
    for (size_t i = 0; i < n; i++) {
        char expected[160];

        assert_non_null(rows[i].help);
        assert_true(rows[i].commands != 0 && (rows[i].required & ~rows[i].commands) == 0);
        assert_true(rows[i].type == TD_OPTION_FLAG || rows[i].type == TD_OPTION_ENUM ||
                    rows[i].type == TD_OPTION_ENUMS || rows[i].metavar);
        td_options_expected(&rows[i], expected, sizeof expected);
        assert_true(strlen(expected) > 0);
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(rows[i].name, rows[j].name);
            assert_int_not_equal(rows[i].offset, rows[j].offset);
            if (rows[i].short_name && rows[j].short_name)
                assert_string_not_equal(rows[i].short_name, rows[j].short_name);
        }
    }
}

static void test_options_know_loopback(void **state)
{
    (void)state;
    assert_true(td_options_host_is_loopback("127.0.0.1"));
    assert_true(td_options_host_is_loopback("127.8.8.8"));
    assert_true(td_options_host_is_loopback("::1"));
    assert_true(td_options_host_is_loopback("localhost"));
    assert_false(td_options_host_is_loopback("0.0.0.0"));
    assert_false(td_options_host_is_loopback("::"));
    assert_false(td_options_host_is_loopback("127.evil.example"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_have_the_promised_defaults),
        cmocka_unit_test(test_options_read_every_type),
        cmocka_unit_test(test_options_take_several_numbers_where_a_command_sweeps),
        cmocka_unit_test(test_options_read_long_id_lists),
        cmocka_unit_test(test_options_flag_wins_over_environment_over_file_over_default),
        cmocka_unit_test(test_options_lists_of_a_stronger_source_replace_weaker_ones),
        cmocka_unit_test(test_options_add_the_keys_of_the_key_file),
        cmocka_unit_test(test_options_errors_name_flag_value_and_expectation),
        cmocka_unit_test(test_options_errors_name_the_variable_or_the_line_of_the_file),
        cmocka_unit_test(test_options_never_show_a_key),
        cmocka_unit_test(test_options_ignore_variables_of_other_commands),
        cmocka_unit_test(test_options_find_variables_that_name_no_option),
        cmocka_unit_test(test_options_end_at_two_dashes),
        cmocka_unit_test(test_options_table_is_consistent),
        cmocka_unit_test(test_options_know_loopback),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
