/* What jansson does when memory is short. Its lexer (2.14) takes no notice when its buffer cannot grow: it reads behind the end of the
 * buffer, or stops at an assertion; so nothing else may parse. Whoever builds values loses members without notice; so who builds asks
 * afterwards. Any thread; knows no file and no API. */
#ifndef TD_SHARD_JSONALLOC_H
#define TD_SHARD_JSONALLOC_H

#include "kernels/base/bytes.h"

#include <jansson.h>

/* As json_loadb of `text` with its `flags`; the value is returned owned (json_decref). NULL: no valid JSON, with place and reason in
 * *why, which may be NULL; json_error_code is json_error_out_of_memory when, and only when, memory was short. */
json_t *td_jsonalloc_parse(struct td_str text, size_t flags, json_error_t *why);

/* How often jansson found no memory on this thread. A text of values that were built meanwhile is whole where it has not risen. */
uint64_t td_jsonalloc_failures(void);

#endif
