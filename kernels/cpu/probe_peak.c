#include "kernels/cpu/probe_peak.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* One way of doing a kind. `run` repeats its loop body n times. */
struct way {
    enum td_peak kind;
    const char *instruction;
    unsigned needs;       /* bits of enum feature, all of them */
    uint64_t n_loops;     /* of one piece */
    uint64_t ops_of_loop; /* of one thread */
    void (*run)(uint64_t n);
};

enum feature {
    AVX2_FMA = 1 << 0,
    AVX512F = 1 << 1,
    AVX512_VNNI = 1 << 2,
    AVX512_BF16 = 1 << 3,
    AVX_VNNI = 1 << 4,
    AMX_INT8 = 1 << 5,
    AMX_BF16 = 1 << 6
};

#if defined(__x86_64__)

#include <cpuid.h>

/* XCR0 (Intel SDM volume 1, section 13.3): which registers the operating system keeps. */
static uint64_t kept_state(void)
{
    uint32_t low, high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux hands out the tiles on demand only (Documentation/arch/x86/xstate.rst); threads started later inherit them. */
static bool may_use_tiles(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static unsigned find_features(void)
{
    const uint64_t ymm = 0x6, zmm = 0xe6, tiles = 0x60000;
    uint32_t a, b, c, d, a1 = 0, b7, c7, d7, rest;
    uint64_t state;
    unsigned have = 0;

    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return 0;
    state = kept_state();
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7))
        return 0;
    if (a >= 1)
        (void)__get_cpuid_count(7, 1, &a1, &rest, &rest, &rest);
    if ((state & ymm) == ymm && (b7 & bit_AVX2) && (c & bit_FMA)) {
        have |= AVX2_FMA;
        have |= a1 & 1u << 4 ? AVX_VNNI : 0;
    }
    if ((state & zmm) == zmm && (b7 & bit_AVX512F)) {
        have |= AVX512F;
        have |= c7 & 1u << 11 ? AVX512_VNNI : 0;
        have |= a1 & 1u << 5 ? AVX512_BF16 : 0;
    }
    if ((state & tiles) == tiles && (d7 & 1u << 24) && may_use_tiles()) {
        have |= d7 & 1u << 25 ? AMX_INT8 : 0;
        have |= d7 & 1u << 22 ? AMX_BF16 : 0;
    }
    return have;
}

/* Bytes, BF16 pairs and floats alike: 1.0f is 00 00 80 3f. Sums stay finite in every reading of it. */
static const uint32_t one = 0x3f800000;

/* Twelve sums, so that the next multiplication never waits for the last one; they start at zero. */
#define EACH_OF_12(X)                                                                              \
    X("0") X("1") X("2") X("3") X("4") X("5") X("6") X("7") X("8") X("9") X("10") X("11")
#define CLOBBERS                                                                                   \
    "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define CLEAR(r) "vpxor %%xmm" r ", %%xmm" r ", %%xmm" r "\n\t"
/* `load` fills registers 12 and 13, `body` is the loop's. */
#define DEFINE_RUN(name, load, body)                                                               \
    static void name(uint64_t n)                                                                   \
    {                                                                                              \
        __asm__ volatile(EACH_OF_12(CLEAR) load ".p2align 5\n1:\n\t" body                          \
                                                "dec %0\n\tjnz 1b\n\tvzeroupper"                   \
                         : "+r"(n)                                                                 \
                         : "m"(one)                                                                \
                         : CLOBBERS);                                                              \
    }
#define LOAD_ZMM "vbroadcastss %1, %%zmm12\n\tvbroadcastss %1, %%zmm13\n\t"
#define LOAD_YMM "vbroadcastss %1, %%ymm12\n\tvbroadcastss %1, %%ymm13\n\t"

#define VPDPBUSD_ZMM(r) "vpdpbusd %%zmm12, %%zmm13, %%zmm" r "\n\t"
#define VPDPBUSD_YMM(r) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" r "\n\t"
#define VDPBF16PS_ZMM(r) "vdpbf16ps %%zmm12, %%zmm13, %%zmm" r "\n\t"
#define VFMADD_ZMM(r) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" r "\n\t"
#define VFMADD_YMM(r) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" r "\n\t"
#define VPMADD_YMM(r)                                                                              \
    "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n\tvpmaddwd %%ymm12, %%ymm14, %%ymm15\n\t"               \
    "vpaddd %%ymm15, %%ymm" r ", %%ymm" r "\n\t"

DEFINE_RUN(run_vpdpbusd_zmm, LOAD_ZMM, EACH_OF_12(VPDPBUSD_ZMM))
DEFINE_RUN(run_vpdpbusd_ymm, LOAD_YMM, EACH_OF_12(VPDPBUSD_YMM))
DEFINE_RUN(run_vpmadd_ymm, LOAD_YMM, EACH_OF_12(VPMADD_YMM))
DEFINE_RUN(run_vdpbf16ps_zmm, LOAD_ZMM, EACH_OF_12(VDPBF16PS_ZMM))
DEFINE_RUN(run_vfmadd_zmm, LOAD_ZMM, EACH_OF_12(VFMADD_ZMM))
DEFINE_RUN(run_vfmadd_ymm, LOAD_YMM, EACH_OF_12(VFMADD_YMM))

/* Six tiles of sums, 16 x 16 each, and two factors of 16 rows x 64 bytes. The configuration (Intel SDM, LDTILECFG) goes in
 * as memory of its whole size, so that the compiler writes all of it before. */
#define DEFINE_TILES(name, instruction)                                                            \
    static void name(uint64_t n)                                                                   \
    {                                                                                              \
        struct tile_config {                                                                       \
            uint8_t palette, start_row, reserved[14];                                              \
            uint16_t row_bytes[16];                                                                \
            uint8_t n_rows[16];                                                                    \
        } config = {.palette = 1};                                                                 \
        uint32_t factor[16 * 16];                                                                  \
                                                                                                   \
        for (int i = 0; i < 8; i++) {                                                              \
            config.row_bytes[i] = 64;                                                              \
            config.n_rows[i] = 16;                                                                 \
        }                                                                                          \
        for (int i = 0; i < 16 * 16; i++)                                                          \
            factor[i] = one;                                                                       \
        __asm__ volatile(                                                                          \
            "ldtilecfg %1\n\ttileloadd (%3,%4,1), %%tmm6\n\ttileloadd (%3,%4,1), %%tmm7\n\t"       \
            "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\t"                            \
            "tilezero %%tmm3\n\ttilezero %%tmm4\n\ttilezero %%tmm5\n\t"                            \
            "1:\n\t" instruction " %%tmm7, %%tmm6, %%tmm0\n\t" instruction                         \
            " %%tmm7, %%tmm6, %%tmm1\n\t" instruction " %%tmm7, %%tmm6, %%tmm2\n\t" instruction    \
            " %%tmm7, %%tmm6, %%tmm3\n\t" instruction " %%tmm7, %%tmm6, %%tmm4\n\t" instruction    \
            " %%tmm7, %%tmm6, %%tmm5\n\tdec %0\n\tjnz 1b\n\ttilerelease"                           \
            : "+r"(n)                                                                              \
            : "m"(config), "m"(factor), "r"(factor), "r"((uint64_t)64)                             \
            : "cc");                                                                               \
    }
DEFINE_TILES(run_tdpbusd, "tdpbusd")
DEFINE_TILES(run_tdpbf16ps, "tdpbf16ps")

/* The first of a kind that the CPU has is taken. */
static const struct way ways[] = {
    {TD_PEAK_INT8, "vpdpbusd zmm", AVX512_VNNI, 45000, 12 * 128, run_vpdpbusd_zmm},
    {TD_PEAK_INT8, "vpdpbusd ymm", AVX_VNNI, 45000, 12 * 64, run_vpdpbusd_ymm},
    {TD_PEAK_INT8, "vpmaddubsw + vpmaddwd ymm", AVX2_FMA, 20000, 12 * 64, run_vpmadd_ymm},
    {TD_PEAK_BF16, "vdpbf16ps zmm", AVX512_BF16, 20000, 12 * 64, run_vdpbf16ps_zmm},
    {TD_PEAK_F32, "vfmadd231ps zmm", AVX512F, 45000, 12 * 32, run_vfmadd_zmm},
    {TD_PEAK_F32, "vfmadd231ps ymm", AVX2_FMA, 45000, 12 * 16, run_vfmadd_ymm},
    {TD_PEAK_AMX_INT8, "tdpbusd", AMX_INT8, 3000, 6 * 32768, run_tdpbusd},
    {TD_PEAK_AMX_BF16, "tdpbf16ps", AMX_BF16, 3000, 6 * 16384, run_tdpbf16ps},
};

#else

/* No other instruction set has a probe yet: a row per kind, as above. */
static const struct way ways[] = {{TD_N_PEAKS, "", 0, 0, 0, NULL}};

static unsigned find_features(void)
{
    return 0;
}

#endif

static const struct way *find_way(enum td_peak kind)
{
    /* Any thread may be the first: all find the same. Bit 31 says that it was looked up. */
    static unsigned known;
    unsigned have = __atomic_load_n(&known, __ATOMIC_RELAXED);

    if (!have) {
        have = find_features() | 1u << 31;
        __atomic_store_n(&known, have, __ATOMIC_RELAXED);
    }
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        if (ways[i].kind == kind && (ways[i].needs & have) == ways[i].needs)
            return &ways[i];
    return NULL;
}

const char *td_probe_peak_name(enum td_peak kind)
{
    static const char *const names[TD_N_PEAKS] = {"int8", "bf16", "f32", "amx-int8", "amx-bf16"};

    return kind < TD_N_PEAKS ? names[kind] : "none";
}

const char *td_probe_peak_instruction(enum td_peak kind)
{
    const struct way *way = find_way(kind);

    return way ? way->instruction : NULL;
}

uint64_t td_probe_peak_run(enum td_peak kind)
{
    const struct way *way = find_way(kind);

    if (!way)
        return 0;
    way->run(way->n_loops);
    return way->n_loops * way->ops_of_loop;
}
