/* cmocka with the headers that it needs before it, in the order that it needs, and a skip that says why. */
#ifndef TD_TESTS_UNIT_CHECK_H
#define TD_TESTS_UNIT_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

/* Ends the test as skipped. `reason` is a literal that begins with the kind: "gpu: ...", "root: ...", "cpu: ..." are
 * allowed everywhere, "shared: ..." only where ../shared is absent; tests/run.sh fails on any other. */
#define TD_SKIP(reason)                                                                            \
    do {                                                                                           \
        printf("skipped: %s: %s\n", __func__, reason);                                             \
        fflush(stdout);                                                                            \
        skip();                                                                                    \
    } while (0)

#endif
