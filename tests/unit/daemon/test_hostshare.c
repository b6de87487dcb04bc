/* What a rank may take of its host: the control group's processor time, from files as the kernel writes them; and the cores
 * that ranks of a simulated group agree on. */
#include "tests/unit/check.h"

#include "comm/comm.h"
#include "daemon/engine/hostshare.h"
#include "kernels/cpu/cores.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[] = "/tmp/tensord-hostshareXXXXXX";

static void write_file(const char *name, const char *text)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", root, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static uint32_t quota(const char *self_text)
{
    char self[256];

    write_file("self", self_text);
    snprintf(self, sizeof self, "%s/self", root);
    return td_hostshare_quota(root, self);
}

static void test_hostshare_reads_the_smallest_quota_above_the_group(void **state)
{
    char path[256];

    (void)state;
    assert_non_null(mkdtemp(root));
    assert_int_equal(quota("0::/\n"), 0); /* no cpu.max at all */
    write_file("cpu.max", "max 100000\n");
    assert_int_equal(quota("0::/\n"), 0);
    write_file("cpu.max", "1250000 100000\n");
    assert_int_equal(quota("0::/\n"), 12); /* 12.5: whole threads */
    snprintf(path, sizeof path, "%s/system.slice", root);
    assert_int_equal(mkdir(path, 0700), 0);
    write_file("system.slice/cpu.max", "400000 100000\n");
    snprintf(path, sizeof path, "%s/system.slice/a.service", root);
    assert_int_equal(mkdir(path, 0700), 0);
    write_file("system.slice/a.service/cpu.max", "max 100000\n");
    assert_int_equal(quota("1:name=systemd:/x\n0::/system.slice/a.service\n"), 4);
    write_file("system.slice/a.service/cpu.max", "50000 100000\n");
    assert_int_equal(quota("0::/system.slice/a.service\n"), 1); /* less than one is one */
    assert_int_equal(quota("0::/system.slice\n"), 4);
    assert_int_equal(quota("0::/elsewhere\n"), 12);
    assert_int_equal(quota(""), 12);
    assert_int_equal(td_hostshare_quota(root, "/nonexistent"), 12);
    write_file("cpu.max", "nonsense\n");
    assert_int_equal(quota("0::/\n"), 0);

    for (size_t i = 0; i < 6; i++) {
        static const char *const names[] = {"system.slice/a.service/cpu.max",
                                            "system.slice/cpu.max",
                                            "system.slice/a.service",
                                            "system.slice",
                                            "cpu.max",
                                            "self"};

        snprintf(path, sizeof path, "%s/%s", root, names[i]);
        assert_int_equal(remove(path), 0);
    }
    assert_int_equal(rmdir(root), 0);
}

struct rank {
    struct td_comm *world;
    uint32_t wish;
    enum td_status status;
    struct td_cores_share share;
};

static void *divide(void *arg)
{
    struct rank *r = arg;

    r->status = td_hostshare_cores(r->world, r->wish, &r->share, NULL);
    return NULL;
}

static void test_hostshare_gives_ranks_of_a_host_cores_of_their_own(void **state)
{
    enum { MOST = 5 };
    static struct rank ranks[MOST];
    struct td_cores *cores;
    uint32_t n_cores;

    (void)state;
    assert_int_equal(td_cores_open(NULL, &cores, NULL), TD_OK);
    n_cores = td_cores_count_mine(cores);
    td_cores_close(cores);
    for (uint32_t n = 1; n <= MOST; n++)
        for (uint32_t wish = 0; wish < 2; wish++) {
            struct td_comm *world[MOST];
            pthread_t threads[MOST];
            cpu_set_t taken;
            uint32_t sum = 0;

            CPU_ZERO(&taken);
            assert_int_equal(td_comm_sim_open(n, world, NULL), TD_OK);
            for (uint32_t i = 0; i < n; i++) {
                ranks[i] = (struct rank){.world = world[i], .wish = wish};
                assert_int_equal(pthread_create(&threads[i], NULL, divide, &ranks[i]), 0);
            }
            for (uint32_t i = 0; i < n; i++) {
                pthread_join(threads[i], NULL);
                td_comm_close(world[i]);
                assert_int_equal(ranks[i].status, TD_OK);
                assert_int_equal(ranks[i].share.n_cores, n_cores);
                sum += ranks[i].share.n_threads;
                for (uint32_t k = 0; ranks[i].share.seated && k < ranks[i].share.n_threads; k++) {
                    assert_false(CPU_ISSET(ranks[i].share.seats[k].cpu, &taken));
                    CPU_SET(ranks[i].share.seats[k].cpu, &taken);
                }
                assert_true(n <= n_cores || !ranks[i].share.owned);
            }
            assert_true(sum <= n_cores || sum == n);
            assert_true(wish == 0 || sum == n);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostshare_reads_the_smallest_quota_above_the_group),
        cmocka_unit_test(test_hostshare_gives_ranks_of_a_host_cores_of_their_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
