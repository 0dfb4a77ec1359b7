/* server/api/credential_auth.c - the `auth` of a vault's credential: what is shown, what is secret, what may change (api.md 9). Secrets are taken out of the
 * request's tree and wiped there; nothing of this file quotes one. */
#include <arpa/inet.h>
#include <string.h>

#include "http/url.h"
#include "server/api/call.h"

void credential_auth_done(struct credential_auth *a)
{
    json_decref(a->shown);
    free(a->match);
    vault_secrets_done(&a->secrets);
    *a = (struct credential_auth){ 0 };
}

/* ---- single fields ---- */
static int check_url(struct call *c, const char *field, const char *url, char **ret_match)
{
    struct buf b;
    struct err e = { 0 };
    buf_init(&b, URL_MAX);
    int rc = vault_normalize_url(url, &b, &e);
    if (rc < 0)
        rc = call_fail(c, RC_INVALID, "%s: %s", field, e.msg);
    else if (ret_match)
        *ret_match = buf_take(&b, NULL);
    buf_done(&b);
    return rc;
}

/* It becomes part of a header line. */
static int check_bearer(struct call *c, const char *field, const struct secret *s)
{
    const char *p = secret_text(s);
    for (size_t i = 0; i < secret_len(s); i++)
        if ((unsigned char)p[i] <= ' ' || (unsigned char)p[i] >= 127)
            return call_fail(c, RC_INVALID, "%s: only visible ASCII characters, without spaces", field);
    return RC_OK;
}

/* Absent or null: RC_OK, nothing changes. */
static int take_secret(struct call *c, json_t *in, const char *key, const char *field, bool bearer, struct secret **at, bool *changed)
{
    struct secret *s = vault_take_string(in, key);
    if (!s)
        return RC_OK;
    int rc = bearer ? check_bearer(c, field, s) : RC_OK;
    if (rc < 0) {
        secret_free(s);
        return rc;
    }
    secret_free(*at);
    *at = s;
    *changed = true;
    return RC_OK;
}

static int put_expiry(struct call *c, json_t *in, json_t *shown)
{
    json_t *v = json_object_get(in, "expires_at");
    int64_t ms = -1;
    if (!v)
        return RC_OK;
    if (json_is_string(v) && (rfc3339_parse(json_string_value(v), &ms) < 0 || ms <= c->now_ms))
        return call_fail(c, RC_INVALID, "auth.expires_at: must be in the future");
    js_set_time(shown, "expires_at", ms);
    return RC_OK;
}

/* "" and null are the same: none. */
static void put_optional(json_t *shown, json_t *in, const char *key)
{
    json_t *v = json_object_get(in, key);
    js_set(shown, key, json_string_length(v) ? json_incref(v) : json_null());
}

/* ---- environment_variable ---- */
static bool is_host(const char *s)
{
    struct in_addr a;
    size_t dot = 0, n = strlen(s);
    if (inet_pton(AF_INET, s, &a) == 1)
        return true;
    if (str_prefix(s, "*."))
        s += 2, n -= 2;
    if (!n || n > 253 || s[0] == '.' || s[n - 1] == '.')
        return false;
    bool letter = false;
    for (size_t i = 0; i < n; i++) {
        bool alpha = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z');
        if (s[i] == '.') {
            if (i == dot || i - dot > 63 || s[i - 1] == '-')
                return false;
            dot = i + 1;
        } else if (!alpha && !(s[i] >= '0' && s[i] <= '9') && (s[i] != '-' || i == dot)) {
            return false;
        }
        letter |= alpha;
    }
    return letter && n - dot <= 63 && s[n - 1] != '-';      /* all digits: an address that is none */
}

static int put_networking(struct call *c, json_t *in, json_t *shown)
{
    json_t *net = json_object_get(in, "networking"), *v;
    size_t i;
    if (!json_is_object(net))
        return RC_OK;
    json_array_foreach(json_object_get(net, "allowed_hosts"), i, v)
        if (!is_host(json_string_value(v)))
            return call_fail(c, RC_INVALID, "auth.networking.allowed_hosts.%zu: expected a host name, an IPv4 address, or *. before a host name", i);
    js_set(shown, "networking", json_deep_copy(net));
    return RC_OK;
}

/* `dflt`: of a location that the request leaves out. */
static int put_injection(struct call *c, json_t *in, bool dflt_header, bool dflt_body, json_t *shown)
{
    json_t *at = json_object_get(in, "injection_location");
    bool header = js_bool(at, "header", dflt_header), body = js_bool(at, "body", dflt_body);
    json_t *out = json_object();
    js_set_bool(out, "header", header);
    js_set_bool(out, "body", body);
    js_set(shown, "injection_location", out);
    return header || body ? RC_OK : call_fail(c, RC_INVALID, "auth.injection_location: at least one of header and body must be true");
}

static bool is_variable(const char *s)
{
    for (size_t i = 0; s[i]; i++) {
        bool alpha = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z') || s[i] == '_';
        if (!alpha && (i == 0 || s[i] < '0' || s[i] > '9'))
            return false;
    }
    return true;
}

static int new_variable(struct call *c, json_t *in, struct credential_auth *a)
{
    const char *name = js_str(in, "secret_name");
    bool given = json_is_object(json_object_get(in, "injection_location"));
    if (!is_variable(name))
        return call_fail(c, RC_INVALID, "auth.secret_name: expected the name of an environment variable: letters, digits and _, not beginning with a digit");
    js_set_str(a->shown, "secret_name", name);
    a->match = str_dup(name);
    TRY(put_networking(c, in, a->shown));
    TRY(put_injection(c, in, !given, !given, a->shown));
    return take_secret(c, in, "secret_value", "auth.secret_value", false, &a->secrets.token, &a->secrets_changed);
}

/* ---- mcp_oauth ---- */
static int new_refresh(struct call *c, json_t *in, struct credential_auth *a)
{
    json_t *r = json_object_get(in, "refresh"), *shown = json_object(), *auth = json_object(), *auth_in = json_object_get(r, "token_endpoint_auth");
    js_set(a->shown, "refresh", shown);
    js_set_str(shown, "client_id", js_str(r, "client_id"));
    js_set_str(shown, "token_endpoint", js_str(r, "token_endpoint"));
    js_set_str(auth, "type", js_str(auth_in, "type"));
    js_set(shown, "token_endpoint_auth", auth);
    put_optional(shown, r, "resource");
    put_optional(shown, r, "scope");
    TRY(check_url(c, "auth.refresh.token_endpoint", js_str(r, "token_endpoint"), NULL));
    TRY(take_secret(c, r, "refresh_token", "auth.refresh.refresh_token", false, &a->secrets.refresh_token, &a->secrets_changed));
    return take_secret(c, auth_in, "client_secret", "auth.refresh.token_endpoint_auth.client_secret", false, &a->secrets.client_secret, &a->secrets_changed);
}

static int new_oauth(struct call *c, json_t *in, struct credential_auth *a)
{
    js_set_str(a->shown, "mcp_server_url", js_str(in, "mcp_server_url"));
    js_set(a->shown, "expires_at", json_null());
    js_set(a->shown, "refresh", json_null());
    TRY(check_url(c, "auth.mcp_server_url", js_str(in, "mcp_server_url"), &a->match));
    TRY(put_expiry(c, in, a->shown));
    TRY(take_secret(c, in, "access_token", "auth.access_token", true, &a->secrets.token, &a->secrets_changed));
    return json_is_object(json_object_get(in, "refresh")) ? new_refresh(c, in, a) : RC_OK;
}

static int patch_refresh(struct call *c, json_t *in, struct credential_auth *a)
{
    json_t *r = json_object_get(in, "refresh"), *shown = json_object_get(a->shown, "refresh"), *auth = json_object_get(r, "token_endpoint_auth");
    if (!json_is_object(r))
        return RC_OK;
    if (!json_is_object(shown))
        return call_fail(c, RC_INVALID, "auth.refresh: this credential was created without it; create a new one to have its token refreshed");
    if (auth && !str_eq(js_str(auth, "type"), js_str(shown, "token_endpoint_auth.type")))
        return call_fail(c, RC_INVALID, "auth.refresh.token_endpoint_auth.type: cannot be changed from '%s'", js_str(shown, "token_endpoint_auth.type"));
    if (json_is_string(json_object_get(r, "scope")))
        put_optional(shown, r, "scope");
    TRY(take_secret(c, r, "refresh_token", "auth.refresh.refresh_token", false, &a->secrets.refresh_token, &a->secrets_changed));
    return take_secret(c, auth, "client_secret", "auth.refresh.token_endpoint_auth.client_secret", false, &a->secrets.client_secret, &a->secrets_changed);
}

static int patch_oauth(struct call *c, json_t *in, struct credential_auth *a)
{
    bool fresh = false;
    TRY(put_expiry(c, in, a->shown));
    TRY(take_secret(c, in, "access_token", "auth.access_token", true, &a->secrets.token, &fresh));
    if (fresh) {
        a->secrets.refreshed_ms = 0;
        a->secrets_changed = true;
    }
    return patch_refresh(c, in, a);
}

/* ---- all kinds ---- */
int credential_auth_new(struct call *c, json_t *in, struct credential_auth *ret)
{
    const char *kind = js_str(in, "type");
    struct credential_auth a = { .kind = kind, .shown = json_object() };
    js_set_str(a.shown, "type", kind);
    int rc;
    if (str_eq(kind, "mcp_oauth")) {
        rc = new_oauth(c, in, &a);
    } else if (str_eq(kind, "static_bearer")) {
        js_set_str(a.shown, "mcp_server_url", js_str(in, "mcp_server_url"));
        rc = check_url(c, "auth.mcp_server_url", js_str(in, "mcp_server_url"), &a.match);
        if (rc == RC_OK)
            rc = take_secret(c, in, "token", "auth.token", true, &a.secrets.token, &a.secrets_changed);
    } else {
        rc = new_variable(c, in, &a);
    }
    if (rc < 0)
        credential_auth_done(&a);
    else
        *ret = a;
    return rc;
}

int credential_auth_patch(struct call *c, json_t *in, struct credential_auth *a)
{
    if (!json_is_object(in))
        return RC_OK;
    if (!str_eq(js_str(in, "type"), a->kind))
        return call_fail(c, RC_INVALID, "auth.type: cannot be changed from '%s'", a->kind);
    if (str_eq(a->kind, "mcp_oauth"))
        return patch_oauth(c, in, a);
    if (str_eq(a->kind, "static_bearer"))
        return take_secret(c, in, "token", "auth.token", true, &a->secrets.token, &a->secrets_changed);
    TRY(put_networking(c, in, a->shown));
    TRY(put_injection(c, in, js_bool(a->shown, "injection_location.header", true), js_bool(a->shown, "injection_location.body", true), a->shown));
    return take_secret(c, in, "secret_value", "auth.secret_value", false, &a->secrets.token, &a->secrets_changed);
}
