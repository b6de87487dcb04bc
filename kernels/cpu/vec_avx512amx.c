/* Products of integer types with AMX's int8 tiles. */
#define TD_BF16_PAIRS 0
#define TD_PLAIN_SIGNED 1
#include "kernels/cpu/vec512.h"

#include "kernels/cpu/vec_body.h"

#include "kernels/cpu/amx_body.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* CPUID leaf 7, EDX: bit 24 AMX-TILE, bit 25 AMX-INT8. Linux lets a process have the tiles' registers when it asks. */
static bool available(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned eax, ebx, ecx, edx;

    return has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
           (edx >> 24 & 3) == 3 && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

#define AMX_TILES(name, kind, mins, ...)                                                           \
    static __attribute__((noinline)) void name(const struct td_cpu_product *p,                     \
                                               const struct chunk *c, uint32_t depth,              \
                                               uint32_t chunk_index, struct waiting *wait)         \
    {                                                                                              \
        amx_tiles((struct td_cpu_traits){kind, 0, 1, mins, 0}, (struct ints){__VA_ARGS__}, p, c,   \
                  depth, chunk_index, wait);                                                       \
    }
AMX_TILES(tiles_q8_0, TD_ACT_INT32, 0, .dtype = TD_Q8_0)
AMX_TILES(tiles_int32, TD_ACT_INT32, 0, .plain = true)
AMX_TILES(tiles_int32_mins, TD_ACT_INT32, 1, .plain = true)
AMX_TILES(tiles_int256, TD_ACT_INT256, 0, .plain = true)
AMX_TILES(tiles_int256_mins, TD_ACT_INT256, 1, .plain = true)

static void amx_product(const struct td_cpu_product *p, enum td_dtype dtype, expand_fn *expand,
                        tiles_fn *run)
{
    const uint32_t n_tiles = td_cpu_tiles(p->n, DOT_TOKENS);
    struct td_cpu_product one = *p;

    amx_configure(td_cpu_tile(p->n, n_tiles, 0).n);
    for (one.n_groups = 1; one.group < p->group + p->n_groups; one.group++) {
        many_tokens(dtype, CHUNK_AMX, 3 * n_tiles /* amx_dots, and two calls of `tile` */, &one,
                    expand, run);
        one.out += TD_CPU_GROUP;
    }
    amx_release();
}

#define AMX_PRODUCT(name, dtype, run)                                                              \
    static                                                                                         \
        __attribute__((noinline)) void expand_##name(const uint8_t *p, uint32_t n_k, float *plain) \
    {                                                                                              \
        expand_int(dtype, p, n_k, plain);                                                          \
    }                                                                                              \
    static void product_##name(const struct td_cpu_product *p)                                     \
    {                                                                                              \
        amx_product(p, dtype, expand_##name, run);                                                 \
    }
AMX_PRODUCT(q4_0, TD_Q4_0, tiles_int32)
AMX_PRODUCT(q4_1, TD_Q4_1, tiles_int32_mins)
AMX_PRODUCT(q5_0, TD_Q5_0, tiles_int32)
AMX_PRODUCT(q5_1, TD_Q5_1, tiles_int32_mins)
AMX_PRODUCT(iq4_nl, TD_IQ4_NL, tiles_int32)
AMX_PRODUCT(mxfp4, TD_MXFP4, tiles_int32)
AMX_PRODUCT(int4, TD_INT4, tiles_int32)
AMX_PRODUCT(q4_k, TD_Q4_K, tiles_int256_mins)
AMX_PRODUCT(q5_k, TD_Q5_K, tiles_int256_mins)
AMX_PRODUCT(iq4_xs, TD_IQ4_XS, tiles_int256)

static void product_q8_0(const struct td_cpu_product *p)
{
    amx_product(p, TD_Q8_0, NULL, tiles_q8_0);
}

static void prepare(const struct td_cpu_source *src, const struct td_cpu_act *act, uint32_t t,
                    uint32_t slot, uint32_t n, uint8_t *out)
{
    if (act->traits.kind == TD_ACT_INT32)
        prepare_ints(src, TD_ACT_INT32, act->traits, t, slot, n, out);
    else
        prepare_ints(src, TD_ACT_INT256, act->traits, t, slot, n, out);
}

static void product(const struct td_cpu_product *p)
{
    static void (*const by_type[TD_N_DTYPES])(const struct td_cpu_product *) = {
        [TD_Q8_0] = product_q8_0,     [TD_Q4_0] = product_q4_0, [TD_Q4_1] = product_q4_1,
        [TD_Q5_0] = product_q5_0,     [TD_Q5_1] = product_q5_1, [TD_IQ4_NL] = product_iq4_nl,
        [TD_MXFP4] = product_mxfp4,   [TD_Q4_K] = product_q4_k, [TD_Q5_K] = product_q5_k,
        [TD_IQ4_XS] = product_iq4_xs, [TD_INT4] = product_int4,
    };

    by_type[p->m->head.dtype](p);
}

/* Below about 8 tokens its tiles are too empty to win. */
const struct td_cpu_int_unit td_cpu_avx512amx = {.available = available,
                                                 .tokens = DOT_TOKENS,
                                                 .least_tokens = 8,
                                                 .prepare = prepare,
                                                 .product = product};
