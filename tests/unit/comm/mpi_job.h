/* For a test that starts itself under mpirun: the job, its folder, and the files in which its ranks leave what the parent
 * reads. The parent asserts; a rank only writes. */
#ifndef TD_TESTS_UNIT_COMM_MPI_JOB_H
#define TD_TESTS_UNIT_COMM_MPI_JOB_H

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

extern char **environ;

struct mpi_job {
    char dir[40]; /* everything that the job leaves in memory file systems is in it */
    pid_t pid;    /* of mpirun */
};

static inline void job_pause_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};

    nanosleep(&ts, NULL);
}

static inline void job_path(char *out, size_t out_bytes, const char *dir, const char *name,
                            uint32_t rank)
{
    snprintf(out, out_bytes, "%s/%s.%u", dir, name, rank);
}

/* ---- one rank ---- */

/* Leaves `text` as the file NAME.RANK, which is there whole or not at all. */
static inline void job_leave(const char *dir, const char *name, uint32_t rank, const char *text)
{
    char path[512], draft[600];
    FILE *f;

    job_path(path, sizeof path, dir, name, rank);
    snprintf(draft, sizeof draft, "%s.part", path);
    f = fopen(draft, "w");
    if (!f || fprintf(f, "%s", text) < 0 || fclose(f) != 0 || rename(draft, path) != 0)
        exit(3);
}

static inline bool job_has_left(const char *dir, const char *name, uint32_t rank)
{
    char path[512];

    job_path(path, sizeof path, dir, name, rank);
    return access(path, F_OK) == 0;
}

/* ---- the parent ---- */

/* As the program itself sets Open MPI up, and root and more ranks than cores are welcome. */
static inline void job_set_environment(void)
{
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 1);
    setenv("OMPI_MCA_pml", "ob1", 1);
    setenv("OMPI_MCA_btl", "self,vader,tcp", 1);
    setenv("OMPI_MCA_osc", "^ucx", 1);
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 1);
    /* Open MPI keeps memory until the process ends. */
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
}

/* Returns when mpirun is there; else says so and skips. */
static inline void job_need_mpirun(void)
{
    const char *path = getenv("PATH");
    char try[4096];

#ifdef __SANITIZE_THREAD__
    print_message("SKIPPED: Open MPI is not built for ThreadSanitizer\n");
    skip();
#endif
    for (const char *at = path; at && *at;) {
        size_t len = strcspn(at, ":");

        snprintf(try, sizeof try, "%.*s/mpirun", (int)len, at);
        if (access(try, X_OK) == 0)
            return;
        at += len + (at[len] == ':');
    }
    print_message("SKIPPED: no mpirun in PATH (Debian: openmpi-bin)\n");
    skip();
}

/* Starts `words`, of which the first is mpirun and "DIR" stands for the job's folder; mpirun's own words go to a file. */
static inline void job_start(struct mpi_job *job, const char *const *words)
{
    enum { MOST = 24 };
    char *argv[MOST + 1] = {NULL};
    char log[64];
    posix_spawn_file_actions_t actions;
    int rc;

    strcpy(job->dir, "/dev/shm/tensord-comm-XXXXXX");
    assert_non_null(mkdtemp(job->dir));
    for (size_t i = 0; words[i]; i++) {
        assert_true(i < MOST);
        argv[i] = strcmp(words[i], "DIR") == 0 ? job->dir : (char *)(uintptr_t)words[i];
    }
    snprintf(log, sizeof log, "%s/log", job->dir);
    setenv("OMPI_MCA_orte_tmpdir_base", job->dir, 1);
    setenv("OMPI_MCA_btl_vader_backing_directory", job->dir, 1);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    rc = posix_spawnp(&job->pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    assert_int_equal(rc, 0);
}

/* Whether mpirun has ended and was reaped. */
static inline bool job_has_ended(struct mpi_job *job)
{
    int status;

    if (job->pid > 0 && waitpid(job->pid, &status, WNOHANG) == job->pid)
        job->pid = 0;
    return job->pid == 0;
}

/* Waits for the job's end; after limit_ms it is killed, and the answer is false. */
static inline bool job_await(struct mpi_job *job, int limit_ms)
{
    for (int waited = 0; waited < limit_ms; waited += 5) {
        if (job_has_ended(job))
            return true;
        job_pause_ms(5);
    }
    kill(job->pid, SIGKILL);
    waitpid(job->pid, NULL, 0);
    job->pid = 0;
    return false;
}

/* The text of the file NAME.RANK; false when there is none. */
static inline bool job_read(const struct mpi_job *job, const char *name, uint32_t rank, char *out,
                            size_t out_bytes)
{
    char path[128];
    FILE *f;

    job_path(path, sizeof path, job->dir, name, rank);
    f = fopen(path, "r");
    if (!f)
        return false;
    out[fread(out, 1, out_bytes - 1, f)] = '\0';
    fclose(f);
    return true;
}

/* What mpirun and the ranks have printed, for a test that fails. */
static inline void job_print_log(const struct mpi_job *job)
{
    char path[128], line[512];
    FILE *f;

    snprintf(path, sizeof path, "%s/log", job->dir);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        print_error("%s", line);
    if (f)
        fclose(f);
}

static inline int job_remove_entry(const char *path, const struct stat *st, int kind,
                                   struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    remove(path);
    return 0;
}

static inline void job_remove(const struct mpi_job *job)
{
    nftw(job->dir, job_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
