/* inside/clean.h - terminal output made plain text. Pure. */
#pragma once

#include <stddef.h>

/* In place: escape sequences (CSI, OSC) and stray ESC go away; CR LF becomes LF; what a lone CR lets later text write over is gone, as
 * on a terminal ("10%\r20%\n" is "20%\n"). Returns the new length. Linear; running it twice changes nothing more. */
size_t clean_output(char *p, size_t n);
/* Length without the line feeds at the end. */
size_t clean_trimmed(const char *p, size_t n);
/* Where to begin when only the last `keep` bytes stay: never inside a UTF-8 sequence, at the start of a line when one is near. */
size_t clean_tail(const char *p, size_t n, size_t keep);
