/* Page cursors: a text that is accepted is the one text of its position; every position survives the round trip. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "server/api/cursor.h"

#define REQUIRE(x) do { if (!(x)) abort(); } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    struct cursor c, d;
    char text[CURSOR_MAX], *raw = str_ndup((const char *)in, len);
    for (int kind = 1; kind < CURSOR_KIND_MAX_; kind++)
        for (int asc = 0; asc < 2; asc++) {
            if (cursor_decode(raw, (enum cursor_kind)kind, asc, "s", &c, NULL) != RC_OK)
                continue;
            cursor_encode(&c, "s", text);
            REQUIRE(strcmp(text, raw) == 0);
            REQUIRE(cursor_decode(text, (enum cursor_kind)kind, !asc, "s", &d, NULL) == RC_INVALID);
        }
    free(raw);
    if (len < 10)
        return 0;
    c = (struct cursor){ .kind = (enum cursor_kind)(1 + in[0] % (CURSOR_KIND_MAX_ - 1)), .asc = in[1] & 1, .backward = in[1] & 2 };
    memcpy(&c.pos, in + 2, 8);
    for (size_t i = 10; i < len && i - 10 < ID_MAX - 1; i++)
        c.id[i - 10] = (char)(in[i] ? in[i] : 'x');
    cursor_encode(&c, "", text);
    REQUIRE(strlen(text) < CURSOR_MAX - 1);
    REQUIRE(cursor_decode(text, c.kind, c.asc, "", &d, NULL) == RC_OK);
    REQUIRE(d.pos == c.pos && d.backward == c.backward && strcmp(d.id, c.id) == 0);
    return 0;
}
