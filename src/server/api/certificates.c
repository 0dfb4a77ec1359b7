/* server/api/certificates.c - the authorities that a tunnel trusts (tunnels.md 2, 3.2). The MCP client reads them per dial, so that archiving one acts on the
 * next connection. */
#include <string.h>

#include "log/log.h"
#include "server/api/call.h"
#include "tls/cert.h"

#define LIMIT_DEFAULT 20
#define CERTIFICATES_ACTIVE_MAX 2        /* tunnels.md 2.4 */
#define EXPIRY_NOTICE_MS (14 * INT64_C(86400000))

static int no_certificate(struct call *c)
{
    return call_fail(c, RC_NOT_FOUND, "Certificate '%.60s' not found.", c->param[1]);
}

static int answer(struct call *c)
{
    struct store_tunnel_certificate k;
    int rc = c->store->ops->tunnel->certificate_get(c->store, c->arena, c->param[0], c->param[1], &k, &c->e);
    if (rc == RC_OK)
        view_certificate(&c->out, &k);
    return rc == RC_NOT_FOUND ? no_certificate(c) : rc;
}

int certificates_list(struct call *c)
{
    struct page p;
    struct store_tunnel t;
    struct store_tunnel_certificate *rows;
    size_t n, first;
    TRY(call_tunnel(c, &t));
    TRY(page_read(c, CURSOR_CERTIFICATES, t.id, false, LIMIT_DEFAULT, &p));
    TRY(c->store->ops->tunnel->certificate_list(c->store, c->arena, t.id, &p.st, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_certificate(&c->out, &rows[first + i]);
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}

static int refused(struct call *c, int rc, const char *tunnel_id)
{
    switch (rc) {
    case RC_NOT_FOUND: return call_fail(c, rc, "Tunnel '%.60s' not found.", tunnel_id);
    case RC_INVALID: return tunnel_archived(c, tunnel_id);
    case RC_LIMIT:
        return call_fail(c, RC_INVALID, "Tunnel '%.60s' already has the maximum of %d active certificates; archive one first.", tunnel_id, CERTIFICATES_ACTIVE_MAX);
    case RC_CONFLICT:
        c->no_retry = true;
        return call_fail(c, rc, "ca_certificate_pem: this certificate is registered on tunnel '%.60s' already.", tunnel_id);
    default: return rc;
    }
}

int certificates_create(struct call *c)
{
    const char *pem = js_str(c->body, "ca_certificate_pem");
    struct store_tunnel t;
    struct cert_info info;
    char id[ID_MAX];
    TRY(call_tunnel(c, &t));
    if (t.archived_ms >= 0)
        return tunnel_archived(c, t.id);
    int rc = cert_check_ca(pem, json_string_length(json_object_get(c->body, "ca_certificate_pem")), c->now_ms, &info, &c->e);
    if (rc < 0)
        return rc == RC_INVALID ? err_wrap(&c->e, rc, "ca_certificate_pem") : rc;
    id_new("tcrt", id);
    struct store_tunnel_certificate k = {
        .id = id, .tunnel_id = t.id, .fingerprint = info.fingerprint, .pem = pem, .expires_ms = info.not_after_ms, .created_ms = c->now_ms, .archived_ms = -1,
    };
    rc = c->store->ops->tunnel->certificate_add(c->store, &k, CERTIFICATES_ACTIVE_MAX, &c->e);
    if (rc < 0)
        return refused(c, rc, t.id);
    log_info("audit.tunnel_certificate_added", "tunnel_id=%s certificate_id=%s fingerprint=%s key_id=%s request_id=%s", t.id, id, info.fingerprint, c->who.key_id,
             c->request_id);
    if (info.not_after_ms < c->now_ms + EXPIRY_NOTICE_MS)
        log_warn("tunnel.certificate_expires", "tunnel_id=%s certificate_id=%s days=%lld", t.id, id, (long long)((info.not_after_ms - c->now_ms) / 86400000));
    view_certificate(&c->out, &k);
    return RC_OK;
}

int certificates_get(struct call *c)
{
    return answer(c);
}

int certificates_archive(struct call *c)
{
    struct store_tunnel_certificate k;
    int rc = c->store->ops->tunnel->certificate_get(c->store, c->arena, c->param[0], c->param[1], &k, &c->e);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_certificate(c) : rc;
    TRY(c->store->ops->tunnel->certificate_archive(c->store, k.tunnel_id, k.id, c->now_ms, &c->e));
    if (k.archived_ms < 0)
        log_info("audit.tunnel_certificate_archived", "tunnel_id=%s certificate_id=%s key_id=%s request_id=%s", k.tunnel_id, k.id, c->who.key_id, c->request_id);
    return answer(c);
}

/* An authority that has expired or soon will: connections to its tunnel end on that day, so it is said every time the server looks. */
void api_watch(struct api *a)
{
    struct err e = { 0 };
    struct store_tunnel_certificate *rows;
    size_t n;
    int64_t now = clock_now_ms();
    AUTO_PTR(arena) arena = arena_new(16 * KIB, CALL_ARENA_MAX);
    int rc = arena ? a->conf.store->ops->tunnel->certificates_expiring(a->conf.store, arena, now + EXPIRY_NOTICE_MS, &rows, &n, &e) : err_set(&e, RC_NOMEM, "out of memory");
    if (rc < 0)
        log_err(LOG_WARN, "tunnel.watch", &e);
    for (size_t i = 0; rc == RC_OK && i < n; i++) {
        char at[RFC3339_MAX];
        int64_t left = rows[i].expires_ms - now;
        rfc3339_format(rows[i].expires_ms, at);
        log_warn(left > 0 ? "tunnel.certificate_expires" : "tunnel.certificate_expired", "tunnel_id=%s certificate_id=%s expires_at=%s days=%lld", rows[i].tunnel_id,
                 rows[i].id, at, (long long)(left / 86400000));
    }
}
