/* The probes: each returns a plausible rate with one thread and with several, says which instruction it measured, and leaves
 * no thread behind. */
#include "tests/unit/check.h"

#include "kernels/base/clock.h"
#include "kernels/cpu/probe.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <time.h>

static uint32_t count_threads(void)
{
    DIR *d = opendir("/proc/self/task");
    uint32_t n = 0;

    assert_non_null(d);
    for (const struct dirent *e = readdir(d); e; e = readdir(d))
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* A thread that was joined may stand in the list for a moment longer. */
static void wait_for_threads(uint32_t n)
{
    for (int i = 0; i < 1000 && count_threads() != n; i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    assert_int_equal(count_threads(), n);
}

static struct td_probe *open_probe(uint32_t n_threads, size_t bytes, bool seated)
{
    static const struct td_cores_seat seats[4] = {{0, 0}, {0, 0}, {0, 0}, {0, 0}};
    struct td_probe_params p = {
        .n_threads = n_threads, .bytes = bytes, .seats = seated ? seats : NULL};
    struct td_probe *probe;
    struct td_err err;

    assert_int_equal(td_probe_open(&p, &probe, &err), TD_OK);
    return probe;
}

static void test_probe_reads_the_whole_buffer_in_every_way(void **state)
{
    struct td_probe *probe = open_probe(2, (32 << 20) + 5, false);

    (void)state;
    assert_true(td_probe_ways() >= 1);
    for (uint32_t way = 0; way < td_probe_ways(); way++) {
        uint64_t start = td_clock_now_ns(), bytes = td_probe_read(probe, way);
        double gb_per_s = (double)bytes / (double)(td_clock_now_ns() - start);

        assert_int_equal(bytes, 32 << 20);
        assert_true(gb_per_s > 0.05 && gb_per_s < 20000); /* no memory is that slow or fast */
    }
    td_probe_close(probe);
}

/* A core does between 2 and 65536 operations in a cycle of 0.2 to 0.5 ns or more: an instruction that was left out, or
 * counted wrongly by a power of ten, falls outside. */
static void test_probe_multiplies_at_a_plausible_rate(void **state)
{
    static const double most_per_core[TD_N_PEAKS] = {[TD_PEAK_INT8] = 8e12,
                                                     [TD_PEAK_BF16] = 4e12,
                                                     [TD_PEAK_F32] = 2e12,
                                                     [TD_PEAK_AMX_INT8] = 64e12,
                                                     [TD_PEAK_AMX_BF16] = 32e12};

    (void)state;
    for (uint32_t threads = 1; threads <= 2; threads++) {
        struct td_probe *probe = open_probe(threads, 1, false);

        for (uint32_t k = 0; k < TD_N_PEAKS; k++) {
            enum td_peak kind = (enum td_peak)k;
            uint64_t start = td_clock_now_ns(), ops = td_probe_multiply(probe, kind);
            double rate = (double)ops / ((double)(td_clock_now_ns() - start) * 1e-9);

            if (!td_probe_peak_instruction(kind)) {
                assert_int_equal(ops, 0);
                continue;
            }
            assert_true(rate > 1e8 && rate < threads * most_per_core[kind]);
        }
        td_probe_close(probe);
    }
}

static void test_probe_peak_has_a_name_and_an_instruction_of_its_kind(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < TD_N_PEAKS; k++) {
        enum td_peak kind = (enum td_peak)k;
        const char *instruction = td_probe_peak_instruction(kind);

        assert_string_not_equal(td_probe_peak_name(kind), "none");
        for (uint32_t other = 0; other < k; other++)
            assert_string_not_equal(td_probe_peak_name(kind),
                                    td_probe_peak_name((enum td_peak)other));
        assert_true((td_probe_peak_run(kind) > 0) == (instruction != NULL));
    }
    assert_string_equal(td_probe_peak_name(TD_N_PEAKS), "none");
    assert_null(td_probe_peak_instruction(TD_N_PEAKS));
    assert_int_equal(td_probe_peak_run(TD_N_PEAKS), 0);
}

/* int8 has an instruction wherever F32 has one: AVX2 brings both. */
static void test_probe_knows_this_cpu(void **state)
{
    (void)state;
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2"))
        TD_SKIP("cpu: no AVX2");
    assert_non_null(td_probe_peak_instruction(TD_PEAK_INT8));
    assert_non_null(td_probe_peak_instruction(TD_PEAK_F32));
    if (__builtin_cpu_supports("avx512f"))
        assert_non_null(strstr(td_probe_peak_instruction(TD_PEAK_F32), "zmm"));
    if (__builtin_cpu_supports("avx512vnni"))
        assert_string_equal(td_probe_peak_instruction(TD_PEAK_INT8), "vpdpbusd zmm");
#else
    TD_SKIP("cpu: no probe of its multiplications yet");
#endif
}

static void *pinned(void *arg)
{
    struct td_probe *probe = open_probe(2, 1, true);
    cpu_set_t set;

    (void)arg;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(CPU_COUNT(&set), 1);
    (void)td_probe_multiply(probe, TD_PEAK_F32);
    td_probe_close(probe);
    return NULL;
}

static void test_probe_pins_its_threads_and_leaves_none(void **state)
{
    uint32_t before = count_threads();
    struct td_probe *probe;
    pthread_t thread;

    (void)state;
    probe = open_probe(3, 1, false);
    assert_int_equal(count_threads(), before + 2); /* the caller is the third */
    td_probe_close(probe);
    wait_for_threads(before);
    assert_int_equal(pthread_create(&thread, NULL, pinned, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    wait_for_threads(before);
    td_probe_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_probe_reads_the_whole_buffer_in_every_way),
        cmocka_unit_test(test_probe_multiplies_at_a_plausible_rate),
        cmocka_unit_test(test_probe_peak_has_a_name_and_an_instruction_of_its_kind),
        cmocka_unit_test(test_probe_knows_this_cpu),
        cmocka_unit_test(test_probe_pins_its_threads_and_leaves_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
