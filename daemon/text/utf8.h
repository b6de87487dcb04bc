/* Code points out of and into UTF-8 (Unicode 15, table 3-7). Pure functions. */
#ifndef TD_DAEMON_TEXT_UTF8_H
#define TD_DAEMON_TEXT_UTF8_H

#include "kernels/base/bytes.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What stands at the front of some bytes. */
enum td_utf8_front {
    TD_UTF8_CHAR,    /* a whole character */
    TD_UTF8_PARTIAL, /* the bytes end inside what may still become a character */
    TD_UTF8_BAD      /* no character can begin like this */
};

/* Looks at `s`, which is not empty. `n_bytes` is the character's length; for BAD the maximal subpart that one U+FFFD
 * stands for (Unicode 15, section 3.9); for PARTIAL all of `s`. `cp` is written for CHAR only. */
enum td_utf8_front td_utf8_decode(struct td_str s, uint32_t *cp, size_t *n_bytes);

/* Writes up to 4 bytes and returns how many; 0 for a surrogate or a value above U+10FFFF. */
size_t td_utf8_encode(uint32_t cp, char out[4]);

/* The Unicode property White_Space. */
bool td_utf8_is_space(uint32_t cp);

/* Bytes of white space at the front and at the end of well-formed `s`. */
size_t td_utf8_space_prefix(struct td_str s);
size_t td_utf8_space_suffix(struct td_str s);

#endif
