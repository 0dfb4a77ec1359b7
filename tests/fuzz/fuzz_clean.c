/* Terminal output made text. Properties: never longer, no ESC and no CR left, a second time changes nothing, the tail is never longer than asked for and
 * begins at no continuation byte unless the text is no UTF-8. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inside/clean.h"
#include "inside/view.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    if (len < 1)
        return 0;
    size_t keep = in[0], n = len - 1, off = 0, part = 0;
    char *p = malloc(n ? n : 1), *q = malloc(n ? n : 1);
    memcpy(p, in + 1, n);
    size_t m = clean_output(p, n);
    REQUIRE(m <= n && !memchr(p, 0x1b, m) && !memchr(p, '\r', m));
    memcpy(q, p, m);
    REQUIRE(clean_output(q, m) == m && memcmp(p, q, m) == 0);
    size_t t = clean_trimmed(p, m), from = clean_tail(p, t, keep);
    REQUIRE(t <= m && from <= t && t - from <= keep);
    int rc = view_lines(p, m, (int)keep - 4, (int)(keep >> 4) - 2, &off, &part);
    REQUIRE(rc == -1 || (rc == 0 && off + part <= m));
    free(p);
    free(q);
    return 0;
}
