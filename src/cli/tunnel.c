/* `outwork tunnel`: tunnels, their tokens and certificates, over the server's API. A token is printed alone on stdout; everything said about it goes to stderr. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "cli/api.h"
#include "cli/cmd.h"
#include "conf/conf.h"

#define FILE_MAX (64 * KIB)              /* the server says what is too large; this only bounds memory */
#define DAY_MS 86400000
#define SOON_DAYS 14                     /* the server warns from then on, too */
#define HEADERS "anthropic-version: 2023-06-01\r\nanthropic-beta: mcp-tunnels-2026-06-22\r\n"

struct settings {
    char *url, *key_file, *ca_file, *http_proxy, *https_proxy, *no_proxy, *name, *reason;
    int64_t overlap_ms;
    bool json, archived;
};
#define F(field) offsetof(struct settings, field)

static const struct conf_key keys[] = {
    { .name = "url", .type = CONF_STR, .field = F(url), .dflt = "http://127.0.0.1:8400", .env = "ANTHROPIC_BASE_URL", .arg = "URL", .help = "The server." },
    { .name = "key-file", .type = CONF_STR, .field = F(key_file), .arg = "FILE",
      .help = "File with an API key of the role admin, not readable by others; or set ANTHROPIC_API_KEY. Never a flag." },
    { .name = "ca-file", .type = CONF_STR, .field = F(ca_file), .arg = "FILE", .help = "Trust these certificates for the server instead of the system's." },
    { .name = "http-proxy", .type = CONF_STR, .field = F(http_proxy), .env = "HTTP_PROXY", .arg = "URL", .help = "Proxy for an http server." },
    { .name = "https-proxy", .type = CONF_STR, .field = F(https_proxy), .env = "HTTPS_PROXY", .arg = "URL", .help = "Proxy for an https server." },
    { .name = "no-proxy", .type = CONF_STR, .field = F(no_proxy), .env = "NO_PROXY", .arg = "HOSTS", .help = "Hosts reached without a proxy." },
    { .name = "name", .type = CONF_STR, .field = F(name), .arg = "TEXT", .help = "create: what the tunnel is for, at most 255 characters." },
    { .name = "overlap", .type = CONF_DUR, .field = F(overlap_ms), .dflt = "0s", .min = "0s", .max = "24h", .arg = "TIME",
      .help = "rotate-token: the old token stays valid for so long." },
    { .name = "reason", .type = CONF_STR, .field = F(reason), .arg = "TEXT", .help = "rotate-token: why; goes to the server's log." },
    { .name = "archived", .type = CONF_BOOL, .field = F(archived), .dflt = "false", .help = "list, certificate list: archived ones too." },
    { .name = "json", .type = CONF_BOOL, .field = F(json), .dflt = "false", .help = "Print what the server answered as JSON." },
};
static const struct conf_program program = {
    .command = "outwork tunnel", .summary = "Create, list and end tunnels, their tokens and certificates.",
    .usage = "create | list | get ID | archive ID | reveal-token ID | rotate-token ID | connectors ID |\n"
             "                      certificate add ID FILE | certificate list ID | certificate archive ID CERTIFICATE_ID  [options]",
    .epilog = "Examples:\n"
              "  outwork tunnel create --name office                        prints id and host name\n"
              "  outwork tunnel certificate add tnl_01... ca.pem            the authority that signs the gateway's certificate; - reads stdin\n"
              "  outwork tunnel reveal-token tnl_01... > tunnel-token       the token alone\n"
              "  outwork tunnel rotate-token tnl_01... --overlap 1h --reason \"quarterly\"\n"
              "  outwork tunnel list                                        state, connected gateways, when certificates end\n"
              "  outwork tunnel connectors tnl_01...                        who is connected where, and who was\n"
              "Exit status: 0 done, 1 refused or no answer, 2 wrong usage, 3 credential refused.\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

struct run { struct settings s; struct cli_api *api; const char *id, *arg; };

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_CREDENTIAL = 3 };

/* ---- printing ---- */
/* Names come from the API and may hold anything: nothing that steers a terminal is printed raw. */
static void print_text(const char *s, int width)
{
    int n = 0;
    for (; s && *s; s++, n++)
        putchar((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s);
    for (; n < width; n++)
        putchar(' ');
}

static void print_json(const json_t *v)
{
    AUTO_FREE char *text = js_text(v);
    printf("%s\n", text);
}

/* "2026-04-01T12:34:56.789Z" as "2026-04-01 12:34"; "-" without one. */
static const char *time_text(const json_t *row, const char *key, char out[RFC3339_MAX])
{
    const char *s = js_str(row, key);
    if (!s || strlen(s) < 16 || strlen(s) >= RFC3339_MAX)
        return "-";
    (void)str_copy(out, RFC3339_MAX, s);
    out[10] = ' ';
    out[16] = '\0';
    return out;
}

/* When something ends, with the days that are left when these are few. */
static const char *expiry_text(const json_t *row, const char *key, char out[64])
{
    char at[RFC3339_MAX];
    int64_t ms, left;
    const char *s = js_str(row, key), *text = time_text(row, key, at);
    if (!s || rfc3339_parse(s, &ms) != RC_OK)
        return "-";
    left = ms - clock_now_ms();
    if (left < 0)
        (void)snprintf(out, 64, "EXPIRED %.10s", text);
    else if (left < SOON_DAYS * (int64_t)DAY_MS)
        (void)snprintf(out, 64, "%.10s (%lld days!)", text, (long long)(left / DAY_MS));
    else
        (void)snprintf(out, 64, "%.10s", text);
    return out;
}

/* The members of an answer, one a line. */
static int print_object(const struct run *r, const json_t *v)
{
    const char *key;
    json_t *m;
    if (r->s.json) {
        print_json(v);
        return RC_OK;
    }
    json_object_foreach((json_t *)(uintptr_t)v, key, m) {
        if (str_eq(key, "type"))
            continue;
        printf("%-24s", key);
        if (json_is_string(m)) {
            print_text(json_string_value(m), 0);
            putchar('\n');
        } else {
            AUTO_FREE char *text = json_is_null(m) ? str_dup("-") : js_text(m);
            printf("%s\n", text);
        }
    }
    return RC_OK;
}

static int print_rows(const struct run *r, const json_t *rows, const char *title, void (*line)(const json_t *row))
{
    size_t i;
    json_t *row;
    if (r->s.json) {
        print_json(rows);
        return RC_OK;
    }
    printf("%s\n", title);
    json_array_foreach(rows, i, row) {
        line(row);
        putchar('\n');
    }
    return RC_OK;
}

static void tunnel_line(const json_t *t)
{
    char seen[RFC3339_MAX], ends[64];
    bool archived = str_eq(js_str(t, "state"), "archived");
    print_text(js_str(t, "id"), 32);
    print_text(js_str(t, "state"), 18);
    printf("%-11lld%-18s", (long long)js_int(t, "connectors", 0), time_text(t, "last_seen_at", seen));
    print_text(archived ? "-" : expiry_text(t, "certificates_expire_at", ends), 24);
    print_text(js_str(t, "domain"), 40);
    print_text(js_str(t, "display_name"), 0);
}

static void certificate_line(const json_t *k)
{
    char at[RFC3339_MAX], ends[64];
    print_text(js_str(k, "id"), 32);
    print_text(js_str(k, "archived_at") ? "archived" : "active", 10);
    print_text(expiry_text(k, "expires_at", ends), 24);
    printf("%-18s", time_text(k, "created_at", at));
    print_text(js_str(k, "fingerprint"), 0);
}

static void connector_line(const json_t *k)
{
    char since[RFC3339_MAX], seen[RFC3339_MAX];
    print_text(js_str(k, "id"), 32);
    print_text(js_bool(k, "connected", false) ? "connected" : "gone", 11);
    printf("%-13lld%-18s%-18s", (long long)js_int(k, "connections", 0), time_text(k, "connected_at", since), time_text(k, "last_seen_at", seen));
    print_text(js_str(k, "edge_id"), 24);
    print_text(js_str(k, "remote_address"), 24);
    print_text(js_str(k, "version"), 0);
}

/* ---- verbs ---- */
static int do_create(struct run *r, struct err *e)
{
    AUTO_JS v = NULL;
    json_t *body = json_object();
    if (r->s.name)
        js_set_str(body, "display_name", r->s.name);
    TRY(cli_api_call(r->api, "POST", "/v1/tunnels", body, &v, e));
    return print_object(r, v);
}

static int do_list(struct run *r, struct err *e)
{
    AUTO_JS rows = NULL;
    TRY(cli_api_list(r->api, r->s.archived ? "/outwork/v1/tunnels?limit=100&include_archived=true" : "/outwork/v1/tunnels?limit=100", &rows, e));
    return print_rows(r, rows, "ID                              STATE             CONNECTED  LAST SEEN         CERTIFICATES END        DOMAIN                                  NAME",
                      tunnel_line);
}

static int object_call(struct run *r, const char *method, const char *path, struct err *e)
{
    AUTO_JS v = NULL;
    TRY(cli_api_call(r->api, method, path, str_eq(method, "POST") ? json_object() : NULL, &v, e));
    return print_object(r, v);
}

static int do_get(struct run *r, struct err *e)
{
    AUTO_FREE char *path = str_printf("/outwork/v1/tunnels/%s", r->id);
    return object_call(r, "GET", path, e);
}

static int do_archive(struct run *r, struct err *e)
{
    AUTO_FREE char *path = str_printf("/v1/tunnels/%s/archive", r->id);
    return object_call(r, "POST", path, e);
}

static int token_call(struct run *r, const char *verb, json_t *take_body, struct err *e)
{
    AUTO_FREE char *path = str_printf("/v1/tunnels/%s/%s", r->id, verb);
    AUTO_JS v = NULL;
    TRY(cli_api_call(r->api, "POST", path, take_body, &v, e));
    if (!js_str(v, "tunnel_token") || !js_str(v, "id"))
        return err_set(e, RC_PROTO, "the server's answer has no token");
    if (r->s.json)
        print_json(v);
    else
        printf("%s\n", js_str(v, "tunnel_token"));
    if (fflush(stdout) != 0)
        return err_set(e, RC_IO, "the token could not be written to stdout");
    fprintf(stderr, "outwork tunnel: that is token %s of %s\n", js_str(v, "id"), r->id);
    return RC_OK;
}

static int do_reveal(struct run *r, struct err *e)
{
    return token_call(r, "reveal_token", json_object(), e);
}

static int do_rotate(struct run *r, struct err *e)
{
    json_t *body = json_object();
    js_set_int(body, "overlap_seconds", r->s.overlap_ms / 1000);
    if (r->s.reason)
        js_set_str(body, "reason", r->s.reason);
    return token_call(r, "rotate_token", body, e);
}

static int do_connectors(struct run *r, struct err *e)
{
    AUTO_FREE char *path = str_printf("/outwork/v1/tunnels/%s/connectors?limit=100", r->id);
    AUTO_JS rows = NULL;
    TRY(cli_api_list(r->api, path, &rows, e));
    return print_rows(r, rows, "ID                              STATE      CONNECTIONS  SINCE             LAST SEEN         EDGE                    ADDRESS                 VERSION",
                      connector_line);
}

static int do_certificate_add(struct run *r, struct err *e)
{
    AUTO_FREE char *path = str_printf("/v1/tunnels/%s/certificates", r->id), *pem = NULL;
    AUTO_JS v = NULL;
    size_t n;
    TRY(fd_read_file(AT_FDCWD, str_eq(r->arg, "-") ? "/dev/stdin" : r->arg, FILE_MAX, &pem, &n, e));
    json_t *body = json_object();
    js_set_strn(body, "ca_certificate_pem", pem, n);
    int rc = cli_api_call(r->api, "POST", path, body, &v, e);
    wipe(pem, n);                            /* somebody may have named the key's file; the server refuses that */
    return rc < 0 ? rc : print_object(r, v);
}

static int do_certificate_list(struct run *r, struct err *e)
{
    AUTO_FREE char *path = str_printf("/v1/tunnels/%s/certificates?limit=100%s", r->id, r->s.archived ? "&include_archived=true" : "");
    AUTO_JS rows = NULL;
    TRY(cli_api_list(r->api, path, &rows, e));
    return print_rows(r, rows, "ID                              STATE     EXPIRES                 REGISTERED        SHA-256 FINGERPRINT", certificate_line);
}

static int do_certificate_archive(struct run *r, struct err *e)
{
    AUTO_FREE char *path = str_printf("/v1/tunnels/%s/certificates/%s/archive", r->id, r->arg);
    return object_call(r, "POST", path, e);
}

static const struct verb { const char *group, *name; size_t args; int (*run)(struct run *r, struct err *e); const char *needs; } verbs[] = {
    { NULL, "create", 0, do_create, "`create` takes no argument; the name goes to --name" },
    { NULL, "list", 0, do_list, "`list` takes no argument" },
    { NULL, "get", 1, do_get, "`get` needs a tunnel id" },
    { NULL, "archive", 1, do_archive, "`archive` needs a tunnel id" },
    { NULL, "reveal-token", 1, do_reveal, "`reveal-token` needs a tunnel id" },
    { NULL, "rotate-token", 1, do_rotate, "`rotate-token` needs a tunnel id" },
    { NULL, "connectors", 1, do_connectors, "`connectors` needs a tunnel id" },
    { "certificate", "add", 2, do_certificate_add, "`certificate add` needs a tunnel id and a file" },
    { "certificate", "list", 1, do_certificate_list, "`certificate list` needs a tunnel id" },
    { "certificate", "archive", 2, do_certificate_archive, "`certificate archive` needs a tunnel id and a certificate id" },
};

static int usage(const char *what)
{
    fprintf(stderr, "outwork tunnel: %s; see `outwork tunnel --help`\n", what);
    return EXIT_USAGE;
}

/* What goes into a path as it is. */
static bool is_id(const char *s)
{
    return *s && s[strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")] == '\0';
}

static int connect_api(struct run *r, const struct secret *key, struct err *e)
{
    struct cli_api_conf c = {
        .base = r->s.url, .headers = HEADERS, .ca_file = r->s.ca_file, .http_proxy = r->s.http_proxy, .https_proxy = r->s.https_proxy, .no_proxy = r->s.no_proxy, .key = key,
    };
    return cli_api_new(&c, &r->api, e);
}

static int run_verb(struct run *r, const struct verb *v)
{
    struct err e = { 0 };
    AUTO_PTR(secret) key = secret_take_env("ANTHROPIC_API_KEY");
    if (r->s.key_file) {
        secret_free(TAKE(key));
        if (secret_read_file(r->s.key_file, &key, &e) < 0)
            return usage(e.msg);
    }
    if (!key)
        return usage("an API key is needed: set ANTHROPIC_API_KEY, or name a file with --key-file");
    int rc = connect_api(r, key, &e);
    if (rc == RC_OK)
        rc = v->run(r, &e);
    cli_api_free(r->api);
    if (rc < 0)
        fprintf(stderr, "outwork tunnel: %s\n", e.msg);
    return rc == RC_OK ? EXIT_DONE : rc == RC_UNAUTHORIZED || rc == RC_DENIED ? EXIT_CREDENTIAL : EXIT_FAILED;
}

static int dispatch(struct run *r, const struct conf_list *pos)
{
    if (!pos->n)
        return usage("a verb is missing");
    bool group = str_eq(pos->item[0], "certificate");
    const char *name = group ? pos->n > 1 ? pos->item[1] : "" : pos->item[0];
    size_t first = group ? 2 : 1;
    for (size_t i = 0; i < COUNT_OF(verbs); i++) {
        const struct verb *v = &verbs[i];
        if ((v->group != NULL) != group || !str_eq(v->name, name))
            continue;
        if (pos->n != first + v->args)
            return usage(v->needs);
        r->id = v->args > 0 ? pos->item[first] : NULL;
        r->arg = v->args > 1 ? pos->item[first + 1] : NULL;
        if ((r->id && !is_id(r->id)) || (r->arg && v->run == do_certificate_archive && !is_id(r->arg)))
            return usage("an id has only letters, digits, '_' and '-'");
        return run_verb(r, v);
    }
    return usage(group ? "expected certificate add, list or archive"
                       : "expected create, list, get, archive, reveal-token, rotate-token, connectors or certificate");
}

int cmd_tunnel(int argc, char **argv)
{
    struct run r = { 0 };
    struct conf_list pos = { 0 };
    struct err e = { 0 };
    bool help = false;
    int status = EXIT_DONE;
    if (conf_load(&program, argc, argv, &r.s, &pos, &help, &e) < 0) {
        fprintf(stderr, "outwork tunnel: %s\n", e.msg);
        status = EXIT_USAGE;
    } else if (!help) {
        status = dispatch(&r, &pos);
    }
    free(pos.item);
    conf_free(&program, &r.s);
    return status;
}
