#include "daemon/cli/options.h"

#define AT(field) offsetof(struct td_options, field)

/* Groups of commands that share rows. */
enum {
    GROUP = TD_FOR_SERVE | TD_FOR_GENERATE | TD_FOR_PERPLEXITY |
            TD_FOR_BENCH, /* run the model on a group of ranks */
    LAYOUT = GROUP | TD_FOR_PLAN,
    READERS = LAYOUT | TD_FOR_TOKENIZE | TD_FOR_INSPECT | TD_FOR_QUANTIZE,
    CLIENTS = TD_FOR_STATUS | TD_FOR_CHAT | TD_FOR_DRAIN | TD_FOR_ROLL,
    SAMPLERS = TD_FOR_GENERATE | TD_FOR_CHAT,
    LOAD = TD_FOR_BENCH_SERVE,
    SPEED = TD_FOR_BENCH | TD_FOR_PLAN,
    SCALE = TD_FOR_BENCH_SCALE
};

#define SWEEP(field, least) .sweeps = SCALE, .sweep_offset = AT(sweep_##field), .sweep_min = (least)

static const char *const dtypes[] = {"auto", NULL};
static const char *const isas[] = {"auto",       "ref",       "avx2", "avx512",
                                   "avx512bf16", "avx512amx", NULL};
static const char *const transports[] = {"auto", "mpi", NULL};
static const char *const sum_algorithms[] = {
    "auto",  "one-shot",         "two-shot",       "doubling", "leaders",
    "lanes", "leaders-doubling", "lanes-doubling", "measure",  NULL};
static const char *const exchange_dtypes[] = {"f32", "bf16", "q8_0", NULL};
static const char *const overlaps[] = {"auto", "on", "off", NULL};
static const char *const switches[] = {"off", "on", NULL};
static const char *const gpu_exchanges[] = {"auto", "nccl", "host", NULL};
static const char *const gpu_sums[] = {"auto", "peer", "nccl", NULL};
static const char *const layouts[] = {"tp", "pp", "tpxpp", "all", NULL};
static const char *const rules[] = {"llamacpp", "all", NULL};
static const char *const endpoints[] = {"completions", "chat", NULL};
static const char *const log_levels[] = {"error", "warning", "info", "debug", NULL};

static const char *const fp8_scales[] = {"block", "channel", "tensor", NULL};
const char *const td_options_kv_dtypes[] = {"auto", "f32",  "bf16", "fp16",
                                            "fp8",  "q8_0", "q4_0", NULL};
const char *const td_options_types[] = {"q4_0",  "q4_1",    "q5_0", "q5_1", "q8_0",   "q2_k",
                                        "q3_k",  "q4_k",    "q5_k", "q6_k", "iq4_nl", "iq4_xs",
                                        "mxfp4", "f8_e4m3", "bf16", "f16",  "f32",    NULL};

static const struct td_option table[] = {
    {"model", "m", "Model", TD_OPTION_STRING, AT(model), READERS | LOAD | SCALE | TD_FOR_DOCTOR,
     .required = READERS | SCALE, .metavar = "PATH",
     .help = "Hugging Face directory or GGUF file; may also be given without the flag; of bench "
             "serve: the "
             "name that the server is asked for, else its first; of doctor: compared on all ranks"},
    {"served-model-name", NULL, NULL, TD_OPTION_LIST, AT(served_model_name), TD_FOR_SERVE,
     .metavar = "NAME", .commas = true, .preset_note = "the last part of --model",
     .help = "name that clients ask for; repeat or separate by commas, the first is the one in "
             "answers"},
    {"max-model-len", NULL, NULL, TD_OPTION_INT, AT(max_model_len), LAYOUT, .metavar = "TOKENS",
     .min = 1, .max = INT32_MAX, .preset_note = "what the model has and memory holds",
     .help = "longest sequence, prompt and answer together"},
    {"dtype", NULL, NULL, TD_OPTION_ENUM, AT(dtype), LAYOUT, .values = dtypes, .preset = "auto",
     .help = "weights are used as they are stored"},
    {"kv-cache-dtype", NULL, NULL, TD_OPTION_ENUMS, AT(kv_cache_dtype), LAYOUT | SCALE,
     .values = td_options_kv_dtypes, .several = TD_FOR_PERPLEXITY, .preset = "auto",
     .refusal_note = "of which fp8 is E4M3; E5M2 is not built",
     .help = "element type of keys and values in the cache (fp8: E4M3, no scale); perplexity takes "
             "several, separated by commas, and compares them"},
    {"verify", NULL, NULL, TD_OPTION_FLAG, AT(verify), GROUP | TD_FOR_INSPECT | TD_FOR_DOCTOR,
     .help = "hash every byte of the model instead of samples"},

    {"ranks", "n", "Placement", TD_OPTION_INT, AT(ranks), LAYOUT | SCALE | TD_FOR_DOCTOR,
     .metavar = "N", .min = 1, .max = 256, SWEEP(ranks, 1),
     .preset_note = "the MPI job's size, else tensor times pipeline parallel size; of bench scale: "
                    "1, 2, 4 .. up to the host's cores",
     .help = "ranks of the group; serve, doctor and bench scale launch them with mpirun, and bench "
             "scale takes several counts, separated by commas"},
    {"tensor-parallel-size", "tp", NULL, TD_OPTION_INT, AT(tensor_parallel_size), LAYOUT,
     .metavar = "N", .min = 1, .max = 256, .preset_note = "ranks / pipeline parallel size",
     .help = "ranks that share every layer"},
    {"pipeline-parallel-size", "pp", NULL, TD_OPTION_INT, AT(pipeline_parallel_size), LAYOUT,
     .metavar = "N", .min = 1, .max = 256, .preset_note = "1, or ranks / tensor parallel size",
     .help = "stages that the layers are cut into"},
    {"hostfile", NULL, NULL, TD_OPTION_STRING, AT(hostfile), TD_FOR_SERVE | SCALE | TD_FOR_DOCTOR,
     .metavar = "PATH", .help = "hosts for mpirun, one per line, as Open MPI reads them"},
    {"no-launch", NULL, NULL, TD_OPTION_FLAG, AT(no_launch), TD_FOR_SERVE,
     .help = "start no workers: wait for a group that dials in (mpirun ... tensord worker)"},
    {"shares", NULL, NULL, TD_OPTION_SHARES, AT(shares), LAYOUT, .metavar = "3:1:1",
     .preset_note = "by each rank's memory",
     .help = "relative size of each rank's part, rank 0 first"},
    {"transport", NULL, NULL, TD_OPTION_ENUM, AT(transport),
     GROUP | SCALE | TD_FOR_WORKER | TD_FOR_DOCTOR, .values = transports, .preset = "auto",
     .help = "how ranks of one host exchange data; auto: through shared memory; mpi: by messages, "
             "as hosts do"},
    {"sum-algorithm", NULL, NULL, TD_OPTION_ENUM, AT(sum_algorithm), GROUP | SCALE | TD_FOR_WORKER,
     .values = sum_algorithms, .preset = "auto",
     .help =
         "how tensor-parallel sums travel, with the same bits; auto: what was fastest when tried "
         "at the first start on these hosts, where every thread has a core; measure: try anew"},
    {"exchange-dtype", NULL, NULL, TD_OPTION_ENUM, AT(exchange_dtype),
     GROUP | SCALE | TD_FOR_WORKER, .values = exchange_dtypes, .preset = "f32",
     .help =
         "what sums are on their way between hosts; f32 is exact, with the others answers depend "
         "on the layout"},
    {"overlap", NULL, NULL, TD_OPTION_ENUM, AT(overlap), GROUP | SCALE | TD_FOR_WORKER,
     .values = overlaps, .preset = "auto",
     .help = "compute a step in two or four parts, so that the sums of one travel while others are "
             "computed, with the same bits; auto: where ranks exchange messages, for steps of 64 "
             "rows and more, as was fastest when tried; on: every step of two rows and more"},
    {"device", NULL, NULL, TD_OPTION_STRING, AT(device),
     GROUP | SCALE | TD_FOR_WORKER | TD_FOR_PLAN, .metavar = "DEVICE", .preset = "cpu",
     .help = "what ranks compute on: cpu; cuda, where the ranks of a host take its GPUs by turns; "
             "cuda:N for "
             "the GPU of that number"},
    {"gpu-memory-utilization", NULL, NULL, TD_OPTION_FLOAT, AT(gpu_memory_utilization),
     GROUP | SCALE | TD_FOR_WORKER, .metavar = "SHARE", .low = 0.01, .high = 1, .preset = "0.9",
     .help = "share of a GPU's free memory that its ranks may use"},
    {"cuda-graphs", NULL, NULL, TD_OPTION_ENUM, AT(cuda_graphs), GROUP | SCALE | TD_FOR_WORKER,
     .values = switches, .preset = "on",
     .help = "a step of up to 64 rows on a GPU is recorded as a graph, and begun by one call when "
             "its like "
             "comes again; not where ranks exchange through the host's memory inside of layers, "
             "nor where "
             "their slices are uneven or one has a draft model too"},
    {"exact", NULL, NULL, TD_OPTION_ENUM, AT(exact), GROUP | SCALE | TD_FOR_WORKER,
     .values = switches, .preset = "on",
     .help =
         "on GPUs, as always on CPUs: the same bits alone and in every batch, on any number of "
         "ranks, before and after a failure; off: NVIDIA's library (cuBLASLt) multiplies prompts "
         "of 256 rows and more, in an order of its own, of FP8 in eight bits, and their "
         "attention goes over the keys once"},
    {"cuda-plugin", NULL, NULL, TD_OPTION_STRING, AT(cuda_plugin), GROUP | SCALE | TD_FOR_WORKER,
     .metavar = "FILE", .preset_note = "libtensord_cuda.so beside the program or in its lib folder",
     .help = "the plug-in of --device cuda"},
    {"gpu-exchange", NULL, NULL, TD_OPTION_ENUM, AT(gpu_exchange), GROUP | SCALE | TD_FOR_WORKER,
     .values = gpu_exchanges, .preset = "auto",
     .help = "how ranks on GPUs exchange activations, with the same bits: nccl, from GPU to GPU; "
             "host, through the hosts' memory; auto: nccl where every rank has it and a GPU of its "
             "own"},
    {"gpu-sums", NULL, NULL, TD_OPTION_ENUM, AT(gpu_sums), GROUP | SCALE | TD_FOR_WORKER,
     .values = gpu_sums, .preset = "auto",
     .help = "with --gpu-exchange nccl, how tensor-parallel sums travel, with the same bits: peer, "
             "up to 512 KiB of a rank in one kernel, between GPUs of one host that read each "
             "other's memory; nccl; auto: peer up to the size at which it was faster when tried at "
             "the start"},
    {"nccl-plugin", NULL, NULL, TD_OPTION_STRING, AT(nccl_plugin), GROUP | SCALE | TD_FOR_WORKER,
     .metavar = "FILE", .preset_note = "tensord-nccl.so beside the program or in its lib folder",
     .help = "the plug-in of --gpu-exchange nccl, which opens libnccl.so.2"},
    {"cpu-isa", NULL, NULL, TD_OPTION_ENUM, AT(cpu_isa),
     GROUP | SCALE | TD_FOR_WORKER | TD_FOR_DOCTOR, .values = isas, .preset = "auto",
     .help = "instruction set of the CPU kernels; auto takes the best that all ranks have"},
    {"threads", NULL, NULL, TD_OPTION_INT, AT(threads),
     GROUP | SCALE | TD_FOR_WORKER | TD_FOR_QUANTIZE | TD_FOR_DOCTOR, .metavar = "N", .min = 0,
     .max = 1024, .preset = "0",
     .help = "compute threads per rank; 0: the host's cores divided by its ranks"},
    {"memory-bytes", NULL, NULL, TD_OPTION_SIZE, AT(memory_bytes), LAYOUT | TD_FOR_WORKER,
     .metavar = "SIZE", .min = 1, .max = INT64_MAX,
     .preset_note = "the machine's memory divided by its ranks",
     .help = "most memory a rank may use"},
    {"kv-cache-memory-bytes", NULL, NULL, TD_OPTION_SIZE, AT(kv_cache_memory_bytes), LAYOUT,
     .metavar = "SIZE", .min = 1, .max = INT64_MAX,
     .preset_note = "what the sequences asked for need",
     .help = "memory per rank for keys and values"},
    {"kv-offload-gib", NULL, NULL, TD_OPTION_FLOAT, AT(kv_offload_gib), TD_FOR_SERVE | TD_FOR_PLAN,
     .metavar = "GIB", .low = 0, .high = 1 << 20, .preset_note = "none",
     .help =
         "host memory per rank for KV blocks of the prefix cache that have no room beside those "
         "in use"},
    {"kv-offload-path", NULL, NULL, TD_OPTION_STRING, AT(kv_offload_path),
     TD_FOR_SERVE | TD_FOR_PLAN, .metavar = "DIR",
     .help =
         "folder of each host's own disk where a file takes those that have no room there either"},
    {"kv-offload-path-gib", NULL, NULL, TD_OPTION_FLOAT, AT(kv_offload_path_gib),
     TD_FOR_SERVE | TD_FOR_PLAN, .metavar = "GIB", .low = 0, .high = 1 << 20,
     .preset_note = "four times --kv-offload-gib", .help = "size of that file, per rank"},
    {"block-size", NULL, NULL, TD_OPTION_INT, AT(block_size), LAYOUT | SCALE, .metavar = "TOKENS",
     .min = 1, .max = 1024, .preset = "16", .help = "tokens per block of the KV cache"},

    {"max-num-seqs", NULL, "Scheduling", TD_OPTION_INT, AT(max_num_seqs), LAYOUT, .metavar = "N",
     .min = 1, .max = 65536, .preset = "16", .help = "sequences that run at the same time"},
    {"max-num-batched-tokens", NULL, NULL, TD_OPTION_INT, AT(max_num_batched_tokens),
     LAYOUT | SCALE, .metavar = "TOKENS", .min = 1, .max = 1 << 20, .preset = "512",
     .help = "tokens of one step, prompts and answers together"},
    {"max-queue", NULL, NULL, TD_OPTION_INT, AT(max_queue), TD_FOR_SERVE, .metavar = "N", .min = 0,
     .max = 1000000, .preset = "256",
     .help = "requests that may wait; one more is refused with 429"},
    {"max-concurrency-per-key", NULL, NULL, TD_OPTION_INT, AT(max_concurrency_per_key),
     TD_FOR_SERVE, .metavar = "N", .min = 0, .max = 1000000, .preset = "0",
     .help = "requests of one API key that may be open, waiting or running, every prompt of a list "
             "counted; 0: no limit; without keys for all clients together"},
    {"max-tokens-per-minute-per-key", NULL, NULL, TD_OPTION_INT, AT(max_tokens_per_minute_per_key),
     TD_FOR_SERVE, .metavar = "N", .min = 0, .max = INT32_MAX, .preset = "0",
     .help =
         "tokens of one API key, prompt and answer; a request counts as all that it may generate "
         "until it ends; 0: no limit"},
    {"request-timeout", NULL, NULL, TD_OPTION_FLOAT, AT(request_timeout), TD_FOR_SERVE | LOAD,
     .metavar = "SECONDS", .low = 0, .high = 86400, .preset_note = "none; of bench serve: 600",
     .help =
         "longest time from a request to the end of its answer, whatever its own timeout; 0: no "
         "limit"},
    {"heartbeat-timeout", NULL, NULL, TD_OPTION_FLOAT, AT(heartbeat_timeout), TD_FOR_SERVE,
     .metavar = "SECONDS", .low = 0.4, .high = 86400, .preset = "1",
     .help = "silence after which a rank counts as lost and its group is relaunched; a rank whose "
             "coordinator is silent for twice as long ends itself"},
    {"state-dir", NULL, NULL, TD_OPTION_STRING, AT(state_dir), TD_FOR_SERVE, .metavar = "PATH",
     .preset_note = "$XDG_STATE_HOME/tensord, or ~/.local/state/tensord",
     .help =
         "folder of what outlives the server: its journal, and reports on lost groups, the last 16 "
         "of them"},
    {"journal", NULL, NULL, TD_OPTION_STRING, AT(journal), TD_FOR_SERVE, .metavar = "PATH",
     .preset_note = "journal-PORT.db in --state-dir; none where --port is 0",
     .help = "file of accepted requests with what became of them, so that they go on after the "
             "server was killed and started again"},
    {"no-journal", NULL, NULL, TD_OPTION_FLAG, AT(no_journal), TD_FOR_SERVE,
     .help = "keep no journal: requests end with the process"},
    {"journal-retention", NULL, NULL, TD_OPTION_FLOAT, AT(journal_retention), TD_FOR_SERVE,
     .metavar = "SECONDS", .low = 0, .high = 31536000, .preset = "3600",
     .help = "how long the answer of an ended request is kept for a client that comes back"},
    {"speculative-tokens", NULL, NULL, TD_OPTION_INT, AT(speculative_tokens),
     TD_FOR_SERVE | TD_FOR_GENERATE, .metavar = "N", .min = 0, .max = 15,
     .preset_note = "0; with --speculative-model 4",
     .help = "most tokens that a step guesses ahead from what the text repeats; no answer changes"},
    {"speculative-model", NULL, NULL, TD_OPTION_STRING, AT(speculative_model),
     TD_FOR_SERVE | TD_FOR_GENERATE | TD_FOR_PLAN, .metavar = "PATH",
     .help = "small model of the same vocabulary that guesses instead, on rank 0"},
    {"max-step-stretch", NULL, NULL, TD_OPTION_INT, AT(max_step_stretch), TD_FOR_SERVE,
     .metavar = "PERCENT", .min = 0, .max = 100000, .preset = "60",
     .help =
         "how much longer a step of running answers may take for prompts beside them; 0: no limit"},
    {"no-prefix-cache", NULL, NULL, TD_OPTION_FLAG, AT(no_prefix_cache), TD_FOR_SERVE,
     .help = "compute every prompt anew, also where another began with the same tokens"},
    {"seed", NULL, NULL, TD_OPTION_INT, AT(seed), GROUP | TD_FOR_CHAT | LOAD, .metavar = "N",
     .min = 0, .max = INT64_MAX, .preset_note = "drawn anew; of bench serve: 0",
     .help =
         "seed of the draws for requests that bring none; of bench serve: of the load, equal seeds "
         "offer equal loads"},

    {"host", NULL, "Network and keys", TD_OPTION_STRING, AT(host), TD_FOR_SERVE,
     .metavar = "ADDRESS", .preset = "127.0.0.1",
     .help = "address that serves the APIs and the workers' control stream"},
    {"port", NULL, NULL, TD_OPTION_INT, AT(port), TD_FOR_SERVE, .metavar = "N", .min = 0,
     .max = 65535, .preset = "8000",
     .help = "port of --host and --control-host; 0 takes a free one"},
    {"control-host", NULL, NULL, TD_OPTION_STRING, AT(control_host), TD_FOR_SERVE,
     .metavar = "ADDRESS", .preset_note = "loopback, or the address that faces the hostfile",
     .help = "address that serves only the workers' control stream"},
    {"coordinator", NULL, NULL, TD_OPTION_ADDRESS, AT(coordinator), TD_FOR_WORKER,
     .required = TD_FOR_WORKER, .metavar = "HOST:PORT", .help = "where the coordinator listens"},
    {"api-key", NULL, NULL, TD_OPTION_LIST, AT(api_key), TD_FOR_SERVE | CLIENTS | LOAD,
     .metavar = "KEY", .commas = true, .secret = true,
     .help = "key that clients must send; repeat or separate by commas"},
    {"api-key-file", NULL, NULL, TD_OPTION_STRING, AT(api_key_file), TD_FOR_SERVE | CLIENTS | LOAD,
     .metavar = "PATH",
     .help = "file with one such key per line, as KEY or NAME:KEY; serve reads it again on SIGHUP"},
    {"admin-key-file", NULL, NULL, TD_OPTION_STRING, AT(admin_key_file), TD_FOR_SERVE,
     .metavar = "PATH", .preset_note = "operators' calls only without any keys, from this host",
     .help = "file with the keys of operators, in the same form: LoadModel, UnloadModel, Drain, "
             "Replace and Plan are for them alone"},
    {"cluster-key-file", NULL, NULL, TD_OPTION_STRING, AT(cluster_key_file),
     TD_FOR_SERVE | TD_FOR_WORKER, .metavar = "PATH", .preset_note = "one drawn per launch",
     .help = "file with the key that workers show to the coordinator; - reads it from rank 0's "
             "standard input"},
    {"cluster-ssl-ca", NULL, NULL, TD_OPTION_STRING, AT(cluster_ssl_ca),
     TD_FOR_SERVE | TD_FOR_WORKER, .metavar = "PATH",
     .help = "authority in PEM that signed the certificates of coordinator and workers: their "
             "control stream is mutual TLS, with a cluster key or without"},
    {"cluster-ssl-certfile", NULL, NULL, TD_OPTION_STRING, AT(cluster_ssl_certfile),
     TD_FOR_SERVE | TD_FOR_WORKER, .metavar = "PATH",
     .help = "certificate chain in PEM that this side shows; workers that serve launches show "
             "serve's own, at the same path on every host"},
    {"cluster-ssl-keyfile", NULL, NULL, TD_OPTION_STRING, AT(cluster_ssl_keyfile),
     TD_FOR_SERVE | TD_FOR_WORKER, .metavar = "PATH",
     .help = "private key of that certificate in PEM"},
    {"generation", NULL, NULL, TD_OPTION_INT, AT(generation), TD_FOR_WORKER, .metavar = "N",
     .min = 0, .max = UINT32_MAX, .preset = "0",
     .help = "which launch of the group this is; serve sets it"},
    {"ssl-certfile", NULL, NULL, TD_OPTION_STRING, AT(ssl_certfile), TD_FOR_SERVE | CLIENTS,
     .metavar = "PATH",
     .help =
         "certificate chain in PEM: what serve shows (TLS 1.3), what clients trust; serve reads "
         "it and its key again on SIGHUP"},
    {"ssl-keyfile", NULL, NULL, TD_OPTION_STRING, AT(ssl_keyfile), TD_FOR_SERVE, .metavar = "PATH",
     .help = "private key of that certificate in PEM"},
    {"insecure", NULL, NULL, TD_OPTION_FLAG, AT(insecure), TD_FOR_SERVE,
     .help = "allow a --host beyond loopback without a key"},
    {"max-connections", NULL, NULL, TD_OPTION_INT, AT(max_connections), TD_FOR_SERVE,
     .metavar = "N", .min = 1, .max = 1000000, .preset = "1024",
     .help = "connections of clients at once; more are refused (503)"},
    {"max-connections-per-address", NULL, NULL, TD_OPTION_INT, AT(max_connections_per_address),
     TD_FOR_SERVE, .metavar = "N", .min = 0, .max = 1000000, .preset = "0",
     .help = "of those from one IPv4 address or one IPv6 /64; more are refused (429); 0: no limit"},
    {"max-header-bytes", NULL, NULL, TD_OPTION_SIZE, AT(max_header_bytes), TD_FOR_SERVE,
     .metavar = "SIZE", .min = 1024, .max = 1 << 20, .preset = "32KiB",
     .help = "request line and headers (431 beyond it); there may be 100 headers"},
    {"max-body-bytes", NULL, NULL, TD_OPTION_SIZE, AT(max_body_bytes), TD_FOR_SERVE,
     .metavar = "SIZE", .min = 1024, .max = 1 << 30, .preset = "32MiB",
     .help = "body of a request (413 beyond it)"},
    {"header-timeout", NULL, NULL, TD_OPTION_FLOAT, AT(header_timeout), TD_FOR_SERVE,
     .metavar = "SECONDS", .low = 0.1, .high = 3600, .preset = "10",
     .help = "for a TLS handshake, and for a whole request head (408 beyond it)"},
    {"body-timeout", NULL, NULL, TD_OPTION_FLOAT, AT(body_timeout), TD_FOR_SERVE,
     .metavar = "SECONDS", .low = 0.1, .high = 86400, .preset = "300",
     .help = "for a whole request body, of which a tenth may pass in silence (408 beyond either)"},
    {"idle-timeout", NULL, NULL, TD_OPTION_FLOAT, AT(idle_timeout), TD_FOR_SERVE,
     .metavar = "SECONDS", .low = 0.1, .high = 86400, .preset = "75",
     .help = "how long a connection without a request stays open"},
    {"stall-timeout", NULL, NULL, TD_OPTION_FLOAT, AT(stall_timeout), TD_FOR_SERVE,
     .metavar = "SECONDS", .low = 0.1, .high = 3600, .preset = "30",
     .help = "how long a client may take no byte of what waits for it before it is cut off"},
    {"url", NULL, NULL, TD_OPTION_STRING, AT(url), CLIENTS | LOAD, .metavar = "URL",
     .preset = "http://127.0.0.1:8000", .help = "the running server"},
    {"drain-timeout", NULL, NULL, TD_OPTION_FLOAT, AT(drain_timeout), TD_FOR_SERVE,
     .metavar = "SECONDS", .low = 0, .high = 86400, .preset = "30",
     .help = "after SIGTERM or SIGINT: how long open requests have before the server ends them; a "
             "second signal ends them at once"},
    {"timeout", NULL, NULL, TD_OPTION_FLOAT, AT(timeout), TD_FOR_DRAIN | TD_FOR_ROLL,
     .metavar = "SECONDS", .low = 0, .high = 86400, .preset_note = "no limit; of roll: 30",
     .help = "how long open requests have before the server ends them, 0: no limit; of roll: how "
             "long they run on the old group before they go on with the new one"},
    {"wait", NULL, NULL, TD_OPTION_FLAG, AT(wait), TD_FOR_DRAIN | TD_FOR_ROLL,
     .help = "show what is open until nothing is; exits with 3 when the server ended requests; of "
             "roll: until the old group has gone"},
    {"cancel", NULL, NULL, TD_OPTION_FLAG, AT(cancel), TD_FOR_DRAIN,
     .help = "take the drain back: the server takes requests again"},

    {"prompt", NULL, "Generation", TD_OPTION_STRING, AT(prompt), TD_FOR_GENERATE, .metavar = "TEXT",
     .help = "text to go on from"},
    {"prompt-file", NULL, NULL, TD_OPTION_STRING, AT(prompt_file), TD_FOR_GENERATE,
     .metavar = "PATH", .help = "file with that text"},
    {"prompt-ids", NULL, NULL, TD_OPTION_IDS, AT(prompt_ids), TD_FOR_GENERATE, .metavar = "1,2,3",
     .help = "that text as token ids, used as they are"},
    {"chat", NULL, NULL, TD_OPTION_FLAG, AT(chat), TD_FOR_GENERATE,
     .help = "put the prompt as a user's message into the model's chat template"},
    {"once", NULL, NULL, TD_OPTION_STRING, AT(once), TD_FOR_CHAT, .metavar = "TEXT",
     .help = "ask this, print the answer, leave"},
    {"max-tokens", NULL, NULL, TD_OPTION_INT, AT(max_tokens), SAMPLERS, .metavar = "N", .min = 1,
     .max = INT32_MAX, .preset = "128", .help = "most tokens to generate"},
    {"temperature", NULL, NULL, TD_OPTION_FLOAT, AT(temperature), SAMPLERS | LOAD, .metavar = "X",
     .low = 0, .high = 100, .preset = "0", .help = "0 always takes the most likely token"},
    {"top-k", NULL, NULL, TD_OPTION_INT, AT(top_k), SAMPLERS, .metavar = "N", .min = -1,
     .max = INT32_MAX, .preset = "0", .help = "draw from the N most likely tokens; 0 or -1: all"},
    {"top-p", NULL, NULL, TD_OPTION_FLOAT, AT(top_p), SAMPLERS, .metavar = "X", .low = 0, .high = 1,
     .above_low = true, .preset = "1",
     .help = "draw from the most likely tokens that make up this probability"},
    {"min-p", NULL, NULL, TD_OPTION_FLOAT, AT(min_p), SAMPLERS, .metavar = "X", .low = 0, .high = 1,
     .preset = "0", .help = "drop tokens below this part of the best one's probability"},
    {"repetition-penalty", NULL, NULL, TD_OPTION_FLOAT, AT(repetition_penalty), SAMPLERS,
     .metavar = "X", .low = 0, .high = 100, .above_low = true, .preset = "1",
     .help = "above 1: tokens seen in prompt or answer become rarer"},
    {"presence-penalty", NULL, NULL, TD_OPTION_FLOAT, AT(presence_penalty), SAMPLERS,
     .metavar = "X", .low = -2, .high = 2, .preset = "0",
     .help = "taken off the logit of every token of the answer"},
    {"frequency-penalty", NULL, NULL, TD_OPTION_FLOAT, AT(frequency_penalty), SAMPLERS,
     .metavar = "X", .low = -2, .high = 2, .preset = "0",
     .help = "the same, times how often it occurred"},
    {"repeat-last-n", NULL, NULL, TD_OPTION_INT, AT(repeat_last_n), SAMPLERS, .metavar = "N",
     .min = -1, .max = 1 << 20, .preset = "-1",
     .help = "tokens that these three look back over; -1: all, 0: none"},
    {"typical-p", NULL, NULL, TD_OPTION_FLOAT, AT(typical_p), SAMPLERS, .metavar = "X", .low = 0,
     .high = 1, .above_low = true, .preset = "1",
     .help = "draw from the most typical tokens that make up this probability"},
    {"top-n-sigma", NULL, NULL, TD_OPTION_FLOAT, AT(top_n_sigma), SAMPLERS, .metavar = "X",
     .low = -1, .high = 100, .preset = "-1",
     .help = "drop tokens more than X standard deviations below the best logit; 0 or less: off"},
    {"xtc-probability", NULL, NULL, TD_OPTION_FLOAT, AT(xtc_probability), SAMPLERS, .metavar = "X",
     .low = 0, .high = 1, .preset = "0",
     .help = "how often all but the least likely of the likely tokens are dropped"},
    {"xtc-threshold", NULL, NULL, TD_OPTION_FLOAT, AT(xtc_threshold), SAMPLERS, .metavar = "X",
     .low = 0, .high = 1, .preset = "0.1", .help = "from which probability on they are likely"},
    {"dynatemp-range", NULL, NULL, TD_OPTION_FLOAT, AT(dynatemp_range), SAMPLERS, .metavar = "X",
     .low = 0, .high = 100, .preset = "0",
     .help = "the temperature moves by so much up and down with the entropy; 0: not"},
    {"dynatemp-exponent", NULL, NULL, TD_OPTION_FLOAT, AT(dynatemp_exponent), SAMPLERS,
     .metavar = "X", .low = 0, .high = 100, .preset = "1",
     .help = "how it moves: with this power of the entropy"},
    {"dry-multiplier", NULL, NULL, TD_OPTION_FLOAT, AT(dry_multiplier), SAMPLERS, .metavar = "X",
     .low = 0, .high = 100, .preset = "0",
     .help = "strength of DRY, which makes repeated sequences rarer; 0: off"},
    {"dry-base", NULL, NULL, TD_OPTION_FLOAT, AT(dry_base), SAMPLERS, .metavar = "X", .low = 1,
     .high = 100, .preset = "1.75", .help = "how fast DRY grows with the sequence's length"},
    {"dry-allowed-length", NULL, NULL, TD_OPTION_INT, AT(dry_allowed_length), SAMPLERS,
     .metavar = "N", .min = 1, .max = 1 << 20, .preset = "2",
     .help = "tokens that DRY lets repeat"},
    {"dry-penalty-last-n", NULL, NULL, TD_OPTION_INT, AT(dry_penalty_last_n), SAMPLERS,
     .metavar = "N", .min = -1, .max = 1 << 20, .preset = "-1",
     .help = "tokens that DRY looks back over; -1: all, 0: none"},
    {"dry-sequence-breakers", NULL, NULL, TD_OPTION_LIST, AT(dry_sequence_breakers), SAMPLERS,
     .metavar = "TEXT", .preset_note = "newline, colon, quotation mark and asterisk",
     .help = "text that ends a sequence for DRY; may be repeated; none: no text does"},
    {"mirostat", NULL, NULL, TD_OPTION_INT, AT(mirostat), SAMPLERS, .metavar = "N", .min = 0,
     .max = 2, .preset = "0",
     .help = "hold the surprise of the text with mirostat 1 or 2 in the place of all cuts; 0: off"},
    {"mirostat-tau", NULL, NULL, TD_OPTION_FLOAT, AT(mirostat_tau), SAMPLERS, .metavar = "X",
     .low = 0, .high = 100, .above_low = true, .preset = "5",
     .help = "surprise that it holds, in bits per token"},
    {"mirostat-eta", NULL, NULL, TD_OPTION_FLOAT, AT(mirostat_eta), SAMPLERS, .metavar = "X",
     .low = 0, .high = 10, .above_low = true, .preset = "0.1", .help = "how fast it does so"},
    {"stop", NULL, NULL, TD_OPTION_LIST, AT(stop), SAMPLERS, .metavar = "TEXT",
     .help = "end before this text; may be repeated"},
    {"logprobs", NULL, NULL, TD_OPTION_INT, AT(logprobs), TD_FOR_GENERATE, .metavar = "N",
     .min = -1, .max = 20, .preset = "-1",
     .help = "log probabilities of the N most likely tokens; 0: only of the one taken; -1: none"},
    {"ignore-eos", NULL, NULL, TD_OPTION_FLAG, AT(ignore_eos), TD_FOR_GENERATE | LOAD,
     .help = "go on past the end token"},
    {"prefill-chunk", NULL, NULL, TD_OPTION_INT, AT(prefill_chunk), LAYOUT, .metavar = "TOKENS",
     .min = 1, .max = 1 << 20, .preset_note = "--max-num-batched-tokens",
     .help = "prompt tokens of one sequence in one step"},

    {"text", NULL, "Text and measurement", TD_OPTION_STRING, AT(text), TD_FOR_TOKENIZE,
     .metavar = "TEXT", .help = "text to turn into ids"},
    {"file", NULL, NULL, TD_OPTION_STRING, AT(file), TD_FOR_TOKENIZE | TD_FOR_PERPLEXITY,
     .required = TD_FOR_PERPLEXITY, .metavar = "PATH", .help = "file with the text"},
    {"add-bos", NULL, NULL, TD_OPTION_FLAG, AT(add_bos), TD_FOR_TOKENIZE,
     .help = "put the model's begin token in front"},
    {"parse-special", NULL, NULL, TD_OPTION_FLAG, AT(parse_special), TD_FOR_TOKENIZE,
     .help = "read special tokens that the text spells out"},
    {"context", NULL, NULL, TD_OPTION_INT, AT(context), TD_FOR_PERPLEXITY, .metavar = "TOKENS",
     .min = 2, .max = INT32_MAX, .preset_note = "the model's, at most 512",
     .help = "tokens per window"},
    {"rule", NULL, NULL, TD_OPTION_ENUM, AT(rule), TD_FOR_PERPLEXITY, .values = rules,
     .preset = "llamacpp",
     .help = "which tokens of a window count: its second half, or all but the first"},
    {"prompt-tokens", NULL, NULL, TD_OPTION_INT, AT(prompt_tokens), SPEED | SCALE, .metavar = "N",
     .min = 1, .max = 1 << 20, .preset = "512", SWEEP(prompt_tokens, 1),
     .help = "length of the prompt that is measured or predicted; of bench scale several, "
             "separated by commas"},
    {"predict", NULL, NULL, TD_OPTION_FLAG, AT(predict), TD_FOR_PLAN,
     .help =
         "the speed of every layout of --ranks ranks and fewer, and which to take; measures this "
         "machine for about a second, or takes --cluster"},
    {"cluster", NULL, NULL, TD_OPTION_STRING, AT(cluster), TD_FOR_PLAN, .metavar = "FILE",
     .help = "YAML file of machines that are not here, for --predict (deploy/clusters/)"},
    {"gen-tokens", NULL, NULL, TD_OPTION_INT, AT(gen_tokens), TD_FOR_BENCH | SCALE, .metavar = "N",
     .min = 1, .max = 1 << 20, .preset = "64",
     .help = "decode steps of a repetition: tokens after the prompt, per sequence of a batch"},
    {"batch", NULL, NULL, TD_OPTION_INT, AT(batch), SPEED, .metavar = "N", .min = 1, .max = 65536,
     .preset = "16", .help = "sequences of the batched decode"},
    {"batch-depth", NULL, NULL, TD_OPTION_INT, AT(batch_depth), TD_FOR_BENCH, .metavar = "N",
     .min = 1, .max = 1 << 24, .preset = "32",
     .help =
         "tokens that stand before the decode of each sequence of the batch, run as prompts once"},
    {"depth", NULL, NULL, TD_OPTION_INT, AT(depth), SPEED | SCALE, .metavar = "N", .min = 1,
     .max = 1 << 24, .preset = "4096", SWEEP(depth, 0),
     .help = "tokens that stand before the decode at a depth; bench runs them as a prompt once; of "
             "bench scale (unless set 0) several, separated by commas, where 0 decodes behind the "
             "prompt"},
    {"cases", NULL, NULL, TD_OPTION_LIST, AT(cases), TD_FOR_BENCH, .metavar = "LIST",
     .commas = true, .preset_note = "all",
     .help = "what is measured, separated by commas: decode, prefill, batch, depth, load, first"},
    {"repetitions", NULL, NULL, TD_OPTION_INT, AT(repetitions),
     TD_FOR_BENCH | SCALE | TD_FOR_BENCH_COMM, .metavar = "N", .min = 1, .max = 1000, .preset = "5",
     .help = "runs of each case, of which best and median are shown; of bench comm: rounds of each "
             "contender (10, where ranks share cores 4)"},
    {"operations", NULL, NULL, TD_OPTION_LIST, AT(operations), TD_FOR_BENCH_COMM, .metavar = "LIST",
     .commas = true, .preset_note = "all",
     .help = "what is measured, separated by commas: tree_sum, bcast, all_gather, sendrecv, "
             "barrier"},
    {"sizes", NULL, NULL, TD_OPTION_LIST, AT(sizes), TD_FOR_BENCH_COMM, .metavar = "LIST",
     .commas = true, .preset_note = "8,8K,64K,1M,16M",
     .help = "bytes of a message or a sum of each rank, multiples of 4, separated by commas; K, M "
             "and G are powers of 1024"},
    {"layouts", NULL, NULL, TD_OPTION_ENUMS, AT(layouts), SCALE, .values = layouts,
     .several = SCALE, .preset_note = "all; with --netlab tp",
     .help = "which layouts of each count of ranks, separated by commas: tensor parallel, pipeline "
             "parallel, all mixtures of both"},
    {"retries", NULL, NULL, TD_OPTION_INT, AT(retries), SCALE, .metavar = "N", .min = 0, .max = 10,
     .preset = "2",
     .help =
         "how often a point is measured again whose memory probes before and after it differ by "
         "more than 5 %"},
    {"run-timeout", NULL, NULL, TD_OPTION_FLOAT, AT(run_timeout), SCALE, .metavar = "SECONDS",
     .low = 0, .high = 86400, .above_low = true, .preset = "1800",
     .help = "longest time of one measurement with its mpirun, which is ended whole then"},
    {"netlab", NULL, NULL, TD_OPTION_STRING, AT(netlab), SCALE,
     .metavar = "delay=0,50us,1ms;rate=0,1gbit",
     .help = "ranks on hosts of their own (deploy/netlab; Linux, as root), over links of each of "
             "these one-way delays and rates; 0: as the machine is"},

    {"concurrency", NULL, "Load", TD_OPTION_LIST, AT(concurrency), LOAD, .metavar = "N[,N...]",
     .commas = true, .preset_note = "1, without --request-rate and --trace",
     .help =
         "closed loop: so many requests at a time, each followed by the next; several: a sweep"},
    {"request-rate", NULL, NULL, TD_OPTION_LIST, AT(request_rate), LOAD, .metavar = "R[,R...]",
     .commas = true,
     .help =
         "open loop: Poisson arrivals, so many requests per second in the mean; inf: all at once; "
         "several: a sweep"},
    {"num-requests", NULL, NULL, TD_OPTION_INT, AT(num_requests), LOAD, .metavar = "N", .min = 1,
     .max = 10000000, .preset_note = "100, all of --trace, or as many as --duration gives",
     .help = "requests of each load"},
    {"duration", NULL, NULL, TD_OPTION_FLOAT, AT(duration), LOAD, .metavar = "SECONDS", .low = 0,
     .high = 1e6, .above_low = true, .preset_note = "no limit",
     .help = "no request is sent later than this; those under way are waited for"},
    {"warmup-requests", NULL, NULL, TD_OPTION_INT, AT(warmup_requests), LOAD, .metavar = "N",
     .min = 0, .max = 100000, .preset = "1",
     .help = "requests with other texts before the first load, which no figure counts"},
    {"input-len", NULL, NULL, TD_OPTION_STRING, AT(input_len), LOAD, .metavar = "DIST",
     .preset = "128",
     .help = "words of a prompt, about a token each: N, A:B (uniform), normal:MEAN:SD or "
             "lognormal:MEAN:SD"},
    {"output-len", NULL, NULL, TD_OPTION_STRING, AT(output_len), LOAD, .metavar = "DIST",
     .preset = "64", .help = "tokens asked for (max_tokens): the same"},
    {"shared-prefix-share", NULL, NULL, TD_OPTION_FLOAT, AT(shared_prefix_share), LOAD,
     .metavar = "X", .low = 0, .high = 1, .preset = "0",
     .help = "part of each prompt that is the same for all requests of its group"},
    {"prefix-groups", NULL, NULL, TD_OPTION_INT, AT(prefix_groups), LOAD, .metavar = "N", .min = 1,
     .max = 1000000, .preset = "1",
     .help = "groups of requests with a prefix of their own, by turns"},
    {"trace", NULL, NULL, TD_OPTION_STRING, AT(trace), LOAD, .metavar = "PATH",
     .help = "JSON lines with timestamp (ms), input_length or prompt, output_length and perhaps "
             "hash_ids: at these times, unless --request-rate or --concurrency says others"},
    {"endpoint", NULL, NULL, TD_OPTION_ENUM, AT(endpoint), LOAD, .values = endpoints,
     .preset = "completions", .help = "API that is asked; chat: the prompt is a user's message"},
    {"extra-body", NULL, NULL, TD_OPTION_STRING, AT(extra_body), LOAD, .metavar = "JSON",
     .help = "object whose members go into every request, {\"top_k\": 1}"},
    {"slo", NULL, NULL, TD_OPTION_LIST, AT(slo), LOAD, .metavar = "ttft:MS,itl:MS,tpot:MS,e2e:MS",
     .commas = true,
     .help =
         "what a good request keeps, each optional; goodput counts those; itl: every gap of it"},
    {"json-file", NULL, NULL, TD_OPTION_STRING, AT(json_file), LOAD | SCALE | TD_FOR_BENCH_COMM,
     .metavar = "PATH", .help = "write settings and results there as JSON"},
    {"save-requests", NULL, NULL, TD_OPTION_FLAG, AT(save_requests), LOAD,
     .help = "put a record of every request into the JSON"},
    {"svg", NULL, NULL, TD_OPTION_STRING, AT(svg), LOAD | SCALE | TD_FOR_BENCH_COMM,
     .metavar = "PATH",
     .help = "draw latency and throughput over the loads of a sweep there; of bench comm: time "
             "over bytes; of bench scale: tokens per second over ranks or links"},

    {"output", NULL, "Quantisation", TD_OPTION_STRING, AT(output), TD_FOR_QUANTIZE,
     .required = TD_FOR_QUANTIZE, .metavar = "PATH",
     .help = "GGUF file to write, of f8_e4m3 a Hugging Face directory; may also be given without "
             "the flag, behind the model"},
    {"type", NULL, NULL, TD_OPTION_ENUM, AT(type), TD_FOR_QUANTIZE, .required = TD_FOR_QUANTIZE,
     .metavar = "TYPE", .values = td_options_types,
     .help =
         "element type of the matrices (norms: f32; the head: q6_k where TYPE is smaller); rows "
         "of no whole blocks take, for q2_k and q3_k: q4_0, q4_k: q5_0, q5_k: q5_1, q6_k: q8_0, "
         "iq4_xs: iq4_nl, else f16"},
    {"pure", NULL, NULL, TD_OPTION_FLAG, AT(pure), TD_FOR_QUANTIZE,
     .help = "give the head the same type as all others"},
    {"fp8-scales", NULL, NULL, TD_OPTION_ENUM, AT(fp8_scales), TD_FOR_QUANTIZE,
     .values = fp8_scales, .preset = "block",
     .help = "of f8_e4m3: one scale per 128 x 128 block, per output channel, or per tensor"},
    {"force", NULL, NULL, TD_OPTION_FLAG, AT(force), TD_FOR_QUANTIZE,
     .help = "write over a file that is there"},

    {"config", NULL, "General", TD_OPTION_STRING, AT(config), TD_FOR_ALL, .metavar = "PATH",
     .help = "YAML file of these names; flags and TENSORD_* variables win over it"},
    {"log-level", NULL, NULL, TD_OPTION_ENUM, AT(log_level), TD_FOR_ALL, .values = log_levels,
     .preset = "info", .help = "least important messages that are shown"},
    {"json", NULL, NULL, TD_OPTION_FLAG, AT(json), TD_FOR_ALL & ~(TD_FOR_WORKER | TD_FOR_CHAT),
     .help = "print one JSON object"},
    {"verbose", NULL, NULL, TD_OPTION_FLAG, AT(verbose), TD_FOR_ALL,
     .help = "print more about what is done"},
};

_Static_assert(sizeof table / sizeof table[0] <= TD_OPTIONS_MAX_ROWS, "raise TD_OPTIONS_MAX_ROWS");

const struct td_option *td_options_table(size_t *n_rows)
{
    *n_rows = sizeof table / sizeof table[0];
    return table;
}

const char *td_options_command_name(unsigned command_bit)
{
    static const char *const names[] = {
        "serve",   "worker",     "generate",    "tokenize", "perplexity", "plan",
        "inspect", "status",     "chat",        "bench",    "quantize",   "bench serve",
        "doctor",  "bench comm", "bench scale", "drain",    "roll"};

    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (command_bit == 1u << i)
            return names[i];
    return "tensord";
}
