/* server/api/tunnels.c - tunnels and their tokens (tunnels.md 2). A token's text is kept sealed, so that revealing it gives the same value until it is
 * rotated; every decision is taken from the store, so that a change acts on the next call. Each change writes an audit line. */
#include <string.h>

#include "base/random.h"
#include "base/secret.h"
#include "crypto/crypto.h"
#include "log/log.h"
#include "server/api/call.h"
#include "tunnel/proto.h"
#include "tunnel/token.h"

#define LIMIT_DEFAULT 20
#define TUNNELS_LIVE_MAX 10              /* tunnels.md 2.4 */
#define LABEL_LEN 8                      /* 41 bits: of a tunnel's own label below tunnel.domain */
#define LABEL_TRIES 8
#define CONTEXT_MAX (ID_MAX + 16)

static int no_tunnel(struct call *c)
{
    return call_fail(c, RC_NOT_FOUND, "Tunnel '%.60s' not found.", c->param[0]);
}

int call_tunnel(struct call *c, struct store_tunnel *ret)
{
    int rc = c->store->ops->tunnel->get(c->store, c->arena, c->param[0], ret, &c->e);
    return rc == RC_NOT_FOUND ? no_tunnel(c) : rc;
}

int tunnel_archived(struct call *c, const char *id)
{
    return call_fail_code(c, RC_INVALID, "tunnel_archived", "Tunnel '%.60s' is archived; its hostname and token are retired. Create a new tunnel.", id);
}

const char *tunnel_state(const struct store_tunnel *t)
{
    return t->archived_ms >= 0 ? "archived" : t->active_certificates ? "active" : "needs_certificate";
}

static bool is_legacy(const struct call *c)
{
    return c->route->flags & BETA_ORG_TUNNELS;
}

static int answer(struct call *c)
{
    struct store_tunnel t;
    TRY(call_tunnel(c, &t));
    view_tunnel(&c->out, &t, is_legacy(c));
    return RC_OK;
}

/* ---- tokens ---- */
/* A fresh token of a tunnel in the caller's storage; `text` is wiped and `sealed` freed by token_done(). */
struct fresh { char id[ID_MAX]; struct buf text, sealed; struct store_tunnel_token row; };

static void token_done(struct fresh *f)
{
    buf_wipe(&f->text);
    buf_done(&f->sealed);
}

static void context_of(const char *token_id, char out[CONTEXT_MAX])
{
    (void)str_copy(out, CONTEXT_MAX, "tunnel_token:");
    (void)str_copy(out + strlen(out), CONTEXT_MAX - strlen(out), token_id);
}

static int token_make(struct call *c, const char *tunnel_id, struct fresh *ret)
{
    char context[CONTEXT_MAX];
    buf_init(&ret->text, PROTO_TOKEN_MAX);
    buf_init(&ret->sealed, PROTO_TOKEN_MAX + SEAL_OVERHEAD);
    id_new("ttok", ret->id);
    context_of(ret->id, context);
    int rc = tunnel_token_make(c->api->conf.organization_id, tunnel_id, NULL, &ret->text, &c->e);
    if (rc == RC_OK)
        rc = seal_put(c->api->conf.seal, context, buf_data(&ret->text), buf_len(&ret->text), &ret->sealed, &c->e);
    if (rc < 0)
        return err_wrap(&c->e, RC_IO, "make a tunnel token");        /* whatever it is, it is not the caller's fault */
    ret->row = (struct store_tunnel_token){
        .id = ret->id, .tunnel_id = tunnel_id, .sealed = buf_data(&ret->sealed), .sealed_n = buf_len(&ret->sealed), .created_ms = c->now_ms, .expires_ms = -1,
    };
    sha256(buf_data(&ret->text), buf_len(&ret->text), ret->row.hash);
    return RC_OK;
}

static void view_token(struct call *c, const char *id, const char *text)
{
    buf_printf(&c->out, "{\"id\":\"%s\",\"type\":\"tunnel_token\",\"tunnel_token\":\"%s\"}", id, text);      /* both are of characters that need no escape */
}

/* ---- tunnels ---- */
int tunnels_list(struct call *c)
{
    struct page p;
    struct store_tunnel *rows;
    size_t n, first;
    TRY(page_read(c, CURSOR_TUNNELS, "", false, LIMIT_DEFAULT, &p));
    TRY(c->store->ops->tunnel->list(c->store, c->arena, &p.st, &rows, &n, &c->e));
    bool more = page_cut(&p, n, &first, &n);
    buf_puts(&c->out, "{\"data\":[");
    for (size_t i = 0; i < n; i++) {
        if (i)
            buf_putc(&c->out, ',');
        view_tunnel(&c->out, &rows[first + i], is_legacy(c));
    }
    struct page_key last = n ? (struct page_key){ rows[first + n - 1].created_ms, rows[first + n - 1].id } : (struct page_key){ 0, NULL };
    page_end(&p, &c->out, more, false, last, last);
    return RC_OK;
}

static void new_domain(const char *parent, struct call *c, const char **ret)
{
    static const char chars[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    char label[LABEL_LEN + 1] = { 0 };
    for (int i = 0; i < LABEL_LEN; i++)
        label[i] = chars[random_u32_below(sizeof chars - 1)];
    *ret = arena_printf(c->arena, "%s.%s", label, parent);
}

/* A name that was given before is refused by the store, also when its tunnel is archived: then another one is drawn. */
static int create(struct call *c, struct store_tunnel *t, const struct store_tunnel_token *k)
{
    int rc = RC_CONFLICT;
    for (int i = 0; i < LABEL_TRIES && rc == RC_CONFLICT; i++) {
        new_domain(c->api->conf.tunnel_domain, c, &t->domain);
        rc = t->domain ? c->store->ops->tunnel->create(c->store, t, k, TUNNELS_LIVE_MAX, &c->e) : RC_NOMEM;
    }
    if (rc == RC_LIMIT)
        return call_fail(c, RC_INVALID, "Organization already has the maximum of %d non-archived Tunnels", TUNNELS_LIVE_MAX);
    return rc == RC_CONFLICT ? call_fail(c, RC_AGAIN, "No free hostname was found; try again.") : rc;
}

int tunnels_create(struct call *c)
{
    char id[ID_MAX];
    struct fresh k;
    if (!c->api->conf.tunnel_domain)
        return call_fail(c, RC_UNSUPPORTED, "This server has no domain for tunnels: its setting 'tunnel.domain' (--tunnel-domain, OUTWORK_TUNNEL_DOMAIN) is missing. "
                                            "Set it to a name of yours below which every tunnel gets its own, such as tunnel.example.com.");
    id_new("tnl", id);
    struct store_tunnel t = { .id = id, .workspace_id = c->api->conf.workspace_id, .display_name = js_str(c->body, "display_name"), .created_ms = c->now_ms, .archived_ms = -1 };
    int rc = token_make(c, id, &k);
    if (rc == RC_OK)
        rc = create(c, &t, &k.row);
    token_done(&k);
    if (rc < 0)
        return rc;
    log_info("audit.tunnel_created", "tunnel_id=%s domain=%s key_id=%s request_id=%s", id, t.domain, c->who.key_id, c->request_id);
    view_tunnel(&c->out, &t, is_legacy(c));
    return RC_OK;
}

int tunnels_get(struct call *c)
{
    return answer(c);
}

int tunnels_archive(struct call *c)
{
    struct store_tunnel t;
    TRY(call_tunnel(c, &t));
    TRY(c->store->ops->tunnel->archive(c->store, t.id, c->now_ms, &c->e));
    if (t.archived_ms < 0)
        log_info("audit.tunnel_archived", "tunnel_id=%s domain=%s key_id=%s request_id=%s", t.id, t.domain, c->who.key_id, c->request_id);
    return answer(c);
}

int tunnels_reveal_token(struct call *c)
{
    struct store_tunnel_token k;
    char context[CONTEXT_MAX];
    AUTO_PTR(secret) text = NULL;
    int rc = c->store->ops->tunnel->token_current(c->store, c->arena, c->param[0], &k, &c->e);
    if (rc < 0)
        return rc == RC_NOT_FOUND ? no_tunnel(c) : rc == RC_INVALID ? tunnel_archived(c, c->param[0]) : rc;
    context_of(k.id, context);
    rc = seal_open(c->api->conf.seal, context, k.sealed, k.sealed_n, &text, &c->e);
    if (rc < 0) {
        log_err(LOG_ERROR, "tunnel.token_sealed", &c->e);
        return call_fail(c, RC_PRECONDITION, "The token's text cannot be opened: the file of the setting 'vault.key-file' does not hold the key that sealed it. "
                                             "Put that key back, or rotate the token.");
    }
    log_info("audit.tunnel_token_revealed", "tunnel_id=%s token_id=%s key_id=%s request_id=%s", k.tunnel_id, k.id, c->who.key_id, c->request_id);
    view_token(c, k.id, secret_text(text));
    return RC_OK;
}

int tunnels_rotate_token(struct call *c)
{
    int64_t overlap_ms = js_int(c->body, "overlap_seconds", 0) * 1000;
    const char *reason = js_str(c->body, "reason");
    struct fresh k;
    int rc = token_make(c, c->param[0], &k);
    if (rc == RC_OK)
        rc = c->store->ops->tunnel->token_rotate(c->store, &k.row, c->now_ms, c->now_ms + overlap_ms, &c->e);
    if (rc == RC_OK) {
        log_info("audit.tunnel_token_rotated", "tunnel_id=%s token_id=%s key_id=%s request_id=%s overlap_seconds=%lld reason=%s", c->param[0], k.id, c->who.key_id,
                 c->request_id, (long long)(overlap_ms / 1000), reason);
        view_token(c, k.id, buf_data(&k.text));
    }
    token_done(&k);
    return rc == RC_NOT_FOUND ? no_tunnel(c) : rc == RC_INVALID ? tunnel_archived(c, c->param[0]) : rc;
}
