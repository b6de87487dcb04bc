#include "shard/offload.h"

#include "tests/unit/check.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLOT_BYTES = 1000, N_MEMORY = 3, N_FILE = 4 };

static const struct td_offload_params small = {
    .n_slots = {N_MEMORY, N_FILE}, .slot_bytes = SLOT_BYTES, .dir = "/tmp"};

static void put(struct td_offload *o, uint32_t slot, uint8_t first)
{
    uint8_t *bytes = td_offload_begin(o, slot);

    for (uint32_t i = 0; i < SLOT_BYTES; i++)
        bytes[i] = (uint8_t)(first + i * 7);
    assert_int_equal(td_offload_put(o, slot, NULL), TD_OK);
}

static void expect(struct td_offload *o, uint32_t slot, uint8_t first)
{
    const void *got;
    const uint8_t *bytes;

    assert_int_equal(td_offload_get(o, slot, &got, NULL), TD_OK);
    bytes = got;
    for (uint32_t i = 0; i < SLOT_BYTES; i++)
        assert_int_equal(bytes[i], (uint8_t)(first + i * 7));
}

static void test_offload_gives_back_what_each_slot_got(void **state)
{
    struct td_offload *o;
    const void *bytes;
    struct td_err err;

    (void)state;
    assert_int_equal(td_offload_open(&small, &o, &err), TD_OK);
    for (uint32_t i = 0; i < N_MEMORY + N_FILE; i++)
        assert_int_equal(td_offload_get(o, i, &bytes, &err), TD_NOT_FOUND);
    for (uint32_t i = N_MEMORY + N_FILE; i-- > 0;)
        put(o, i, (uint8_t)(i * 11));
    for (uint32_t i = 0; i < N_MEMORY + N_FILE; i++)
        expect(o, i, (uint8_t)(i * 11));
    put(o, 1, 200);
    put(o, N_MEMORY + 1, 201);
    expect(o, N_MEMORY + 1, 201);
    expect(o, 1, 200);
    td_offload_begin(o, 2); /* begun and not put */
    assert_int_equal(td_offload_get(o, 2, &bytes, &err), TD_NOT_FOUND);
    td_offload_close(o);
}

/* The file of this process without a name, by its size. */
static int find_file(void)
{
    for (int fd = 3; fd < 64; fd++) {
        struct stat st;

        if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 0 &&
            st.st_size == N_FILE * SLOT_BYTES)
            return fd;
    }
    return -1;
}

static void test_offload_notices_a_changed_byte_in_the_file_and_in_memory(void **state)
{
    struct td_offload *o;
    struct td_err err;
    const void *bytes;
    struct stat st;
    uint8_t byte;
    int fd;

    (void)state;
    assert_int_equal(td_offload_open(&small, &o, &err), TD_OK);
    put(o, N_MEMORY + 2, 5);
    put(o, N_MEMORY + 3, 6);
    put(o, 0, 7);
    fd = find_file();
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(pread(fd, &byte, 1, 2 * SLOT_BYTES + 999), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, 2 * SLOT_BYTES + 999), 1);
    assert_int_equal(td_offload_get(o, N_MEMORY + 2, &bytes, &err), TD_CORRUPT);
    assert_non_null(strstr(err.cause, "slot 5 (file) has checksum"));
    expect(o, N_MEMORY + 3, 6);
    assert_int_equal(td_offload_get(o, 0, &bytes, &err), TD_OK);
    ((uint8_t *)(uintptr_t)bytes)[3] ^= 1;
    assert_int_equal(td_offload_get(o, 0, &bytes, &err), TD_CORRUPT);
    assert_non_null(strstr(err.cause, "slot 0 (memory) has checksum"));
    assert_int_equal(ftruncate(fd, 3 * SLOT_BYTES), 0);
    assert_int_equal(td_offload_get(o, N_MEMORY + 3, &bytes, &err), TD_IO);
    assert_non_null(strstr(err.cause, "it ends early"));
    td_offload_close(o);
}

static void test_offload_open_names_the_folder_that_cannot_be_used(void **state)
{
    struct td_offload_params p = small;
    struct td_offload *o;
    struct td_err err;

    (void)state;
    p.dir = "/nonexistent/folder";
    assert_int_equal(td_offload_open(&p, &o, &err), TD_IO);
    assert_non_null(strstr(err.cause, "'/nonexistent/folder'"));
    td_offload_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offload_gives_back_what_each_slot_got),
        cmocka_unit_test(test_offload_notices_a_changed_byte_in_the_file_and_in_memory),
        cmocka_unit_test(test_offload_open_names_the_folder_that_cannot_be_used),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
