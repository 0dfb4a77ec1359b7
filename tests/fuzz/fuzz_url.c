/* Percent-decoding. Properties: valid UTF-8 without NUL, never longer than the input, exact about the room, and encoding every byte of the
 * result decodes to the result. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rc.h"
#include "base/utf8.h"
#include "http/parse.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    if (len < 1 || len > 4096)
        return 0;
    bool plus = in[0] & 1;
    struct slice s = { (const char *)in + 1, len - 1 };
    char *out = malloc(s.n + 1);
    int rc = http_pct_decode(s, plus, out, s.n + 1);
    REQUIRE(rc == RC_OK || rc == RC_INVALID);
    if (rc == RC_OK) {
        size_t n = strlen(out);
        REQUIRE(n <= s.n && utf8_valid_prefix(out, n) == n);
        char *tight = malloc(n + 1), *enc = malloc(3 * n + 1);
        REQUIRE(http_pct_decode(s, plus, tight, n + 1) == RC_OK && memcmp(tight, out, n + 1) == 0);
        REQUIRE(http_pct_decode(s, plus, tight, n) == RC_TOO_LARGE);
        for (size_t i = 0; i < n; i++)
            snprintf(enc + 3 * i, 4, "%%%02x", (unsigned char)out[i]);
        REQUIRE(http_pct_decode((struct slice){ enc, 3 * n }, plus, tight, n + 1) == RC_OK && memcmp(tight, out, n + 1) == 0);
        free(tight);
        free(enc);
    }
    free(out);
    return 0;
}
