#include "daemon/cli/resultfile.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum td_status td_resultfile_check(const char *flag, const char *path, struct td_err *err)
{
    FILE *f;

    if (!path)
        return TD_OK;
    f = fopen(path, "ae");
    if (!f)
        return td_err_set(err, TD_INVALID, "--%s: '%.160s' cannot be written: %s", flag, path,
                          strerror(errno));
    fclose(f);
    return TD_OK;
}

enum td_status td_resultfile_write(const char *flag, const char *path, struct td_str text,
                                   struct td_err *err)
{
    FILE *f = fopen(path, "we");
    bool ok = f && fwrite(text.ptr, 1, text.len, f) == text.len;

    if (f && fclose(f) != 0)
        ok = false;
    return ok ? TD_OK
              : td_err_set(err, TD_IO, "--%s: '%.160s' cannot be written: %s", flag, path,
                           strerror(errno));
}
