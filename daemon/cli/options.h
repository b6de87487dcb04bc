/* Every option of every command: one table is the source of flags, TENSORD_* variables, YAML keys, --help and the
 * README. Filled once on the main thread, then read-only. Knows no command's code and opens nothing but --config and
 * --api-key-file. Values of secret options never reach an error text. */
#ifndef TD_DAEMON_CLI_OPTIONS_H
#define TD_DAEMON_CLI_OPTIONS_H

#include "kernels/base/arena.h"
#include "kernels/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Commands as bits, so that a row can name those it belongs to. td_options_command_name gives the word. */
enum td_option_command {
    TD_FOR_SERVE = 1 << 0,
    TD_FOR_WORKER = 1 << 1,
    TD_FOR_GENERATE = 1 << 2,
    TD_FOR_TOKENIZE = 1 << 3,
    TD_FOR_PERPLEXITY = 1 << 4,
    TD_FOR_PLAN = 1 << 5,
    TD_FOR_INSPECT = 1 << 6,
    TD_FOR_STATUS = 1 << 7,
    TD_FOR_CHAT = 1 << 8,
    TD_FOR_BENCH = 1 << 9,
    TD_FOR_QUANTIZE = 1 << 10,
    TD_FOR_BENCH_SERVE = 1 << 11,
    TD_FOR_DOCTOR = 1 << 12,
    TD_FOR_BENCH_COMM = 1 << 13,
    TD_FOR_BENCH_SCALE = 1 << 14,
    TD_FOR_DRAIN = 1 << 15,
    TD_FOR_ROLL = 1 << 16,
    TD_FOR_ALL = (1 << 17) - 1
};

/* Who set a value; a later one wins over an earlier one. */
enum td_option_source { TD_SOURCE_DEFAULT = 0, TD_SOURCE_CONFIG, TD_SOURCE_ENV, TD_SOURCE_FLAG };

/* The type says what the field behind `offset` is. */
enum td_option_type {
    TD_OPTION_STRING,  /* const char *, NULL when not set */
    TD_OPTION_LIST,    /* struct td_option_list */
    TD_OPTION_INT,     /* int64_t */
    TD_OPTION_FLOAT,   /* double */
    TD_OPTION_SIZE,    /* uint64_t bytes */
    TD_OPTION_FLAG,    /* bool */
    TD_OPTION_ENUM,    /* int, index into `values` */
    TD_OPTION_ENUMS,   /* struct td_option_enums, indices into `values` */
    TD_OPTION_ADDRESS, /* struct td_option_address */
    TD_OPTION_SHARES,  /* struct td_option_shares */
    TD_OPTION_IDS      /* struct td_option_ids */
};

struct td_option_list {
    const char **items; /* [n], each NUL-terminated */
    uint32_t n;
};

struct td_option_address {
    const char *host; /* name or address without brackets; NULL when not set */
    uint16_t port;
};

enum { TD_OPTION_MAX_ENUMS = 8 };
struct td_option_enums {
    uint32_t n; /* at least 1; above 1 only for the commands in the row's `several` */
    int value[TD_OPTION_MAX_ENUMS];
};

enum { TD_OPTION_MAX_INTS = 16 };
struct td_option_ints {
    uint32_t n; /* 0: not set */
    int64_t value[TD_OPTION_MAX_INTS];
};

enum { TD_OPTION_MAX_SHARES = 256 };
struct td_option_shares {
    uint32_t n; /* 0: not set */
    uint32_t share[TD_OPTION_MAX_SHARES];
};

struct td_option_ids {
    uint32_t *ids; /* [n] */
    uint32_t n;
};

enum td_option_kv_dtype {
    TD_KV_DTYPE_AUTO,
    TD_KV_DTYPE_F32,
    TD_KV_DTYPE_BF16,
    TD_KV_DTYPE_FP16,
    TD_KV_DTYPE_FP8,
    TD_KV_DTYPE_Q8_0,
    TD_KV_DTYPE_Q4_0
};
enum td_option_isa {
    TD_ISA_AUTO,
    TD_ISA_REF,
    TD_ISA_AVX2,
    TD_ISA_AVX512,
    TD_ISA_AVX512BF16,
    TD_ISA_AVX512AMX
};
enum td_option_transport { TD_TRANSPORT_AUTO, TD_TRANSPORT_MPI };
enum td_option_fp8_scales { TD_FP8_SCALES_BLOCK, TD_FP8_SCALES_CHANNEL, TD_FP8_SCALES_TENSOR };
enum td_option_endpoint { TD_ENDPOINT_COMPLETIONS, TD_ENDPOINT_CHAT };
enum td_option_layout { TD_LAYOUT_TP, TD_LAYOUT_PP, TD_LAYOUT_TPXPP, TD_LAYOUT_ALL };
enum td_option_rule { TD_RULE_LLAMACPP, TD_RULE_ALL };

enum { TD_OPTIONS_MAX_ROWS = 192 };

/* One field per row of the table, named as the flag. All storage is owned by `arena`. */
struct td_options {
    unsigned command; /* one bit of enum td_option_command */
    struct td_arena arena;
    uint8_t source[TD_OPTIONS_MAX_ROWS]; /* enum td_option_source by row; ask td_options_source */

    /* model */
    const char *model;
    struct td_option_list served_model_name;
    int64_t max_model_len;                 /* tokens; 0: from the model */
    int dtype;                             /* 0: auto, the only one */
    struct td_option_enums kv_cache_dtype; /* enum td_option_kv_dtype */
    bool verify;

    /* placement */
    int64_t ranks;                /* 0: not said */
    int64_t tensor_parallel_size; /* 0: not said */
    int64_t pipeline_parallel_size;
    const char *hostfile;
    bool no_launch; /* wait for a group that somebody else starts */
    struct td_option_shares shares;
    int transport;                              /* enum td_option_transport */
    int sum_algorithm;                          /* enum td_sum_algorithm; one more: measure */
    int exchange_dtype;                         /* enum td_exchange_dtype */
    int overlap;                                /* enum td_overlap_mode */
    const char *device;                         /* "cpu", "cuda", "cuda:N" */
    int cuda_graphs;                            /* 1: on */
    int exact;                                  /* 1: on; a CPU always is */
    const char *cuda_plugin;                    /* NULL: the usual place */
    double gpu_memory_utilization;              /* share of what is free */
    int gpu_exchange;                           /* enum td_node_gpu_exchange */
    int gpu_sums;                               /* enum td_gpusums */
    const char *nccl_plugin;                    /* NULL: the usual place */
    int cpu_isa;                                /* enum td_option_isa */
    int64_t threads;                            /* per rank; 0: cores of the host / its ranks */
    uint64_t memory_bytes;                      /* cap per rank; 0: the machine's */
    uint64_t kv_cache_memory_bytes;             /* per rank; 0: what is left */
    double kv_offload_gib, kv_offload_path_gib; /* per rank; 0: none, or as the other says */
    const char *kv_offload_path;
    int64_t block_size; /* tokens per KV block */

    /* scheduling */
    int64_t max_num_seqs;
    int64_t max_num_batched_tokens;
    int64_t max_queue;
    int64_t max_concurrency_per_key;       /* 0: no limit */
    int64_t max_tokens_per_minute_per_key; /* 0: no limit */
    double request_timeout;                /* seconds; 0: none */
    double heartbeat_timeout;              /* seconds */
    const char *state_dir;                 /* NULL: chosen */
    const char *journal;                   /* NULL: chosen */
    bool no_journal;
    double journal_retention; /* seconds */
    int64_t max_step_stretch;
    int64_t speculative_tokens;
    const char *speculative_model; /* path of a draft model */
    bool no_prefix_cache;
    int64_t seed; /* valid when td_options_is_set(&seed) */

    /* network and security */
    const char *host;
    int64_t port;
    const char *control_host; /* NULL: not said */
    struct td_option_address coordinator;
    struct td_option_list api_key; /* with the keys of --api-key-file, which come last */
    uint32_t n_own_api_keys;       /* of those, the ones that no file gave */
    const char *api_key_file;
    const char *admin_key_file;   /* keys of operators */
    const char *cluster_key_file; /* "-": one line of standard input */
    const char *cluster_ssl_ca;   /* set: workers show certificates */
    const char *cluster_ssl_certfile;
    const char *cluster_ssl_keyfile;
    int64_t generation; /* which launch of the group a worker belongs to; 0: none of serve's */
    const char *ssl_certfile;
    const char *ssl_keyfile;
    bool insecure;
    int64_t max_connections;
    int64_t max_connections_per_address; /* 0: no limit */
    uint64_t max_header_bytes;
    uint64_t max_body_bytes;
    double header_timeout, body_timeout, idle_timeout, stall_timeout; /* seconds */
    const char *url;

    /* draining */
    double drain_timeout; /* seconds */
    double timeout;       /* seconds; 0: none */
    bool wait;
    bool cancel;

    /* generation */
    const char *prompt;
    const char *prompt_file;
    struct td_option_ids prompt_ids;
    bool chat;
    const char *once;
    int64_t max_tokens;
    double temperature;
    int64_t top_k;
    double top_p;
    double min_p;
    double repetition_penalty;
    double presence_penalty;
    double frequency_penalty;
    int64_t repeat_last_n;
    double typical_p;
    double top_n_sigma;
    double xtc_probability;
    double xtc_threshold;
    double dynatemp_range;
    double dynatemp_exponent;
    double dry_multiplier;
    double dry_base;
    int64_t dry_allowed_length;
    int64_t dry_penalty_last_n;
    struct td_option_list dry_sequence_breakers; /* none: the default ones */
    int64_t mirostat;
    double mirostat_tau;
    double mirostat_eta;
    struct td_option_list stop;
    int64_t logprobs; /* -1: none asked */
    bool ignore_eos;
    int64_t prefill_chunk; /* tokens; 0: --max-num-batched-tokens */

    /* text and measurement */
    const char *text;
    const char *file;
    bool add_bos;
    bool parse_special;
    int64_t context; /* tokens; 0: from the model */
    int rule;        /* enum td_option_rule */
    int64_t prompt_tokens;
    int64_t gen_tokens;
    int64_t batch;
    int64_t batch_depth;
    int64_t depth;
    bool predict;
    const char *cluster;
    struct td_option_list cases;
    int64_t repetitions;
    struct td_option_list sizes;      /* bytes (commset.h); empty: the usual ones */
    struct td_option_list operations; /* empty: all */

    /* sweeps: the rows of ranks, prompt_tokens and depth, where a command takes several values */
    struct td_option_ints sweep_ranks, sweep_prompt_tokens, sweep_depth;
    struct td_option_enums layouts; /* enum td_option_layout; n 0: not said */
    int64_t retries;
    double run_timeout; /* seconds */
    const char *netlab; /* a link's shapes (linkspec.h) */

    /* load */
    struct td_option_list concurrency;  /* whole numbers; empty: not said */
    struct td_option_list request_rate; /* numbers or "inf"; empty: not said */
    int64_t num_requests;               /* 0: not said */
    double duration;                    /* seconds; 0: not said */
    int64_t warmup_requests;
    const char *input_len;  /* a distribution (load.h) */
    const char *output_len; /* the same */
    double shared_prefix_share;
    int64_t prefix_groups;
    const char *trace;
    int endpoint; /* enum td_option_endpoint */
    const char *extra_body;
    struct td_option_list slo;
    const char *json_file;
    bool save_requests;
    const char *svg;

    /* quantisation */
    const char *output;
    int type;       /* index into td_options_types */
    int fp8_scales; /* enum td_option_fp8_scales */
    bool pure;
    bool force;

    /* general */
    const char *config;
    int log_level; /* enum td_log_level */
    bool json;
    bool verbose;
};

/* One row. Text fields are static. */
struct td_option {
    const char *name;       /* flag without dashes, YAML key; TENSORD_<NAME> with underscores */
    const char *short_name; /* "tp" for -tp, or NULL */
    const char *group;      /* heading in --help; NULL: as the row above */
    enum td_option_type type;
    size_t offset;     /* of the field in struct td_options */
    unsigned commands; /* enum td_option_command bits that take it */
    unsigned required; /* of these, those that refuse to run without it */
    const char *metavar;
    const char *preset;        /* default as a user would write it; NULL: none */
    const char *preset_note;   /* what no value means, for --help; NULL: nothing special */
    int64_t min, max;          /* INT, SIZE */
    double low, high;          /* FLOAT, both included */
    bool above_low;            /* FLOAT: `low` itself is refused */
    const char *const *values; /* ENUM, ENUMS, NULL-terminated */
    size_t sweep_offset;       /* INT: of the struct td_option_ints that takes the values of */
    unsigned sweeps;           /* these commands, several separated by commas, */
    int64_t sweep_min;         /* each from here to max */
    unsigned several;         /* ENUMS: the commands that take more than one, separated by commas */
    const char *refusal_note; /* said with what was expected; NULL: nothing */
    bool commas;              /* LIST: one value may hold several, separated by commas */
    bool secret;
    const char *help;
};

/* The table, in the order of --help. Returns its first row; *n_rows rows. */
const struct td_option *td_options_table(size_t *n_rows);
const char *td_options_command_name(unsigned command_bit);
extern const char *const td_options_types[]; /* of --type, NULL-terminated */
/* Of --kv-cache-dtype, NULL-terminated, by enum td_option_kv_dtype. */
extern const char *const td_options_kv_dtypes[];
/* "an integer from 0 to 65535": what a value of the row must be. Writes at most out_bytes. */
void td_options_expected(const struct td_option *row, char *out, size_t out_bytes);

/* Fills *opts for one command from argv[0 .. argc) (without program and command names), `envp` (NULL-terminated
 * "NAME=value", may be NULL) and --config: flags win over environment, over the file, over defaults. One argument
 * without dashes is taken as --model where the command has it, a second one as --output. Overwrites the values of secret flags in argv, so that a
 * process listing does not show them. On failure (TD_INVALID, TD_IO, TD_NO_MEMORY ...) *opts holds nothing. May read
 * two files. td_options_deinit frees. */
enum td_status td_options_parse(struct td_options *opts, unsigned command_bit, int argc,
                                char **argv, char *const *envp, struct td_err *err);
void td_options_deinit(struct td_options *opts);

/* Who set the field at `field` (an address inside *opts, as in td_options_source(o, &o->seed)). */
enum td_option_source td_options_source(const struct td_options *opts, const void *field);
bool td_options_is_set(const struct td_options *opts,
                       const void *field); /* by anyone but the default */

/* The word that stands for the value of an enumeration at `field`: "avx2" for &opts->cpu_isa. */
const char *td_options_word(const struct td_options *opts, const int *field);

/* True for 127.0.0.0/8, ::1 and "localhost". */
bool td_options_host_is_loopback(const char *host);

/* The nearest flag of any command to `name` (no dashes), or NULL when none is near. */
const char *td_options_nearest(const char *name);
/* The first TENSORD_* variable that names no option, from *cursor on (start with 0); NULL at the end. For warnings. */
const char *td_options_unknown_env(char *const *envp, size_t *cursor);

#endif
