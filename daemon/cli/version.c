#include "daemon/cli/version.h"

#include "kernels/kern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <mpi.h> /* only for its version, which needs no MPI_Init; comm/ owns everything else of MPI */
#include <nghttp2/nghttp2.h>
#include <openssl/crypto.h>
#include <pcre2.h>
#include <protobuf-c/protobuf-c.h>
#include <string.h>
#include <utf8proc.h>
#include <uv.h>
#include <xxhash.h>
#include <yaml.h>

#ifdef __clang__
#define COMPILER __VERSION__ /* "Debian Clang 14.0.6" */
#else
#define COMPILER "GCC " __VERSION__
#endif

/* The instruction sets that were built and that this CPU can run, the plain reference first. */
static void print_cpu(FILE *out)
{
    static const char *const names[] = {"ref", "avx2", "avx512", "avx512bf16", "avx512amx", NULL};

    fputs("cpu kernels:", out);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct td_kern_cpu_params params = {.n_threads = 1, .isa = names[i]};
        struct td_kern *kern;

        if (td_kern_cpu_open(&params, &kern, NULL) != TD_OK)
            continue;
        if (names[i])
            fprintf(out, " %s", names[i]);
        else
            fprintf(out, " (default: %s, numerics class %s)", td_kern_name(kern),
                    td_kern_numerics(kern));
        td_kern_close(kern);
    }
    fputc('\n', out);
}

static void print_mpi(FILE *out)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int len = 0;

    if (MPI_Get_library_version(text, &len) == MPI_SUCCESS)
        fprintf(out, "mpi: %.*s\n", (int)strcspn(text, ",\n"), text);
}

void td_version_print(FILE *out)
{
    char pcre2[64] = "";
    unsigned xxhash = XXH_versionNumber();

    fprintf(out, "tensord %s, built with %s\n", TD_VERSION, COMPILER);
    print_cpu(out);
    print_mpi(out);
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    fprintf(
        out, "libuv %s\nnghttp2 %s\nprotobuf-c %s\njansson %s\nOpenSSL %s\nPCRE2 %s\nutf8proc %s\n",
        uv_version_string(), nghttp2_version(0)->version_str, protobuf_c_version(),
        jansson_version_str(), OpenSSL_version(OPENSSL_VERSION_STRING), pcre2, utf8proc_version());
    fprintf(out, "libyaml %s\nxxHash %u.%u.%u\n", yaml_get_version_string(), xxhash / 10000,
            xxhash / 100 % 100, xxhash % 100);
}
