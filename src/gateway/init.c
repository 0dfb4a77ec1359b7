/* gateway/init.c - see init.h. Order (tunnels.md 3.3): attach or create the tunnel, make authority and leaf, register the authority, reveal the token, write.
 * Every step leaves the directory so that a second run goes on where the first one stopped. */
#include "gateway/init.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base64.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/str.h"
#include "conf/conf.h"
#include "crypto/crypto.h"
#include "gateway/init_api.h"
#include "gateway/keydir.h"

enum { EXIT_DONE, EXIT_FAIL, EXIT_USAGE, EXIT_CREDENTIAL };
#define TOKEN_VERSION_MAX 128

struct settings {
    char *api_url, *tunnel_id, *output, *token_version, *display_name, *key_file, *ca_file, *http_proxy, *https_proxy, *no_proxy, *api_key, *api_token,
         *rule_id, *organization_id, *service_account_id, *workspace_id, *identity_file, *identity;
    struct conf_list edges;
    char *edge_ca;
    int64_t duration_ms, before_ms;
};
#define F(f) offsetof(struct settings, f)
#define ROW_OUTPUT                                                                                                                    \
    { .name = "output", .type = CONF_STR, .field = F(output), .dflt = "dir:./gateway", .arg = "dir:PATH", .help = "Where the files are; a plain path will do." }
#define ROW_DURATION                                                                                                                  \
    { .name = "cert-duration", .type = CONF_DUR, .field = F(duration_ms), .dflt = "2160h", .min = "1h", .arg = "TIME", .help = "How long a new leaf is valid." }

static const struct conf_key init_keys[] = {
    { .name = "api-url", .type = CONF_STR, .field = F(api_url), .env = "API_URL", .arg = "URL", .help = "The service: an `outwork server`, or the hosted one." },
    { .name = "tunnel-id", .type = CONF_STR, .field = F(tunnel_id), .env = "TUNNEL_ID", .arg = "ID",
      .help = "The tunnel to attach to. Without it the one that the output directory names; else a new one is created." },
    ROW_OUTPUT,
    { .name = "key-file", .type = CONF_STR, .field = F(key_file), .arg = "FILE",
      .help = "File with the API credential, not readable by others; or set ANTHROPIC_API_KEY or API_TOKEN. It is used now and stored nowhere." },
    { .name = "api-token", .type = CONF_STR, .field = F(api_token), .env = "API_TOKEN", .secret = true, .help = "The API credential." },
    { .name = "api-key", .type = CONF_STR, .field = F(api_key), .env = "ANTHROPIC_API_KEY", .secret = true, .help = "The API credential." },
    { .name = "federation-rule-id", .type = CONF_STR, .field = F(rule_id), .env = "ANTHROPIC_FEDERATION_RULE_ID", .arg = "ID",
      .help = "Instead of a credential: exchange the platform's identity token under this rule; ANTHROPIC_IDENTITY_TOKEN or --identity-token-file has the token." },
    { .name = "organization-id", .type = CONF_STR, .field = F(organization_id), .env = "ANTHROPIC_ORGANIZATION_ID", .arg = "UUID", .help = "Of the federation rule." },
    { .name = "service-account-id", .type = CONF_STR, .field = F(service_account_id), .env = "ANTHROPIC_SERVICE_ACCOUNT_ID", .arg = "ID",
      .help = "Act as this one; without it the rule says." },
    { .name = "workspace-id", .type = CONF_STR, .field = F(workspace_id), .env = "ANTHROPIC_WORKSPACE_ID", .arg = "ID",
      .help = "Needed when the rule covers several workspaces; `default` is one." },
    { .name = "identity-token-file", .type = CONF_STR, .field = F(identity_file), .env = "ANTHROPIC_IDENTITY_TOKEN_FILE", .arg = "FILE",
      .help = "The identity token (OpenID Connect), such as a projected service account token." },
    { .name = "identity-token", .type = CONF_STR, .field = F(identity), .env = "ANTHROPIC_IDENTITY_TOKEN", .secret = true, .help = "The identity token itself." },
    { .name = "display-name", .type = CONF_STR, .field = F(display_name), .arg = "TEXT", .help = "Name of a tunnel that is created." },
    ROW_DURATION,
    { .name = "renew-before", .type = CONF_DUR, .field = F(before_ms), .dflt = "720h", .arg = "TIME", .help = "Make a new leaf when the one there has less time left." },
    { .name = "token-version", .type = CONF_STR, .field = F(token_version), .arg = "TEXT",
      .help = "Any text; when it is another one than in the last run, the token is rotated." },
    { .name = "edge", .type = CONF_LIST, .field = F(edges), .arg = "HOST:PORT", .help = "Written to a new config.yaml; may be repeated. Without it the token names the edge." },
    { .name = "edge-ca", .type = CONF_STR, .field = F(edge_ca), .arg = "FILE", .help = "Written to a new config.yaml: authorities of the edges." },
    { .name = "ca-file", .type = CONF_STR, .field = F(ca_file), .arg = "FILE", .help = "Trust these certificate authorities for the service instead of the system's." },
    { .name = "https-proxy", .type = CONF_STR, .field = F(https_proxy), .env = "HTTPS_PROXY", .arg = "URL", .help = "Proxy for an https service." },
    { .name = "http-proxy", .type = CONF_STR, .field = F(http_proxy), .env = "HTTP_PROXY", .arg = "URL", .help = "Proxy for an http service." },
    { .name = "no-proxy", .type = CONF_STR, .field = F(no_proxy), .env = "NO_PROXY", .arg = "HOSTS", .help = "Hosts reached without a proxy." },
};
static const struct conf_key renew_keys[] = {
    ROW_OUTPUT, ROW_DURATION,
    { .name = "renew-before", .type = CONF_DUR, .field = F(before_ms), .dflt = "0", .arg = "TIME",
      .help = "Do nothing while more time than this is left; 0: always make a new leaf." },
};
static const struct conf_program init_program = {
    .command = "outwork gateway init", .usage = "--api-url URL [options]",
    .summary = "Attaches to a tunnel or creates one, makes its certificate authority and leaf here, registers the authority, fetches the token.",
    .epilog = "Files in the output directory: tunnel-id tunnel-domain tunnel-token ca.crt ca.key tls.crt tls.key config.yaml. A second run keeps what is there.\n"
              "Move ca.key to another machine if you can: only renewing needs it. Exit status: 0 done, 1 failed, 2 wrong use, 3 credential refused.\n",
    .keys = init_keys, .n_keys = COUNT_OF(init_keys),
};
static const struct conf_program renew_program = {
    .command = "outwork gateway renew", .usage = "[options]", .summary = "Makes a new leaf with the authority in the output directory. Asks no server.",
    .epilog = "A running gateway does this by itself while ca.key is in its directory.\n", .keys = renew_keys, .n_keys = COUNT_OF(renew_keys),
};

static int fail(const struct conf_program *p, int rc, const struct err *e)
{
    (void)fprintf(stderr, "%s: %s\n", p->command, e->msg);
    return rc == RC_UNAUTHORIZED || rc == RC_DENIED ? EXIT_CREDENTIAL : EXIT_FAIL;
}

static int usage(const struct conf_program *p, const char *what)
{
    (void)fprintf(stderr, "%s: %s; see `%s --help`\n", p->command, what, p->command);
    return EXIT_USAGE;
}

/* "dir:PATH" or "PATH". */
static int open_output(const char *output, struct keydir **ret, struct err *e)
{
    if (str_prefix(output, "k8s-secret:"))
        return err_set(e, RC_UNSUPPORTED, "output: only directories are written; mount a volume, or make the Secret from the directory with kubectl");
    const char *path = str_prefix(output, "dir:") ? output + 4 : output;
    return *path ? keydir_open(path, ret, e) : err_set(e, RC_INVALID, "output: dir:PATH is expected");
}

/* What the service shall know us by: one credential, or an identity token to exchange. Either pointer is owned by the caller. */
static int credential(struct settings *s, struct secret **ret_key, struct secret **ret_identity, struct err *e)
{
    char *key = s->api_token ? s->api_token : s->api_key;
    if (s->rule_id) {
        if (s->key_file || key)
            return err_set(e, RC_INVALID, "both a credential and a federation rule are given: unset one");
        if (!s->organization_id)
            return err_set(e, RC_INVALID, "a federation rule needs --organization-id (or ANTHROPIC_ORGANIZATION_ID)");
        if (!s->identity_file == !s->identity)
            return err_set(e, RC_INVALID, "a federation rule needs exactly one of ANTHROPIC_IDENTITY_TOKEN_FILE and ANTHROPIC_IDENTITY_TOKEN");
        if (s->identity_file)
            return secret_read_projected(s->identity_file, ret_identity, e);
        *ret_identity = secret_from_str(s->identity);
        return RC_OK;
    }
    if (s->key_file)
        return secret_read_file(s->key_file, ret_key, e);
    if (!key)
        return err_set(e, RC_UNAUTHORIZED, "no credential: set ANTHROPIC_API_KEY or API_TOKEN, name a file with --key-file, or give a federation rule");
    *ret_key = secret_from_str(key);         /* wipes the setting's text */
    return RC_OK;
}

/* ---- the steps ---- */

struct setup { struct keydir *dir; struct init_api *api; const struct settings *s; struct init_tunnel tunnel; bool other_tunnel; };

static int read_stored(const struct keydir *d, const char *name, char **ret, struct err *e)
{
    return keydir_has(d, name) ? keydir_read(d, name, ret, e) : RC_OK;
}

static int write_text(const struct keydir *d, const char *name, const char *text, struct err *e)
{
    AUTO_FREE char *line = str_printf("%s\n", text);
    return keydir_write(d, name, line, strlen(line), e);
}

/* The new tunnel's id is written at once: a run that fails later must not leave one behind that the next run does not know of. */
static int attach(struct setup *x, struct err *e)
{
    AUTO_FREE char *stored = NULL;
    TRY(read_stored(x->dir, "tunnel-id", &stored, e));
    const char *id = x->s->tunnel_id ? x->s->tunnel_id : stored;
    if (id && !init_id_ok(id))
        return err_set(e, RC_INVALID, "'%.80s' is no tunnel id", id);
    if (!id) {
        TRY(init_api_create(x->api, x->s->display_name, &x->tunnel, e));
        printf("created tunnel %s\n", x->tunnel.id);
    } else {
        int rc = init_api_tunnel(x->api, id, &x->tunnel, e);
        if (rc == RC_NOT_FOUND)
            return err_wrap(e, rc, "tunnel %s does not exist here%s", id, x->s->tunnel_id ? "" : " (its id is in the output directory)");
        TRY(rc);
        if (!str_eq(x->tunnel.id, id))
            return err_set(e, RC_PROTO, "the service answered with another tunnel than %s", id);
        if (x->tunnel.archived)
            return err_set(e, RC_INVALID, "tunnel %s is archived for good: use another one, with another output directory", id);
        printf("attached to tunnel %s\n", x->tunnel.id);
    }
    x->other_tunnel = stored && !str_eq(stored, x->tunnel.id);
    return RC_OK;
}

static int make_keys(struct setup *x, struct err *e)
{
    const char *domain = x->tunnel.domain, *why = NULL;
    int64_t now = clock_now_ms();
    bool new_ca = x->other_tunnel || !keydir_has(x->dir, "ca.crt");
    if (new_ca) {
        TRY(keydir_make_ca(x->dir, domain, now, e));
        printf("made a certificate authority: %s/ca.crt\n", keydir_path(x->dir));
    }
    TRY(write_text(x->dir, "tunnel-id", x->tunnel.id, e));
    TRY(write_text(x->dir, "tunnel-domain", domain, e));
    keydir_leaf_due(x->dir, domain, now, x->s->before_ms, &why);
    if (new_ca)
        why = "the authority is new";
    if (!why) {
        printf("kept the leaf %s/tls.crt\n", keydir_path(x->dir));
        return RC_OK;
    }
    TRY(keydir_make_leaf(x->dir, domain, now, x->s->duration_ms, e));
    printf("made a leaf for *.%s: %s/tls.crt (%s)\n", domain, keydir_path(x->dir), why);
    return RC_OK;
}

/* SHA-256 of the certificate in a PEM text; the first one when there are several. */
static int fingerprint(const char *pem, char out[SHA256_HEX], struct err *e)
{
    static const char head[] = "-----BEGIN CERTIFICATE-----", tail[] = "-----END CERTIFICATE-----";
    const char *p = strstr(pem, head), *end = p ? strstr(p, tail) : NULL;
    struct buf text, der;
    buf_init(&text, KEYDIR_FILE_MAX);
    buf_init(&der, KEYDIR_FILE_MAX);
    for (p = p ? p + sizeof head - 1 : p; end && p < end; p++)
        if (!strchr(" \t\r\n", *p))
            buf_putc(&text, *p);
    int rc = buf_len(&text) ? base64_decode(&der, buf_data(&text), buf_len(&text)) : RC_INVALID;
    if (rc == RC_OK)
        sha256_hex(buf_data(&der), buf_len(&der), out);
    buf_done(&text);
    buf_done(&der);
    return rc == RC_OK ? RC_OK : err_set(e, RC_INVALID, "ca.crt is no PEM certificate");
}

static int register_ca(struct setup *x, struct err *e)
{
    AUTO_FREE char *pem = NULL;
    char print[SHA256_HEX];
    bool added = false;
    TRY(keydir_read(x->dir, "ca.crt", &pem, e));
    TRY(fingerprint(pem, print, e));
    AUTO_FREE char *line = str_printf("%s\n", pem);
    int rc = init_api_register(x->api, x->tunnel.id, line, print, &added, e);
    if (rc == RC_INVALID)
        return err_wrap(e, rc, "register the authority (a tunnel has at most two; revoke one that is not used any more)");
    TRY(rc);
    printf(added ? "registered the authority, SHA-256 %s\n" : "the authority is registered, SHA-256 %s\n", print);
    return RC_OK;
}

static int fetch_token(struct setup *x, struct err *e)
{
    AUTO_FREE char *version = NULL;
    TRY(read_stored(x->dir, "token-version", &version, e));
    /* Without a token here there is nothing to replace: revealing is enough, whatever the version says. */
    bool rotate = x->s->token_version && version && !x->other_tunnel && keydir_has(x->dir, "tunnel-token") && !str_eq(version, x->s->token_version);
    AUTO_PTR(secret) token = NULL;
    TRY(init_api_token(x->api, x->tunnel.id, rotate, &token, e));
    struct buf line;
    buf_init(&line, KEYDIR_FILE_MAX);
    buf_printf(&line, "%s\n", secret_text(token));
    int rc = keydir_write(x->dir, "tunnel-token", buf_data(&line), buf_len(&line), e);
    buf_wipe(&line);
    TRY(rc);
    if (x->s->token_version)
        TRY(write_text(x->dir, "token-version", x->s->token_version, e));
    printf("%s the token: %s/tunnel-token\n", rotate ? "rotated" : "fetched", keydir_path(x->dir));
    return RC_OK;
}

/* A YAML string in double quotes. */
static void put_yaml(struct buf *b, const char *s)
{
    (void)js_write_string(b, s, strlen(s));
}

/* Whole: the gateway may be started in another directory. */
static char *whole_path(const char *path)
{
    char *there = realpath(path, NULL);
    return there ? there : str_dup(path);
}

static int write_config(struct setup *x, struct err *e)
{
    AUTO_FREE char *dir = whole_path(keydir_path(x->dir));
    struct buf b;
    if (keydir_has(x->dir, "config.yaml"))
        return RC_OK;
    buf_init(&b, KEYDIR_FILE_MAX);
    buf_puts(&b, "# Written once by `outwork gateway init`; yours to edit. A change is taken up while the gateway runs.\ntunnel_domain: ");
    put_yaml(&b, x->tunnel.domain);
    const struct { const char *key, *file; } files[] = { { "\ntoken_file: ", "tunnel-token" }, { "\ntls:\n  cert_file: ", "tls.crt" }, { "\n  key_file: ", "tls.key" } };
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        AUTO_FREE char *path = str_printf("%s/%s", dir, files[i].file);
        buf_puts(&b, files[i].key);
        put_yaml(&b, path);
    }
    buf_puts(&b, x->s->edges.n ? "\nedge:\n" : "\n# edge: [\"edge.example.com:8443\"]       # without it the token names the edge\n");
    for (size_t i = 0; i < x->s->edges.n; i++) {
        buf_puts(&b, "  - ");
        put_yaml(&b, x->s->edges.item[i]);
        buf_puts(&b, "\n");
    }
    if (x->s->edge_ca) {
        AUTO_FREE char *ca = whole_path(x->s->edge_ca);
        buf_puts(&b, "edge_ca: ");
        put_yaml(&b, ca);
        buf_puts(&b, "\n");
    }
    buf_printf(&b, "# admin_listen: 127.0.0.1:8410           # /healthz /readyz /metrics\n"
                   "routes:\n"
                   "  # a name and where it leads: https://docs.%s/mcp goes to http://10.0.0.5:8080/mcp\n"
                   "  docs: http://10.0.0.5:8080\n"
                   "  # a program that speaks MCP on standard input and output:\n"
                   "  # notes: { stdio: \"/usr/local/bin/notes-mcp --read-only\" }\n",
               x->tunnel.domain);
    int rc = buf_ok(&b) ? keydir_write(x->dir, "config.yaml", buf_data(&b), buf_len(&b), e) : err_set(e, RC_LIMIT, "config.yaml would be too large");
    buf_done(&b);
    TRY(rc);
    printf("wrote a starter %s/config.yaml: set your routes there\n", dir);
    return RC_OK;
}

static int steps(struct setup *x, struct err *e)
{
    TRY(attach(x, e));
    if (!x->s->tunnel_id || !keydir_has(x->dir, "tunnel-id"))
        TRY(write_text(x->dir, "tunnel-id", x->tunnel.id, e));
    TRY(make_keys(x, e));
    TRY(register_ca(x, e));
    TRY(fetch_token(x, e));
    return write_config(x, e);
}

static int init(struct settings *s)
{
    struct err e = { 0 };
    if (!s->api_url)
        return usage(&init_program, "--api-url is missing (or set API_URL)");
    if (s->display_name && (!*s->display_name || strlen(s->display_name) > 255))
        return usage(&init_program, "--display-name has 1 to 255 characters");
    if (s->token_version && (!*s->token_version || strlen(s->token_version) > TOKEN_VERSION_MAX || strpbrk(s->token_version, "\r\n")))
        return usage(&init_program, "--token-version is a line of 1 to 128 characters");
    if (s->edge_ca && access(s->edge_ca, R_OK) < 0)
        return usage(&init_program, "--edge-ca names a file that cannot be read");
    AUTO_PTR(secret) key = NULL;
    AUTO_PTR(secret) identity = NULL;
    int rc = credential(s, &key, &identity, &e);
    if (rc == RC_INVALID && s->rule_id && !identity)
        return usage(&init_program, e.msg);
    if (rc < 0)
        return fail(&init_program, rc, &e);
    AUTO_PTR(keydir) dir = NULL;
    AUTO_PTR(init_api) api = NULL;
    struct init_api_conf c = { .base = s->api_url, .credential = key, .ca_file = s->ca_file, .http_proxy = s->http_proxy, .https_proxy = s->https_proxy,
                               .no_proxy = s->no_proxy };
    const struct init_identity who = { identity, s->rule_id, s->organization_id, s->service_account_id, s->workspace_id };
    rc = open_output(s->output, &dir, &e);
    if (rc == RC_OK)
        rc = init_api_new(&c, &api, &e);
    if (rc == RC_OK && identity)
        rc = init_api_exchange(api, &who, &e);
    struct setup x = { .dir = dir, .api = api, .s = s };
    if (rc == RC_OK)
        rc = steps(&x, &e);
    if (rc < 0)
        return fail(&init_program, rc, &e);
    printf("next: outwork gateway --config %s/config.yaml\n", keydir_path(dir));
    return EXIT_DONE;
}

static int renew(struct settings *s)
{
    struct err e = { 0 };
    AUTO_PTR(keydir) dir = NULL;
    AUTO_FREE char *domain = NULL;
    const char *why = "asked for";
    int rc = open_output(s->output, &dir, &e);
    if (rc == RC_OK)
        rc = keydir_read(dir, "tunnel-domain", &domain, &e);
    if (rc == RC_OK && s->before_ms > 0)
        keydir_leaf_due(dir, domain, clock_now_ms(), s->before_ms, &why);
    if (rc == RC_OK && why)
        rc = keydir_make_leaf(dir, domain, clock_now_ms(), s->duration_ms, &e);
    if (rc < 0)
        return fail(&renew_program, rc, &e);
    printf(why ? "made a new leaf: %s/tls.crt (%s)\n" : "kept the leaf %s/tls.crt: enough time is left%s\n", keydir_path(dir), why ? why : "");
    return EXIT_DONE;
}

static int run(const struct conf_program *p, int argc, char **argv, int (*then)(struct settings *))
{
    struct settings s = { 0 };
    struct err e = { 0 };
    bool quit = false;
    int status = EXIT_DONE;
    if (conf_load(p, argc, argv, &s, NULL, &quit, &e) < 0) {
        (void)fail(p, RC_INVALID, &e);
        status = EXIT_USAGE;
    } else if (!quit) {
        status = then(&s);
    }
    conf_free(p, &s);
    return status;
}

int gateway_init_main(int argc, char **argv) { return run(&init_program, argc, argv, init); }
int gateway_renew_main(int argc, char **argv) { return run(&renew_program, argc, argv, renew); }
