/* The options and headers of one request. */
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "base/str.h"
#include "http/fetch_internal.h"
#include "tls/leaf.h"

#define CONNECT_NEVER_MS (24L * 3600 * 1000)
#define KEEPALIVE_IDLE_S 60L
#define KEEPALIVE_INTERVAL_S 30L

static curl_socket_t on_open_socket(void *ctx, curlsocktype purpose, struct curl_sockaddr *a)
{
    (void)ctx, (void)purpose;
    return socket(a->family, a->socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->protocol);
}

void fetch_wipe_headers(struct fetch_call *c)
{
    for (struct curl_slist *h = c->headers; h; h = h->next)
        explicit_bzero(h->data, strlen(h->data));
    c->f->curl->slist_free_all(c->headers);
    c->headers = NULL;
}

static bool is_field(const char *s)     /* no way to put a second line into the request */
{
    return s && !s[strcspn(s, "\r\n")];
}

static int add_header(struct fetch_call *c, const char *line)
{
    if (!is_field(line))
        return err_set(&c->err, RC_INVALID, "a request header holds a line break");
    struct curl_slist *l = c->f->curl->slist_append(c->headers, line);
    if (!l)
        return err_set(&c->err, RC_NOMEM, "out of memory for request headers");
    c->headers = l;
    return RC_OK;
}

static bool has_header(const struct fetch_request *r, const char *name)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < r->n_headers; i++)
        if (strncasecmp(r->headers[i], name, n) == 0 && r->headers[i][n] == ':')
            return true;
    return false;
}

/* To libcurl "name:" means to send no such header; one without a value is "name;". */
static int add_callers(struct fetch_call *c, const char *line)
{
    size_t n = strcspn(line, ":");
    if (!line[n] || line[n + 1 + strspn(line + n + 1, " \t")])
        return add_header(c, line);
    AUTO_FREE char *empty = str_printf("%.*s;", (int)n, line);
    return add_header(c, empty);
}

static int add_headers(struct fetch_call *c, const struct fetch_request *r)
{
    for (size_t i = 0; i < r->n_headers; i++)
        TRY(add_callers(c, r->headers[i]));
    TRY(add_header(c, "Expect:"));          /* no waiting for "100 Continue" before a large body */
    if (!has_header(r, "content-type"))
        TRY(add_header(c, "Content-Type:"));/* nor a form's type by default */
    if (!r->secret || !r->secret_header)
        return RC_OK;
    const char *prefix = r->secret_prefix ? r->secret_prefix : "";
    struct buf line;
    buf_init(&line, MIB);
    (void)buf_reserve(&line, strlen(r->secret_header) + strlen(prefix) + secret_len(r->secret) + 2);    /* at once: no copies left by growing */
    (void)buf_printf(&line, "%s: %s", r->secret_header, prefix);
    (void)buf_put(&line, secret_text(r->secret), secret_len(r->secret));
    int rc = buf_ok(&line) ? add_header(c, buf_data(&line)) : err_set(&c->err, RC_INVALID, "the credential is too long");
    buf_wipe(&line);
    return rc;
}

/* One option; the first failure is kept. */
#define SET(option, value)                                                                                   \
    do {                                                                                                     \
        CURLcode rc_ = curl->easy_setopt(c->easy, (option), (value));                                        \
        if (rc_ != CURLE_OK && c->err.rc == RC_OK)                                                           \
            err_set(&c->err, RC_UNSUPPORTED, "libcurl refuses %s: %s", #option, curl->easy_strerror(rc_));   \
    } while (0)

static void set_request(struct fetch_call *c, const struct fetch_request *r)
{
    const struct fetch_curl *curl = c->f->curl;
    const char *method = r->method ? r->method : "GET";
    SET(CURLOPT_URL, r->url);
    if (r->body_n || str_eq(method, "POST")) {
        SET(CURLOPT_POST, 1L);
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body_n);
        SET(CURLOPT_POSTFIELDS, r->body_n ? r->body : "");
    } else if (str_eq(method, "HEAD")) {
        SET(CURLOPT_NOBODY, 1L);
    }
    if (!str_eq(method, "POST") && !str_eq(method, "HEAD"))
        SET(CURLOPT_CUSTOMREQUEST, method);
    SET(CURLOPT_HTTPHEADER, c->headers);
    SET(CURLOPT_CONNECTTIMEOUT_MS, r->connect_ms > 0 && r->connect_ms < CONNECT_NEVER_MS ? (long)r->connect_ms : CONNECT_NEVER_MS);
}

static void set_policy(struct fetch_call *c)
{
    const struct fetch_curl *curl = c->f->curl;
    const struct fetch *f = c->f;
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
    if (curl->easy_setopt(c->easy, CURLOPT_PROTOCOLS_STR, "http,https") != CURLE_OK)
        SET((CURLoption)181 /* CURLOPT_PROTOCOLS, before 7.85 */, 3L /* http and https */);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    SET(CURLOPT_TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    SET(CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
    /* A cancelled call must not wait for its name look-up. Unknown before 7.87, where it does wait. */
    (void)curl->easy_setopt(c->easy, CURLOPT_QUICK_EXIT, 1L);
    if (f->user_agent)
        SET(CURLOPT_USERAGENT, f->user_agent);
    if (f->proxy)
        SET(CURLOPT_PROXY, f->proxy);
    if (f->ca_file) {
        SET(CURLOPT_CAINFO, f->ca_file);
        SET(CURLOPT_CAPATH, NULL);
        SET(CURLOPT_PROXY_CAINFO, f->ca_file);
        SET(CURLOPT_PROXY_CAPATH, NULL);
    }
}

/* libcurl asks for the proxy's context and for the server's without saying which: only the server's is for TLS 1.3 alone (set_trust()).
 * fetch_note.c sends nothing over a new connection when the rules were put on none. */
static CURLcode on_ssl_ctx(CURL *easy, void *ssl_ctx, void *ctx)
{
    struct fetch_call *c = ctx;
    (void)easy;
    if (!tls_only_13(ssl_ctx))
        return CURLE_OK;
    c->ruled = true;
    return tls_leaf_rules(ssl_ctx, &c->err) == RC_OK ? CURLE_OK : CURLE_SSL_CERTPROBLEM;
}

static void set_trust(struct fetch_call *c, const struct fetch_via *v)
{
    const struct fetch_curl *curl = c->f->curl;
    struct curl_blob blob = { .data = (void *)(uintptr_t)v->ca_pem, .len = v->ca_pem_n, .flags = CURL_BLOB_COPY };
    const char *lib = curl->version_info(CURLVERSION_NOW)->ssl_version;
    if (!lib || !str_prefix(lib, "OpenSSL/3")) {
        err_set(&c->err, RC_UNSUPPORTED, "tunnels need a libcurl with OpenSSL 3, this one has %s", lib ? lib : "none");
        return;
    }
    SET(CURLOPT_CAINFO_BLOB, &blob);
    SET(CURLOPT_CAPATH, NULL);
    SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_3);
    SET(CURLOPT_PROXY_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    SET(CURLOPT_SSL_SESSIONID_CACHE, 0L);   /* a resumed session is not verified again */
    SET(CURLOPT_SSL_CTX_FUNCTION, on_ssl_ctx);
    SET(CURLOPT_SSL_CTX_DATA, c);
    c->exact = true;
}

static void set_via(struct fetch_call *c, const struct fetch_via *v)
{
    const struct fetch_curl *curl = c->f->curl;
    if (v->proxy) {
        SET(CURLOPT_PROXY, v->proxy);
        SET(CURLOPT_NOPROXY, "");           /* the environment's exceptions are not for this call */
    }
    c->proxied = v->proxy && v->proxy[0];
    if (c->proxied) {
        SET(CURLOPT_HTTPPROXYTUNNEL, 1L);
        SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 0L);
        (void)str_copy(c->proxy_note_name, sizeof c->proxy_note_name, v->proxy_note ? v->proxy_note : "");
    }
    if (v->proxy_ca_file) {
        SET(CURLOPT_PROXY_CAINFO, v->proxy_ca_file);
        SET(CURLOPT_PROXY_CAPATH, NULL);
    }
    if (v->proxy_cert_file) {
        SET(CURLOPT_PROXY_SSLCERT, v->proxy_cert_file);
        SET(CURLOPT_PROXY_SSLKEY, v->proxy_key_file ? v->proxy_key_file : v->proxy_cert_file);
    }
    if (v->ca_pem)
        set_trust(c, v);
    if (v->address) {                       /* whatever the URL's host and port: the connection goes there, TLS and Host keep the name */
        AUTO_FREE char *to = str_printf(strchr(v->address, ':') ? "::[%s]:" : "::%s:", v->address);
        c->connect_to = curl->slist_append(NULL, to);
        if (!c->connect_to)
            err_set(&c->err, RC_NOMEM, "out of memory for a call");
        SET(CURLOPT_CONNECT_TO, c->connect_to);
    }
}

int fetch_setup(struct fetch_call *c, const struct fetch_request *r)
{
    if (!r->url || !(strncasecmp(r->url, "http://", 7) == 0 || strncasecmp(r->url, "https://", 8) == 0))
        return err_set(&c->err, RC_INVALID, "the URL must begin with http:// or https://");
    if (!is_field(r->url) || (r->method && (!is_field(r->method) || strchr(r->method, ' '))))
        return err_set(&c->err, RC_INVALID, "the method or URL holds a line break");
    c->easy = c->f->curl->easy_init();
    if (!c->easy)
        return err_set(&c->err, RC_NOMEM, "out of memory for a call");
    TRY(add_headers(c, r));
    set_policy(c);
    set_request(c, r);
    if (r->via)
        set_via(c, r->via);
    fetch_note_install(c);
    return c->err.rc;
}
