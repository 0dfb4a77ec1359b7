/* inside/view.h - a range of lines of a text. Pure. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Lines `first` to `last` (from 1, inclusive; first < 1 means 1, last <= 0 means the end), without the line feed of the last one. A range behind the
 * text is empty. 0, or -1 when last comes before first. */
int view_lines(const char *p, size_t n, int64_t first, int64_t last, size_t *ret_off, size_t *ret_n);
