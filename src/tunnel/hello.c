/* tunnel/hello.c - ClientHello to server name (RFC 8446 4.1.2 and 5.1, RFC 6066 3). The message is first put together from its records, then
 * checked as a whole: a hello is answered only when all of it is there, so no byte of the name can be missing. */
#include "tunnel/hello.h"

#include <string.h>

#include "base/rc.h"

#define RECORD_HEAD 5
#define RECORD_HANDSHAKE 22
#define RECORD_BODY_MAX 16384u
#define MESSAGE_HEAD 4
#define MESSAGE_CLIENT_HELLO 1
#define EXT_SERVER_NAME 0
#define NAME_HOST 0

struct cut { const uint8_t *p; size_t n; };     /* what is left to read */

static bool take(struct cut *c, size_t n, struct cut *ret)
{
    if (n > c->n)
        return false;
    *ret = (struct cut){ c->p, n };
    c->p += n;
    c->n -= n;
    return true;
}

static bool number(struct cut *c, size_t width, size_t *ret)
{
    struct cut b;
    if (!take(c, width, &b))
        return false;
    *ret = 0;
    for (size_t i = 0; i < width; i++)
        *ret = *ret << 8 | b.p[i];
    return true;
}

/* A part behind its own length of `width` bytes. */
static bool vector(struct cut *c, size_t width, struct cut *ret)
{
    size_t n;
    return number(c, width, &n) && take(c, n, ret);
}

/* Puts the message together in `mem` and gives its body. */
static int assemble(const uint8_t *p, size_t n, uint8_t mem[HELLO_MAX], struct cut *ret)
{
    size_t at = 0, have = 0, need = MESSAGE_HEAD;
    bool headed = false;
    while (have < need) {
        size_t left = n - at;
        if ((left > 0 && p[at] != RECORD_HANDSHAKE) || (left > 1 && p[at + 1] != 3))
            return RC_INVALID;
        if (left < RECORD_HEAD)
            return n >= HELLO_MAX ? RC_TOO_LARGE : RC_AGAIN;
        size_t body = (size_t)p[at + 3] << 8 | p[at + 4];
        if (body == 0 || body > RECORD_BODY_MAX)
            return RC_INVALID;
        size_t part = body < left - RECORD_HEAD ? body : left - RECORD_HEAD;
        bool whole = part == body;
        if (part > HELLO_MAX - have)
            part = HELLO_MAX - have;        /* what stands behind the message is not ours to keep */
        memcpy(mem + have, p + at + RECORD_HEAD, part);
        have += part;
        at += RECORD_HEAD + body;
        if (have > 0 && mem[0] != MESSAGE_CLIENT_HELLO)
            return RC_INVALID;
        if (!headed && have >= MESSAGE_HEAD) {
            headed = true;
            need += (size_t)mem[1] << 16 | (size_t)mem[2] << 8 | mem[3];
            if (need > HELLO_MAX - RECORD_HEAD)
                return RC_TOO_LARGE;
        }
        if (have < need && !whole)
            return n >= HELLO_MAX ? RC_TOO_LARGE : RC_AGAIN;
        if (at > HELLO_MAX && have < need)
            return RC_TOO_LARGE;
    }
    *ret = (struct cut){ mem + MESSAGE_HEAD, need - MESSAGE_HEAD };
    return RC_OK;
}

/* A host name as it may stand in a certificate, in lower case: a name with anything else in it is no name of ours. */
static bool host_name(struct cut c, char name[HELLO_NAME_MAX])
{
    if (c.n == 0 || c.n >= HELLO_NAME_MAX)
        return false;
    char before = '.';
    for (size_t i = 0; i < c.n; i++) {
        char ch = (char)c.p[i];
        if (ch >= 'A' && ch <= 'Z')
            ch = (char)(ch - 'A' + 'a');
        bool good = (ch >= 'a' && ch <= 'z') || (ch >= '0' && ch <= '9') || ch == '-' || ch == '_' || (ch == '.' && before != '.');
        if (!good)
            return false;
        name[i] = before = ch;
    }
    name[c.n] = '\0';
    return before != '.';
}

static bool server_name(struct cut ext, char name[HELLO_NAME_MAX])
{
    struct cut list, host;
    if (!vector(&ext, 2, &list) || ext.n != 0 || list.n == 0)
        return false;
    bool found = false;
    while (list.n > 0) {
        size_t type;
        if (!number(&list, 1, &type) || !vector(&list, 2, &host))
            return false;
        if (type != NAME_HOST)
            continue;
        if (found || !host_name(host, name))    /* RFC 6066: not two names of one type */
            return false;
        found = true;
    }
    return true;
}

static bool client_hello(struct cut c, char name[HELLO_NAME_MAX])
{
    struct cut part, exts;
    name[0] = '\0';
    if (!take(&c, 2 + 32, &part) || part.p[0] != 3)                             /* version, random */
        return false;
    if (!vector(&c, 1, &part) || part.n > 32)                                   /* session id */
        return false;
    if (!vector(&c, 2, &part) || part.n < 2 || part.n % 2)                      /* cipher suites */
        return false;
    if (!vector(&c, 1, &part) || part.n < 1)                                    /* compression */
        return false;
    if (c.n == 0)                                                               /* TLS 1.2 may leave the extensions out */
        return true;
    if (!vector(&c, 2, &exts) || c.n != 0)
        return false;
    bool found = false;
    while (exts.n > 0) {
        size_t type;
        if (!number(&exts, 2, &type) || !vector(&exts, 2, &part))
            return false;
        if (type != EXT_SERVER_NAME)
            continue;
        if (found || !server_name(part, name))
            return false;
        found = true;
    }
    return true;
}

int hello_name(const uint8_t *p, size_t n, char name[HELLO_NAME_MAX])
{
    uint8_t mem[HELLO_MAX];
    struct cut body;
    TRY(assemble(p, n, mem, &body));
    char found[HELLO_NAME_MAX];
    if (!client_hello(body, found))
        return RC_INVALID;
    memcpy(name, found, strlen(found) + 1);
    return RC_OK;
}
