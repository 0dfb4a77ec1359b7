/* gateway/init_api.c - see init_api.h. A command has nothing else to do while it waits, so each call runs the loop until its answer is there. */
#include "gateway/init_api.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "http/client.h"

#define VERSION "anthropic-version: 2023-06-01\r\n"
#define JSON_BODY "content-type: application/json\r\n"
#define BETA_TUNNELS "anthropic-beta: mcp-tunnels-2026-06-22\r\n"
#define BETA_TUNNELS_OAUTH "anthropic-beta: oauth-2025-04-20,mcp-tunnels-2026-06-22\r\n"          /* api.md 1.1: with a credential that was exchanged */
#define BETA_EXCHANGE "anthropic-beta: oauth-2025-04-20,oidc-federation-2026-04-01\r\n"
#define EXCHANGE_PATH "/v1/oauth/token"
#define ASSERTION_MAX (16 * KIB)             /* more is no JWT but some other file */
#define TIMEOUT_MS 30000
#define ANSWER_MAX (1 * MIB)
#define PAGES_MAX 20                         /* of the list of certificates, archived ones are not in it */
#define TOKEN_TEXT_MAX (8 * KIB)

struct init_api {
    struct ev *ev;
    struct http_client *http;
    const struct secret *credential;
    struct secret *exchanged;                /* owned; `credential` then points to it */
    char *base;
    /* of the call that runs */
    bool done;
    int rc, status;
    json_t *json;
    struct err err;
};

int init_api_new(const struct init_api_conf *c, struct init_api **ret, struct err *e)
{
    AUTO_PTR(init_api) a = xcalloc(1, sizeof *a);
    struct http_client_conf hc = { .ca_file = c->ca_file, .http_proxy = c->http_proxy, .https_proxy = c->https_proxy, .no_proxy = c->no_proxy };
    TRY(ev_new(&a->ev, e));
    TRY(http_client_new(a->ev, &hc, &a->http, e));
    a->credential = c->credential;
    size_t n = strlen(c->base);
    while (n && c->base[n - 1] == '/')
        n--;
    a->base = str_ndup(c->base, n);
    *ret = TAKE(a);
    return RC_OK;
}

void init_api_free(struct init_api *a)
{
    if (!a)
        return;
    http_client_free(a->http);
    if (a->ev)
        ev_free(a->ev);
    json_decref(a->json);
    secret_free(a->exchanged);
    free(a->base);
    free(a);
}

bool init_id_ok(const char *id)
{
    size_t n = id ? strlen(id) : 0;
    return n && n < 128 && strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == n;
}

bool init_domain_ok(const char *d)
{
    size_t n = d ? strlen(d) : 0;
    return n && n <= 200 && strspn(d, "abcdefghijklmnopqrstuvwxyz0123456789-.") == n && d[0] != '.' && d[0] != '-' && d[n - 1] != '.' && !strstr(d, "..") && strchr(d, '.');
}

static void on_done(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct init_api *a = ctx;
    a->done = true;
    a->rc = rc;
    if (rc < 0) {
        a->err = *e;
        return;
    }
    a->status = r->status;
    if (buf_len(r->body))
        (void)!js_parse(buf_data(r->body), buf_len(r->body), ANSWER_MAX, &a->json, &a->err);
    buf_wipe(r->body);                       /* may have been a token */
}

static int rc_of(int status)
{
    switch (status) {
    case 401: return RC_UNAUTHORIZED;
    case 403: return RC_DENIED;
    case 404: return RC_NOT_FOUND;
    case 429: return RC_LIMIT;
    default:  return status >= 500 ? RC_IO : status >= 400 ? RC_INVALID : RC_PROTO;
    }
}

/* Runs one request to its end. On RC_OK the status is a->status and a JSON body, if there is one, in a->json. */
static int exchange(struct init_api *a, const char *method, const char *path, const char *headers, const char *text, struct err *e)
{
    AUTO_FREE char *url = str_printf("%s%s", a->base, path);
    struct http_request q = { .method = method, .url = url, .headers = headers, .bearer = a->credential, .body = text, .body_n = text ? strlen(text) : 0,
                              .timeout_ms = TIMEOUT_MS, .body_max = ANSWER_MAX, .on_done = on_done, .ctx = a };
    json_decref(TAKE(a->json));
    a->done = false;
    (void)http_call_start(a->http, &q);
    while (!a->done)
        (void)ev_run_once(a->ev, 1000);
    if (a->rc < 0) {
        *e = a->err;
        return err_wrap(e, a->rc, "%s %s", method, path);
    }
    return RC_OK;
}

static int refused(struct init_api *a, const char *method, const char *path, const char *hint, struct err *e)
{
    const char *said = js_str(a->json, "error.message");
    said = said ? said : js_str(a->json, "error_description");              /* an OAuth answer (RFC 6749 5.2) */
    return err_set(e, rc_of(a->status), "%s %s: HTTP %d%s%.300s%s", method, path, a->status, said ? ": " : "", said ? said : "", hint);
}

static int no_object(struct init_api *a, const char *method, const char *path, struct err *e)
{
    return err_set(e, RC_PROTO, "%s %s: the answer is no JSON object; is %s the service?", method, path, a->base);
}

/* `body` is taken, NULL: none. On RC_OK the answer is in a->json, which is an object. */
static int call(struct init_api *a, const char *method, const char *path, json_t *take_body, struct err *e)
{
    AUTO_JS body = take_body;
    AUTO_FREE char *text = body ? js_text(body) : NULL;
    AUTO_FREE char *headers = str_printf("%s%s%s", VERSION, a->exchanged ? BETA_TUNNELS_OAUTH : BETA_TUNNELS, text ? JSON_BODY : "");
    TRY(exchange(a, method, path, headers, text, e));
    if (a->status / 100 == 2)
        return json_is_object(a->json) ? RC_OK : no_object(a, method, path, e);
    return refused(a, method, path,
                   a->status == 401   ? " (the credential is unknown, expired or revoked)"
                   : a->status == 403 ? " (the credential may not manage tunnels, or not of this workspace)"
                                      : "", e);
}

/* jansson would only free a text. */
static void wipe_json_text(const char *text)
{
    if (text)
        wipe((char *)(uintptr_t)text, strlen(text));
}

static bool in_the_clear(const char *base)
{
    static const char *const fine[] = { "https://", "http://localhost", "http://127.0.0.1", "http://[::1]" };
    for (size_t i = 0; i < COUNT_OF(fine); i++) {
        size_t n = strlen(fine[i]);
        if (str_prefix(base, fine[i]) && (i == 0 || !base[n] || strchr(":/", base[n])))
            return false;
    }
    return true;
}

int init_api_exchange(struct init_api *a, const struct init_identity *id, struct err *e)
{
    if (in_the_clear(a->base))
        return err_set(e, RC_DENIED, "the identity token would cross the network in the clear: %s is not https", a->base);
    if (secret_len(id->token) > ASSERTION_MAX)
        return err_set(e, RC_INVALID, "the identity token has %zu bytes, more than any token: is its path right?", secret_len(id->token));
    AUTO_JS body = json_object();
    js_set_str(body, "grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");
    js_set_str(body, "assertion", secret_text(id->token));
    js_set_str(body, "federation_rule_id", id->rule_id);
    js_set_str(body, "organization_id", id->organization_id);
    if (id->service_account_id)
        js_set_str(body, "service_account_id", id->service_account_id);
    if (id->workspace_id)
        js_set_str(body, "workspace_id", id->workspace_id);
    AUTO_FREE char *text = js_text(body);
    int rc = exchange(a, "POST", EXCHANGE_PATH, BETA_EXCHANGE JSON_BODY, text, e);
    wipe(text, strlen(text));
    wipe_json_text(js_str(body, "assertion"));
    TRY(rc);
    if (a->status / 100 != 2)
        return refused(a, "POST", EXCHANGE_PATH,
                       a->status != 401    ? ""
                       : id->workspace_id ? " (the federation rule does not match the identity token)"
                                          : " (the federation rule does not match the identity token; one for several workspaces needs ANTHROPIC_WORKSPACE_ID)", e);
    const char *t = js_str(a->json, "access_token");
    size_t n = t ? strlen(t) : 0;
    if (n == 0 || n > TOKEN_TEXT_MAX || strpbrk(t, " \t\r\n"))
        return err_set(e, RC_PROTO, "POST " EXCHANGE_PATH ": the answer has no usable access_token");
    a->exchanged = secret_new(t, n);
    a->credential = a->exchanged;
    wipe_json_text(t);
    return RC_OK;
}

static int tunnel_of(struct init_api *a, struct init_tunnel *ret, struct err *e)
{
    const char *id = js_str(a->json, "id"), *domain = js_str(a->json, "domain");
    if (!init_id_ok(id) || !init_domain_ok(domain) || !str_copy(ret->id, sizeof ret->id, id) || !str_copy(ret->domain, sizeof ret->domain, domain))
        return err_set(e, RC_PROTO, "the service's answer is no tunnel with an id and a domain");
    ret->archived = js_str(a->json, "archived_at") != NULL;
    return RC_OK;
}

int init_api_tunnel(struct init_api *a, const char *id, struct init_tunnel *ret, struct err *e)
{
    AUTO_FREE char *path = str_printf("/v1/tunnels/%s?beta=true", id);
    TRY(call(a, "GET", path, NULL, e));
    return tunnel_of(a, ret, e);
}

int init_api_create(struct init_api *a, const char *display_name, struct init_tunnel *ret, struct err *e)
{
    json_t *body = json_object();
    if (display_name)
        js_set_str(body, "display_name", display_name);
    TRY(call(a, "POST", "/v1/tunnels?beta=true", body, e));
    return tunnel_of(a, ret, e);
}

/* The cursor goes back percent-encoded, whatever it is made of. */
static char *next_path(const char *tunnel_id, const char *page)
{
    struct buf b;
    buf_init(&b, 16 * KIB);
    buf_printf(&b, "/v1/tunnels/%s/certificates?beta=true&limit=100", tunnel_id);
    if (page)
        buf_puts(&b, "&page=");
    for (; page && *page; page++)
        if (strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.~", *page))
            buf_putc(&b, *page);
        else
            buf_printf(&b, "%%%02X", (unsigned char)*page);
    return buf_take(&b, NULL);
}

static int registered(struct init_api *a, const char *tunnel_id, const char *fingerprint, bool *ret, struct err *e)
{
    AUTO_FREE char *path = next_path(tunnel_id, NULL);
    *ret = false;
    for (int i = 0; i < PAGES_MAX && path; i++) {
        TRY(call(a, "GET", path, NULL, e));
        size_t at;
        json_t *c;
        json_array_foreach(js_at(a->json, "data"), at, c)
            if (str_eq(js_str(c, "fingerprint"), fingerprint) && !js_str(c, "archived_at"))
                *ret = true;
        const char *page = js_str(a->json, "next_page");
        free(path);
        path = page && !*ret ? next_path(tunnel_id, page) : NULL;
    }
    return RC_OK;
}

int init_api_register(struct init_api *a, const char *tunnel_id, const char *pem, const char *fingerprint, bool *ret_added, struct err *e)
{
    bool there = false;
    TRY(registered(a, tunnel_id, fingerprint, &there, e));
    if (!there) {
        AUTO_FREE char *path = str_printf("/v1/tunnels/%s/certificates?beta=true", tunnel_id);
        json_t *body = json_object();
        js_set_str(body, "ca_certificate_pem", pem);
        TRY(call(a, "POST", path, body, e));
        const char *got = js_str(a->json, "fingerprint");
        if (got && !str_eq(got, fingerprint))
            return err_set(e, RC_PROTO, "the service has registered another certificate than the one sent");
    }
    *ret_added = !there;
    return RC_OK;
}

int init_api_token(struct init_api *a, const char *tunnel_id, bool rotate, struct secret **ret, struct err *e)
{
    AUTO_FREE char *path = str_printf("/v1/tunnels/%s/%s?beta=true", tunnel_id, rotate ? "rotate_token" : "reveal_token");
    TRY(call(a, "POST", path, json_object(), e));
    const char *t = js_str(a->json, "tunnel_token");
    size_t n = t ? strlen(t) : 0;
    if (n == 0 || n > TOKEN_TEXT_MAX || strpbrk(t, " \t\r\n"))
        return err_set(e, RC_PROTO, "the service's answer has no usable tunnel_token");
    *ret = secret_new(t, n);
    wipe_json_text(t);
    return RC_OK;
}
