#include "server/api/cursor.h"

#include <string.h>

#include "base/base64.h"
#include "base/buf.h"
#include "base/str.h"
#include "crypto/crypto.h"

/* version 1: kind, flags, position (8 bytes, big endian), id, checksum (4 bytes) */
#define CURSOR_VERSION 1
#define HEAD_BYTES 11
#define SUM_BYTES 4
#define RAW_MAX (HEAD_BYTES + ID_MAX + SUM_BYTES)
enum { FLAG_ASC = 1, FLAG_BACKWARD = 2 };

static void checksum(const uint8_t *raw, size_t n, const char *scope, uint8_t out[SUM_BYTES])
{
    uint8_t sum[SHA256_BYTES];
    hmac_sha256(scope, strlen(scope), raw, n, sum);
    memcpy(out, sum, SUM_BYTES);
}

void cursor_encode(const struct cursor *c, const char *scope, char out[CURSOR_MAX])
{
    uint8_t raw[RAW_MAX] = { CURSOR_VERSION, (uint8_t)c->kind, (uint8_t)((c->asc ? FLAG_ASC : 0) | (c->backward ? FLAG_BACKWARD : 0)) };
    for (int i = 0; i < 8; i++)
        raw[3 + i] = (uint8_t)((uint64_t)c->pos >> (56 - 8 * i));
    size_t id_n = strnlen(c->id, ID_MAX - 1), n = HEAD_BYTES + id_n;
    memcpy(raw + HEAD_BYTES, c->id, id_n);
    checksum(raw, n, scope, raw + n);
    struct buf b;
    buf_init(&b, CURSOR_MAX - 1);
    (void)base64url_encode(&b, raw, n + SUM_BYTES);
    str_copy(out, CURSOR_MAX, buf_data(&b));
    buf_done(&b);
}

static int decode_raw(const char *text, uint8_t raw[RAW_MAX], size_t *ret_n)
{
    size_t len = strlen(text);
    if (len == 0 || len >= CURSOR_MAX)
        return RC_INVALID;
    struct buf b;
    buf_init(&b, RAW_MAX + 8);
    int rc = base64_decode(&b, text, len);
    size_t n = buf_len(&b);
    if (rc == RC_OK && (n < HEAD_BYTES + SUM_BYTES || n > RAW_MAX - 1))
        rc = RC_INVALID;
    if (rc == RC_OK) {
        memcpy(raw, buf_data(&b), n);
        *ret_n = n;
    }
    buf_done(&b);
    return rc;
}

int cursor_decode(const char *text, enum cursor_kind kind, bool asc, const char *scope, struct cursor *ret, struct err *e)
{
    uint8_t raw[RAW_MAX], sum[SUM_BYTES];
    size_t n = 0;
    if (decode_raw(text, raw, &n) != RC_OK || raw[0] != CURSOR_VERSION || raw[1] == 0 || raw[1] >= CURSOR_KIND_MAX_ || raw[2] > 3)
        return err_set(e, RC_INVALID, "page: not a page cursor of this API");
    checksum(raw, n - SUM_BYTES, scope, sum);
    if (raw[1] != kind || !crypto_equal(sum, raw + n - SUM_BYTES, SUM_BYTES))
        return err_set(e, RC_INVALID, "page: the cursor is damaged or belongs to another list");
    struct cursor c = { .kind = kind, .asc = raw[2] & FLAG_ASC, .backward = raw[2] & FLAG_BACKWARD };
    if (c.asc != asc)
        return err_set(e, RC_INVALID, "page: the cursor was made with the other `order`");
    uint64_t pos = 0;
    for (int i = 0; i < 8; i++)
        pos = pos << 8 | raw[3 + i];
    c.pos = (int64_t)pos;
    memcpy(c.id, raw + HEAD_BYTES, n - HEAD_BYTES - SUM_BYTES);
    char canonical[CURSOR_MAX];
    cursor_encode(&c, scope, canonical);
    if (!str_eq(canonical, text))      /* one text per position; also refuses ids with a NUL inside */
        return err_set(e, RC_INVALID, "page: not a page cursor of this API");
    *ret = c;
    return RC_OK;
}
