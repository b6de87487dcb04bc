#include "../check.h"

#include "daemon/coordinator/keeper.h"
#include "daemon/coordinator/launch.h"
#include "daemon/coordinator/launch_end.h"
#include "daemon/log.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* A launch of a shell script in the place of a worker; the script sees its arguments as $1 ... */
struct fixture {
    uv_loop_t loop;
    uv_timer_t limit;
    char tmp[64];    /* where the launch makes its directory */
    char script[96]; /* the ranks' program */
    char log[96];    /* what td_log wrote */
    struct td_launch *launch;
    struct td_launch_params params;
    int n_ends;
    struct td_launch_end end;
    char lines[2048];
};

static void write_file(const char *path, const char *text, mode_t mode)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(path, mode), 0);
}

static const char *read_file(const char *path)
{
    static char text[65536];
    FILE *f = fopen(path, "r");
    text[0] = '\0';
    if (f != NULL) {
        text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
        fclose(f);
    }
    return text;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    signal(SIGPIPE, SIG_IGN);
    /* Choices of the environment (CI sets some) would hide ours. */
    unsetenv("OMPI_MCA_odls_base_sigkill_timeout");
    unsetenv("OMPI_MCA_orte_tmpdir_base");
    snprintf(f->tmp, sizeof(f->tmp), "/tmp/td-launch-XXXXXX");
    assert_non_null(mkdtemp(f->tmp));
    snprintf(f->script, sizeof(f->script), "%s/worker.sh", f->tmp);
    snprintf(f->log, sizeof(f->log), "%s/log", f->tmp);
    int fd = open(f->log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    td_log_set_fd(fd);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    f->params = (struct td_launch_params){
        .loop = &f->loop,
        .program = f->script,
        .n_ranks = 2,
        .coordinator = "127.0.0.1:4711",
        .cluster_key = TD_STR("s3cret"),
        .generation = 7,
        .tmp_base = f->tmp,
    };
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(uv_loop_close(&f->loop), 0); /* every handle was closed */
    td_log_set_fd(2);
    unlink(f->script);
    unlink(f->log);
    char path[128];
    snprintf(path, sizeof(path), "%s/pids", f->tmp);
    unlink(path);
    snprintf(path, sizeof(path), "%s/hosts", f->tmp);
    unlink(path);
    assert_int_equal(rmdir(f->tmp), 0); /* the launch left nothing there */
    free(f);
    return 0;
}

static bool have_mpirun(void)
{
    return system("mpirun --version >/dev/null 2>&1") == 0;
}

static void on_end(const struct td_launch_end *end, void *user)
{
    struct fixture *f = user;
    f->n_ends++;
    f->end = *end;
    snprintf(f->lines, sizeof(f->lines), "%s", end->lines);
    uv_stop(&f->loop);
}

static void on_limit(uv_timer_t *timer)
{
    (void)timer;
    uv_stop(timer->loop);
}

/* Runs the loop until the launch ended or `ms` passed. */
static void run_for(struct fixture *f, unsigned ms)
{
    uv_timer_init(&f->loop, &f->limit);
    uv_timer_start(&f->limit, on_limit, ms, 0);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    uv_close((uv_handle_t *)&f->limit, NULL);
    uv_run(&f->loop, UV_RUN_NOWAIT);
}

static void launch(struct fixture *f, const char *script)
{
    struct td_err err = {0};
    write_file(f->script, script, 0700);
    assert_int_equal(td_launch_start(&f->params, on_end, f, &f->launch, &err), TD_OK);
    assert_true(td_launch_pid(f->launch) > 0);
    assert_int_equal(f->n_ends, 0);
}

/* The launch's directory within tmp; false when there is none. */
static bool find_dir(struct fixture *f, char *out, size_t cap)
{
    DIR *d = opendir(f->tmp);
    bool found = false;
    for (struct dirent *e; !found && (e = readdir(d)) != NULL;) {
        found = strncmp(e->d_name, "tensord-", 8) == 0;
        if (found && out != NULL) {
            snprintf(out, cap, "%s/%.32s", f->tmp, e->d_name);
        }
    }
    closedir(d);
    return found;
}

static void test_launch_gives_ranks_their_arguments_and_rank_0_the_key(void **state)
{
    struct fixture *f = *state;
    if (!have_mpirun()) {
        TD_SKIP("tool: mpirun is not installed");
    }
    const char *const more[] = {"--threads", "1", NULL};
    f->params.worker_args = more;
    launch(f, "#!/bin/sh\n"
              "if [ \"$OMPI_COMM_WORLD_RANK\" = 0 ]; then read key; echo \"key=$key\"; read key; "
              "echo \"rest=[$key]\"; fi\n"
              "echo \"rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE: $*\"\n"
              "echo \"2026-11-22T10:00:00.000Z warn slow \\\"disk\\\"\" >&2\n");
    run_for(f, 20000);
    assert_int_equal(f->n_ends, 1);
    assert_int_equal(f->end.exit_status, 0);
    assert_int_equal(f->end.term_signal, 0);
    assert_false(f->end.stopped);
    td_launch_close(f->launch);
    const char *log = read_file(f->log);
    assert_non_null(strstr(log, "info rank output generation=7 rank=0 text=\"key=s3cret\""));
    assert_non_null(strstr(log, "rank=0 text=\"rest=[]\""));
    assert_non_null(
        strstr(log, "rank=1 text=\"rank 1 of 2: worker --coordinator 127.0.0.1:4711 --generation 7 "
                    "--cluster-key-file - --threads 1\""));
    assert_non_null(strstr(log, "warn rank output generation=7 rank=1 text=\"slow 'disk'\""));
}

static void test_launch_tells_exit_status_and_last_lines(void **state)
{
    struct fixture *f = *state;
    if (!have_mpirun()) {
        TD_SKIP("tool: mpirun is not installed");
    }
    f->params.n_ranks = 1;
    launch(f, "#!/bin/sh\necho 'the port is in use' >&2\nexit 3\n");
    run_for(f, 20000);
    assert_int_equal(f->n_ends, 1);
    assert_int_equal(f->end.exit_status, 3);
    struct td_err err = {0};
    f->end.lines = f->lines;
    assert_int_equal(td_launch_describe(&f->end, TD_PEER_LOST, &err), TD_PEER_LOST);
    assert_non_null(strstr(err.cause, "mpirun ended with exit status 3: "));
    assert_non_null(strstr(f->lines, "the port is in use"));
    td_launch_close(f->launch);
}

static const char sleeper[] = "#!/bin/sh\n"
                              "echo $$ >> \"$(dirname \"$0\")/pids\"\n"
                              "trap '' TERM\n"
                              "touch \"$TD_LAUNCH_DIR/shared-memory\"\n"
                              "while :; do sleep 60 & wait; done\n";

static size_t read_pids(struct fixture *f, pid_t pids[8])
{
    char path[128];
    snprintf(path, sizeof(path), "%s/pids", f->tmp);
    FILE *in = fopen(path, "r");
    size_t n = 0;
    int pid;
    while (in != NULL && n < 8 && fscanf(in, "%d", &pid) == 1) {
        pids[n++] = pid;
    }
    if (in != NULL) {
        fclose(in);
    }
    return n;
}

/* True while the process is there and no zombie. */
static bool is_running(pid_t pid)
{
    char path[64];
    char line[512];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *in = fopen(path, "r");
    if (in == NULL) {
        return false;
    }
    bool ok = fgets(line, sizeof(line), in) != NULL;
    fclose(in);
    const char *end = ok ? strrchr(line, ')') : NULL;
    return end != NULL && end[2] != 'Z';
}

static void wait_for_ranks(struct fixture *f, pid_t pids[8])
{
    for (int i = 0; i < 200 && read_pids(f, pids) < 2; i++) {
        run_for(f, 50);
    }
    assert_int_equal(read_pids(f, pids), 2);
    assert_true(is_running(pids[0]) && is_running(pids[1]));
}

static void test_launch_stop_ends_every_rank_and_removes_the_directory(void **state)
{
    struct fixture *f = *state;
    pid_t pids[8];
    char dir[128];
    if (!have_mpirun()) {
        TD_SKIP("tool: mpirun is not installed");
    }
    launch(f, sleeper);
    wait_for_ranks(f, pids);
    assert_true(find_dir(f, dir, sizeof(dir)));
    struct stat st;
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    td_launch_stop(f->launch);
    td_launch_stop(f->launch);
    assert_int_equal(f->n_ends, 0);
    run_for(f, 10000);
    assert_int_equal(f->n_ends, 1);
    assert_int_equal(f->end.term_signal, SIGKILL);
    assert_true(f->end.stopped);
    assert_false(is_running(pids[0]) || is_running(pids[1]));
    assert_false(find_dir(f, NULL, 0));
    td_launch_close(f->launch);
}

static void test_launch_notices_a_killed_mpirun(void **state)
{
    struct fixture *f = *state;
    pid_t pids[8];
    if (!have_mpirun()) {
        TD_SKIP("tool: mpirun is not installed");
    }
    launch(f, sleeper);
    wait_for_ranks(f, pids);
    kill(td_launch_pid(f->launch), SIGKILL);
    run_for(f, 10000);
    assert_int_equal(f->n_ends, 1);
    assert_int_equal(f->end.term_signal, SIGKILL);
    assert_false(f->end.stopped);
    assert_false(is_running(pids[0]) || is_running(pids[1]));
    assert_false(find_dir(f, NULL, 0));
    td_launch_close(f->launch);
}

static void test_launch_ends_the_others_when_a_rank_is_killed(void **state)
{
    struct fixture *f = *state;
    pid_t pids[8];
    if (!have_mpirun()) {
        TD_SKIP("tool: mpirun is not installed");
    }
    launch(f, sleeper);
    wait_for_ranks(f, pids);
    kill(pids[1], SIGKILL);
    run_for(f, 10000);
    assert_int_equal(f->n_ends, 1);
    assert_int_not_equal(f->end.exit_status, 0);
    assert_false(is_running(pids[0]));
    assert_false(find_dir(f, NULL, 0));
    td_launch_close(f->launch);
}

static void test_launch_closed_early_cleans_up_and_is_silent(void **state)
{
    struct fixture *f = *state;
    pid_t pids[8];
    if (!have_mpirun()) {
        TD_SKIP("tool: mpirun is not installed");
    }
    launch(f, sleeper);
    wait_for_ranks(f, pids);
    td_launch_close(f->launch);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(f->n_ends, 0);
    assert_false(is_running(pids[0]) || is_running(pids[1]));
    assert_false(find_dir(f, NULL, 0));
}

static void test_launch_kills_what_outlives_mpirun(void **state)
{
    struct fixture *f = *state;
    pid_t pids[8];
    /* An mpirun that leaves a process behind in a session of its own. */
    f->params.mpirun = f->script;
    launch(f, "#!/bin/sh\n"
              "setsid sh -c 'echo $$ >> \"$0\"; trap \"\" TERM HUP; exec sleep 60' \"$(dirname "
              "\"$0\")/pids\" </dev/null "
              ">/dev/null 2>&1 &\n"
              "sleep 0.2; exit 0\n");
    run_for(f, 10000);
    assert_int_equal(f->n_ends, 1);
    assert_int_equal(f->end.exit_status, 0);
    assert_int_equal(read_pids(f, pids), 1);
    assert_false(is_running(pids[0]));
    assert_non_null(strstr(read_file(f->log), "outlived"));
    td_launch_close(f->launch);
}

static void test_launch_removes_what_dead_coordinators_left(void **state)
{
    struct fixture *f = *state;
    char old[128];
    char used[128];
    char file[160];
    /* Directories cannot be aged (their change time is the kernel's), so all of these are young and must stay. */
    snprintf(old, sizeof(old), "%s/tensord-abcdef", f->tmp);
    snprintf(used, sizeof(used), "%s/tensord-longername", f->tmp);
    snprintf(file, sizeof(file), "%s/vader_segment", old);
    assert_int_equal(mkdir(old, 0700), 0);
    assert_int_equal(mkdir(used, 0700), 0);
    write_file(file, "x", 0600);
    td_launch_end_sweep(f->tmp, 60);
    assert_int_equal(access(file, F_OK), 0);
    /* One that somebody holds stays, whatever its age. */
    int fd = open(old, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    td_launch_end_sweep(f->tmp, 0);
    assert_int_equal(access(file, F_OK), 0);
    close(fd);
    td_launch_end_sweep(f->tmp, 0);
    assert_int_not_equal(access(old, F_OK), 0);
    assert_int_equal(access(used, F_OK), 0);
    assert_int_equal(rmdir(used), 0);
}

static void test_launch_rank_holds_its_directory_against_sweeps(void **state)
{
    struct fixture *f = *state;
    char dir[128];
    snprintf(dir, sizeof(dir), "%s/tensord-abcdef", f->tmp);
    assert_int_equal(mkdir(dir, 0700), 0);
    setenv("OMPI_MCA_orte_tmpdir_base", dir, 1);
    pid_t rank = fork();
    if (rank == 0) { /* until it is killed */
        td_launch_join();
        kill(getpid(), SIGSTOP);
        _exit(0);
    }
    unsetenv("OMPI_MCA_orte_tmpdir_base");
    int status;
    assert_int_equal(waitpid(rank, &status, WUNTRACED), rank);
    td_launch_end_sweep(f->tmp, 0);
    assert_int_equal(access(dir, F_OK), 0);
    kill(rank, SIGKILL);
    assert_int_equal(waitpid(rank, &status, 0), rank);
    td_launch_end_sweep(f->tmp, 0);
    assert_int_not_equal(access(dir, F_OK), 0);
}

/* The keeper's own side, in a child that stands for it; the coordinator's death is the end of the pipe. */
static void test_launch_keeper_clears_up_after_its_coordinator(void **state)
{
    struct fixture *f = *state;
    char dir[128], file[160], mark[192];
    int ends[2], status;
    snprintf(dir, sizeof(dir), "%s/tensord-abcdef", f->tmp);
    snprintf(file, sizeof(file), "%s/vader_segment", dir);
    snprintf(mark, sizeof(mark), "TD_LAUNCH_DIR=%s", dir);
    assert_int_equal(mkdir(dir, 0700), 0);
    write_file(file, "x", 0600);
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t rank = fork(); /* one that does not end by itself */
    if (rank == 0) {
        char *const env[] = {mark, NULL};
        execle("/bin/sleep", "sleep", "60", (char *)NULL, env);
        _exit(1);
    }
    pid_t keeper = fork();
    if (keeper == 0) {
        dup2(ends[0], STDIN_FILENO);
        close(ends[1]);
        _exit(td_keeper_run(dir) ? 0 : 1);
    }
    close(ends[0]);
    assert_int_equal(write(ends[1], "x", 1), 1); /* no end: it sleeps on */
    usleep(50000);
    assert_int_equal(waitpid(keeper, &status, WNOHANG), 0);
    assert_int_equal(access(file, F_OK), 0);
    close(ends[1]);
    assert_int_equal(waitpid(rank, &status, 0), rank);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(waitpid(keeper, &status, 0), keeper);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_not_equal(access(dir, F_OK), 0);
}

static void test_launch_keeper_touches_nothing_else(void **state)
{
    struct fixture *f = *state;
    char dir[128], link[128];
    snprintf(dir, sizeof(dir), "%s/somebodys", f->tmp);
    snprintf(link, sizeof(link), "%s/tensord-linked", f->tmp);
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(symlink(dir, link), 0);
    assert_false(td_keeper_run(dir));
    assert_false(td_keeper_run(link));
    assert_false(td_keeper_run("tensord-abcdef"));
    assert_false(td_keeper_run(""));
    assert_int_equal(unlink(link), 0);
    assert_int_equal(rmdir(dir), 0);
}

static void test_launch_leaves_choices_that_the_user_made(void **state)
{
    struct fixture *f = *state;
    char hosts[96];
    snprintf(hosts, sizeof(hosts), "%s/hosts", f->tmp);
    write_file(hosts, "localhost slots=2\n", 0600);
    f->params.mpirun = f->script; /* shows its arguments instead of running anything */
    f->params.hostfile = hosts;
    setenv("OMPI_MCA_pml", "cm", 1);
    setenv("TENSORD_API_KEY", "sk-client", 1);
    launch(f, "#!/bin/sh\necho \"$*\" | tr ' ' '\\n'\necho \"key=[$TENSORD_API_KEY]\"\n");
    run_for(f, 10000);
    unsetenv("OMPI_MCA_pml");
    unsetenv("TENSORD_API_KEY");
    assert_int_equal(f->n_ends, 1);
    const char *log = read_file(f->log);
    assert_null(strstr(log, "text=\"pml\""));
    assert_non_null(strstr(log, "text=\"odls_base_sigkill_timeout\""));
    assert_non_null(strstr(log, "text=\"self,vader,tcp\""));
    assert_non_null(strstr(log, "text=\"--hostfile\""));
    assert_non_null(strstr(log, "text=\"key=[]\""));
    assert_null(strstr(log, "s3cret"));
    td_launch_close(f->launch);
}

struct spoken {
    struct fixture *f;
    char text[2][4096]; /* standard output, standard error */
};

static struct spoken spoken;

static void on_output(const char *data, size_t n, bool is_stderr, void *user)
{
    char *text = spoken.text[is_stderr];
    size_t len = strlen(text);
    assert_ptr_equal(user, spoken.f);
    assert_true(len + n < sizeof(spoken.text[0]));
    memcpy(text + len, data, n);
    text[len + n] = '\0';
}

static void test_launch_runs_a_command_and_hands_on_its_output(void **state)
{
    struct fixture *f = *state;
    static const char *const args[] = {"--json", "a b", NULL};
    char hosts[96];
    snprintf(hosts, sizeof(hosts), "%s/hosts", f->tmp);
    write_file(hosts, "localhost slots=2\n", 0600);
    spoken = (struct spoken){.f = f};
    f->params.mpirun = f->script; /* shows its arguments instead of running anything */
    f->params.program = "/opt/tensord";
    f->params.hostfile = hosts;
    f->params.n_ranks = 0; /* the hostfile says how many */
    f->params.command = "doctor";
    f->params.coordinator = NULL;
    f->params.cluster_key = TD_STR("");
    f->params.worker_args = args;
    f->params.on_output = on_output;
    launch(f, "#!/bin/sh\nfor a; do printf '<%s>' \"$a\"; done\necho ended >&2\nexit 3\n");
    run_for(f, 10000);
    assert_int_equal(f->n_ends, 1);
    assert_int_equal(f->end.exit_status, 3);
    assert_string_equal(spoken.text[1], "ended\n");
    assert_non_null(strstr(spoken.text[0], "</opt/tensord><doctor><--json><a b>"));
    assert_non_null(strstr(spoken.text[0], "<--hostfile>"));
    assert_non_null(strstr(spoken.text[0], "<self,vader,tcp>"));
    assert_null(strstr(spoken.text[0], "<-n>"));
    assert_null(strstr(spoken.text[0], "<--tag-output>"));
    assert_null(strstr(spoken.text[0], "<--coordinator>"));
    assert_null(strstr(read_file(f->log), "ended\"")); /* not to the log as well */
    td_launch_close(f->launch);
}

static void test_launch_puts_the_prefix_before_mpirun(void **state)
{
    struct fixture *f = *state;
    const char *const prefix[] = {f->script, "exec", "h0", NULL};
    spoken = (struct spoken){.f = f};
    f->params.prefix = prefix;
    f->params.mpirun = "/bin/true"; /* for the script, which runs nothing */
    f->params.program = "/opt/tensord";
    f->params.n_ranks = 2;
    f->params.command = "bench";
    f->params.coordinator = NULL;
    f->params.cluster_key = TD_STR("");
    f->params.worker_args = NULL;
    f->params.on_output = on_output;
    launch(f, "#!/bin/sh\nfor a; do printf '<%s>' \"$a\"; done\n");
    run_for(f, 10000);
    assert_int_equal(f->n_ends, 1);
    assert_int_equal(f->end.exit_status, 0);
    assert_int_equal(strncmp(spoken.text[0], "<exec><h0></bin/true><-n><2>", 28), 0);
    assert_non_null(strstr(spoken.text[0], "</opt/tensord><bench>"));
    td_launch_close(f->launch);
}

static void test_launch_refuses_what_cannot_start(void **state)
{
    struct fixture *f = *state;
    struct td_err err = {0};
    f->params.mpirun = "no-such-mpirun";
    assert_int_equal(td_launch_start(&f->params, on_end, f, &f->launch, &err), TD_NOT_FOUND);
    assert_non_null(strstr(err.cause, "openmpi-bin"));
    assert_non_null(strstr(err.cause, "no-such-mpirun"));

    f->params.mpirun = "/bin/true";
    f->params.hostfile = "/no/such/hosts";
    assert_int_equal(td_launch_start(&f->params, on_end, f, &f->launch, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "/no/such/hosts"));

    f->params.hostfile = NULL;
    f->params.command = "doctor";
    f->params.n_ranks = 0; /* and no hostfile that says how many */
    assert_int_equal(td_launch_start(&f->params, on_end, f, &f->launch, &err), TD_INVALID);
    assert_non_null(strstr(err.cause, "at least one rank"));
    f->params.command = NULL;
    f->params.n_ranks = 2;

    f->params.cluster_key = TD_STR("two\nlines");
    assert_int_equal(td_launch_start(&f->params, on_end, f, &f->launch, &err), TD_INVALID);

    f->params.cluster_key = TD_STR("k");
    f->params.tmp_base = "/no/such/dir";
    assert_int_equal(td_launch_start(&f->params, on_end, f, &f->launch, &err), TD_IO);
    assert_non_null(strstr(err.cause, "/no/such/dir"));

    /* There, and nothing that can be run. */
    f->params.tmp_base = f->tmp;
    f->params.mpirun = f->tmp;
    assert_int_equal(td_launch_start(&f->params, on_end, f, &f->launch, &err), TD_IO);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(f->n_ends, 0);
    assert_false(find_dir(f, NULL, 0));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_launch_gives_ranks_their_arguments_and_rank_0_the_key),
        TEST(test_launch_tells_exit_status_and_last_lines),
        TEST(test_launch_stop_ends_every_rank_and_removes_the_directory),
        TEST(test_launch_notices_a_killed_mpirun),
        TEST(test_launch_ends_the_others_when_a_rank_is_killed),
        TEST(test_launch_closed_early_cleans_up_and_is_silent),
        TEST(test_launch_kills_what_outlives_mpirun),
        TEST(test_launch_removes_what_dead_coordinators_left),
        TEST(test_launch_rank_holds_its_directory_against_sweeps),
        TEST(test_launch_keeper_clears_up_after_its_coordinator),
        TEST(test_launch_keeper_touches_nothing_else),
        TEST(test_launch_leaves_choices_that_the_user_made),
        TEST(test_launch_runs_a_command_and_hands_on_its_output),
        TEST(test_launch_puts_the_prefix_before_mpirun),
        TEST(test_launch_refuses_what_cannot_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
