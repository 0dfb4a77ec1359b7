/* tunnel/token.c - the connector token. Its JSON is read by a scanner of our own: a flat object of short strings needs no tree, and nothing of the
 * secret is left in memory that nobody wipes. */
#include "tunnel/token.h"

#include <string.h>

#include "base/base64.h"
#include "base/random.h"
#include "base/secret.h"
#include "base/str.h"
#include "tunnel/proto.h"

#define SECRET_BYTES 32
#define SECRET_TEXT_MAX 512
#define KEYS_MAX 16             /* members of the object; unknown ones are passed over */

struct scan { const char *p, *end; };

static void skip_space(struct scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\r' || *s->p == '\n'))
        s->p++;
}

static bool expect(struct scan *s, char c)
{
    skip_space(s);
    if (s->p == s->end || *s->p != c)
        return false;
    s->p++;
    return true;
}

/* \u00XX of a printable ASCII character: Go's encoder writes <, > and & in this form. */
static bool unicode_escape(struct scan *s, char *ret)
{
    unsigned v = 0;
    if (s->end - s->p < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        char c = *s->p++;
        unsigned d = c >= '0' && c <= '9' ? (unsigned)(c - '0') : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10 : 99;
        if (d == 99)
            return false;
        v = v << 4 | d;
    }
    *ret = (char)v;
    return v >= 0x20 && v < 0x7f;
}

/* One string of printable ASCII into `out`. */
static bool string(struct scan *s, char *out, size_t cap)
{
    if (!expect(s, '"'))
        return false;
    for (size_t n = 0; s->p < s->end; n++) {
        char c = *s->p++;
        if (c == '"') {
            out[n] = '\0';
            return true;
        }
        if (n + 1 >= cap || c < 0x20 || c >= 0x7f)
            return false;
        if (c == '\\') {
            if (s->p == s->end)
                return false;
            c = *s->p++;
            if (c == 'u' ? !unicode_escape(s, &c) : c != '"' && c != '\\' && c != '/')
                return false;
        }
        out[n] = c;
    }
    return false;
}

/* A value nobody asked for: a string, a number, true, false or null. */
static bool skip_value(struct scan *s)
{
    char text[SECRET_TEXT_MAX];
    skip_space(s);
    if (s->p < s->end && *s->p == '"') {
        bool ok = string(s, text, sizeof text);
        wipe(text, sizeof text);
        return ok;
    }
    const char *from = s->p;
    while (s->p < s->end && ((*s->p >= 'a' && *s->p <= 'z') || (*s->p >= '0' && *s->p <= '9') || *s->p == '-' || *s->p == '+' || *s->p == '.' || *s->p == 'E'))
        s->p++;
    return s->p > from;
}

struct fields { struct tunnel_token t; char secret[SECRET_TEXT_MAX]; };

static bool object(struct scan *s, struct fields *f)
{
    struct { const char *key; char *out; size_t cap; bool seen; } known[] = {
        { "a", f->t.account, sizeof f->t.account, false }, { "s", f->secret, sizeof f->secret, false },
        { "t", f->t.tunnel_id, sizeof f->t.tunnel_id, false }, { "e", f->t.endpoint, sizeof f->t.endpoint, false },
    };
    if (!expect(s, '{'))
        return false;
    for (int i = 0; i < KEYS_MAX; i++) {
        char key[32];
        if (!string(s, key, sizeof key) || !expect(s, ':'))
            return false;
        size_t k = 0;
        while (k < COUNT_OF(known) && !str_eq(known[k].key, key))
            k++;
        if (k == COUNT_OF(known) ? !skip_value(s) : known[k].seen || !string(s, known[k].out, known[k].cap))
            return false;
        if (k < COUNT_OF(known))
            known[k].seen = true;
        if (expect(s, ','))
            continue;
        if (!expect(s, '}'))
            return false;
        skip_space(s);
        return s->p == s->end;
    }
    return false;
}

/* Ids become parts of paths, log lines and headers. */
static bool is_id(const char *s)
{
    return s[strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")] == '\0';
}

static bool is_endpoint(const char *s)
{
    return s[strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:[]/,")] == '\0';
}

int tunnel_token_parse(const char *text, size_t n, struct tunnel_token *ret, struct err *e)
{
    if (n == 0)
        return err_set(e, RC_INVALID, "the tunnel token is empty");
    if (n > PROTO_TOKEN_MAX)
        return err_set(e, RC_INVALID, "the tunnel token is longer than %d characters", PROTO_TOKEN_MAX);
    struct buf json, secret;
    struct fields f = { 0 };
    buf_init(&json, PROTO_TOKEN_MAX);
    buf_init(&secret, SECRET_TEXT_MAX);
    int rc = RC_OK;
    if (base64_decode(&json, text, n) < 0)
        rc = err_set(e, RC_INVALID, "the tunnel token is no base64 text: it may be cut or hold line breaks");
    if (rc == RC_OK) {
        struct scan s = { buf_data(&json), buf_data(&json) + buf_len(&json) };
        if (!object(&s, &f) || !is_id(f.t.account) || !is_id(f.t.tunnel_id) || !is_endpoint(f.t.endpoint))
            rc = err_set(e, RC_INVALID, "the tunnel token has not the form of one: it may be cut");
        else if (!f.t.tunnel_id[0])
            rc = err_set(e, RC_INVALID, "the tunnel token names no tunnel");
        else if (!f.secret[0] || base64_decode(&secret, f.secret, strlen(f.secret)) < 0 || buf_len(&secret) == 0)
            rc = err_set(e, RC_INVALID, "the tunnel token holds no secret");
    }
    if (rc == RC_OK)
        *ret = f.t;
    buf_wipe(&json);
    buf_wipe(&secret);
    wipe(&f, sizeof f);
    return rc;
}

int tunnel_token_make(const char *account, const char *tunnel_id, const char *endpoint, struct buf *ret, struct err *e)
{
    if (!endpoint)
        endpoint = "";
    if (strlen(account) >= sizeof ((struct tunnel_token *)0)->account || !is_id(account) || !tunnel_id[0] || strlen(tunnel_id) >= TOKEN_TUNNEL_MAX || !is_id(tunnel_id)
        || strlen(endpoint) >= TOKEN_ENDPOINT_MAX || !is_endpoint(endpoint))
        return err_set(e, RC_INVALID, "account, tunnel id or endpoint of a tunnel token is too long or has a character that is not allowed");
    uint8_t secret[SECRET_BYTES];
    struct buf json;
    buf_init(&json, PROTO_TOKEN_MAX);
    (void)buf_reserve(&json, PROTO_TOKEN_MAX);      /* it never moves, so no copy is left behind */
    random_bytes(secret, sizeof secret);
    (void)buf_printf(&json, "{\"a\":\"%s\",\"t\":\"%s\",\"s\":\"", account, tunnel_id);
    (void)base64_encode(&json, secret, sizeof secret);
    (void)buf_puts(&json, "\"");
    if (endpoint[0])
        (void)buf_printf(&json, ",\"e\":\"%s\"", endpoint);
    (void)buf_puts(&json, "}");
    int rc = buf_ok(&json) ? base64_encode(ret, buf_data(&json), buf_len(&json)) : RC_NOMEM;
    buf_wipe(&json);
    wipe(secret, sizeof secret);
    return rc < 0 ? err_set(e, rc, "the tunnel token does not fit") : RC_OK;
}
