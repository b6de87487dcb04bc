/* An Open MPI hostfile, as the coordinator reads it and as it writes the next one. */
#include "tests/fuzz/fuzz.h"

#include "daemon/coordinator/hosts.h"

#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t n_wished;
    struct td_str text = fuzz_split(data, size, &n_wished);
    struct td_hosts *hosts = NULL;
    struct td_err err = {0};
    const char *next;
    char path[64];
    uint32_t n_ranks = 0;
    int fd = memfd_create("hostfile", 0);

    FUZZ_CHECK(fd >= 0 && write(fd, text.ptr, text.len) == (ssize_t)text.len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    enum td_status status = td_hosts_open(path, &hosts, &err);
    fuzz_check_err(status, &err);
    if (status == TD_OK) {
        td_hosts_blame(hosts, "h1", true, 1000);
        status = td_hosts_choose(hosts, 1u + n_wished, 2000, &next, &n_ranks, &err);
        FUZZ_CHECK(status || (n_ranks >= 1 && n_ranks <= 1u + n_wished));
    }
    td_hosts_close(hosts);
    close(fd);
    return 0;
}
