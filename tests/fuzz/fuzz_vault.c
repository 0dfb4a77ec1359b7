/* What a token endpoint answers, what of an answer is shown, and URLs of MCP servers. Properties: an accepted token can stand in a header line; a shown error
 * code is a word; a secret (the end of the input, of as many bytes as the first one says) is not in what is shown; normalising twice is normalising once. */
#include <stdio.h>
#include <string.h>

#include "server/vault/private.h"

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len);

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)
#define HIDDEN_INSIDE 8              /* "redacted": a shorter secret may stand in the mark itself */

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    struct fresh f = { 0 };
    struct note n = { 0 };
    struct buf url, again;
    char code[64];
    if (token_answer((const char *)in, len, 1000, &f, NULL) == RC_OK) {
        const char *t = secret_text(f.access_token);
        REQUIRE(t[0] && strlen(t) == secret_len(f.access_token) && (f.expires_ms == -1 || f.expires_ms > 1000));
        for (; *t; t++)
            REQUIRE((unsigned char)*t > ' ' && (unsigned char)*t < 127);
        fresh_done(&f);
    }
    token_error((const char *)in, len, code);
    REQUIRE(strspn(code, "abcdefghijklmnopqrstuvwxyz_") == strlen(code));

    size_t k = len ? in[0] % 32 : 0, from = len > k ? len - k : 0;
    AUTO_PTR(secret) s = secret_new((const char *)in + from, len - from);
    const struct secret *hide[] = { s };
    note_set(&n, 200, "x", (const char *)in, len, hide, 1);
    if (secret_len(s) > HIDDEN_INSIDE && strcspn(secret_text(s), "[]") == secret_len(s))      /* nor one that a mark completes */
        REQUIRE(!strstr(n.body, secret_text(s)));
    REQUIRE(strlen(n.body) <= SHOWN_MAX);
    note_done(&n);

    AUTO_FREE char *text = str_ndup((const char *)in, len);
    buf_init(&url, 64 * KIB);
    buf_init(&again, 64 * KIB);
    if (vault_normalize_url(text, &url, NULL) == RC_OK) {
        REQUIRE(vault_normalize_url(buf_data(&url), &again, NULL) == RC_OK);
        REQUIRE(str_eq(buf_data(&url), buf_data(&again)));
    }
    buf_done(&url);
    buf_done(&again);
    return 0;
}
