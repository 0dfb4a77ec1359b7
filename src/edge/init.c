/* edge/init.c - see init.h. Two authorities: one for the edge and the provider's client, one for edges among themselves, since a provider's certificate must
 * not open the peers' listener. Neither has to do with the inner TLS: that authority is made by `outwork gateway init` and never comes here. */
#include "edge/init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/secret.h"
#include "base/str.h"
#include "conf/conf.h"
#include "tls/cert.h"

#define NAMES_MAX 32
#define PEM_MAX (16 * KIB)
#define CA_VALID_MS (10LL * 365 * 24 * 3600 * 1000)

struct init_settings { char *dir; struct conf_list name; int64_t valid_ms; bool renew; };
#define F(field) offsetof(struct init_settings, field)
static const struct conf_key keys[] = {
    { .name = "dir", .type = CONF_STR, .field = F(dir), .arg = "DIR", .help = "Where the files go; made when missing." },
    { .name = "name", .type = CONF_LIST, .field = F(name), .arg = "HOST|IP",
      .help = "Names and addresses under which gateways, the server and other edges reach the edge; may be repeated." },
    { .name = "valid", .type = CONF_DUR, .field = F(valid_ms), .dflt = "365d", .min = "1h", .max = "3650d", .arg = "TIME", .help = "How long the certificates are valid (the authorities: ten years)." },
    { .name = "renew", .type = CONF_BOOL, .field = F(renew), .dflt = "false", .help = "Make new certificates with the authorities that are in DIR, instead of everything." },
};
static const struct conf_program program = {
    .command = "outwork edge init",
    .summary = "Make the keys and certificates of the edge's outer connections. They protect no payload: that is what the inner TLS is for.",
    .usage = "--dir DIR --name HOST[,HOST|IP...]",
    .epilog = "Files: ca.crt ca.key, edge.crt edge.key (the edge shows it), provider.crt provider.key (the server shows it), peer-ca.crt peer-ca.key,\n"
              "peer.crt peer.key (edges among themselves; the same files on all of them). Nothing is overwritten, except certificates by --renew.\n"
              "Exit status: 0 done, 1 failure, 2 wrong use.\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

struct names { const char *dns[NAMES_MAX], *ip[NAMES_MAX]; size_t n_dns, n_ip; };

static int sort_names(const struct conf_list *l, struct names *ret, struct err *e)
{
    unsigned char raw[16];
    if (l->n == 0 || l->n > NAMES_MAX)
        return err_set(e, RC_INVALID, "--name is needed, at most %d times", NAMES_MAX);
    for (size_t i = 0; i < l->n; i++) {
        if (inet_pton(AF_INET, l->item[i], raw) == 1 || inet_pton(AF_INET6, l->item[i], raw) == 1)
            ret->ip[ret->n_ip++] = l->item[i];
        else
            ret->dns[ret->n_dns++] = l->item[i];
    }
    return RC_OK;
}

/* A key is never readable by others, not even for a moment; an existing file is left alone. */
static int write_new(const char *path, struct buf *b, unsigned mode, struct err *e)
{
    AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return err_sys(e, errno == EEXIST ? RC_CONFLICT : RC_IO, errno, "create '%s'", path);
    TRY(fd_write_all(fd, buf_data(b), buf_len(b), e));
    return fsync(fd) < 0 ? err_sys(e, RC_IO, errno, "write '%s'", path) : RC_OK;
}

static int write_pair(const struct init_settings *s, const char *name, bool replace, struct buf *cert, struct buf *key, struct err *e)
{
    AUTO_FREE char *crt = str_printf("%s/%s.crt", s->dir, name);
    AUTO_FREE char *k = str_printf("%s/%s.key", s->dir, name);
    if (!replace) {
        TRY(write_new(k, key, 0600, e));
        return write_new(crt, cert, 0644, e);
    }
    TRY(fd_write_file_atomic(k, buf_data(key), buf_len(key), 0600, e));
    return fd_write_file_atomic(crt, buf_data(cert), buf_len(cert), 0644, e);
}

static int read_pem(const struct init_settings *s, const char *file, struct buf *ret, struct err *e)
{
    AUTO_FREE char *path = str_printf("%s/%s", s->dir, file);
    char *text = NULL;
    size_t n = 0;
    TRY(fd_read_file(AT_FDCWD, path, PEM_MAX, &text, &n, e));
    int rc = buf_put(ret, text, n);
    wipe(text, n);
    free(text);
    return rc < 0 ? err_set(e, rc, "'%s' is too large", path) : RC_OK;
}

/* The authority: made, or read for --renew. */
static int get_ca(const struct init_settings *s, const char *name, const char *common_name, struct buf *cert, struct buf *key, struct err *e)
{
    if (s->renew) {
        AUTO_FREE char *crt = str_printf("%s.crt", name);
        AUTO_FREE char *k = str_printf("%s.key", name);
        TRY(read_pem(s, crt, cert, e));
        return read_pem(s, k, key, e);
    }
    const struct cert_spec spec = { .common_name = common_name, .now_ms = clock_now_ms(), .valid_ms = CA_VALID_MS };
    TRY(cert_make_ca(&spec, cert, key, e));
    return write_pair(s, name, false, cert, key, e);
}

struct leaf { const char *name, *common_name; bool names, client, both; };

static int make_leaf(const struct init_settings *s, const struct names *n, const struct leaf *l, struct buf *ca, struct buf *ca_key, struct err *e)
{
    struct cert_spec spec = { .common_name = l->common_name, .now_ms = clock_now_ms(), .valid_ms = s->valid_ms, .client = l->client, .both = l->both };
    struct buf cert, key;
    if (l->names) {
        spec.dns = n->dns;
        spec.n_dns = n->n_dns;
        spec.ip = n->ip;
        spec.n_ip = n->n_ip;
    }
    buf_init(&cert, PEM_MAX);
    buf_init(&key, PEM_MAX);
    int rc = cert_make_leaf(&spec, buf_data(ca), buf_data(ca_key), &cert, &key, e);
    if (rc == RC_OK)
        rc = write_pair(s, l->name, s->renew, &cert, &key, e);
    buf_done(&cert);
    buf_wipe(&key);
    return rc;
}

static int make_all(const struct init_settings *s, const struct names *n, struct err *e)
{
    static const struct leaf edge = { .name = "edge", .common_name = "Outwork edge", .names = true };
    static const struct leaf provider = { .name = "provider", .common_name = "Outwork server, as a client of the edge", .client = true };
    static const struct leaf peer = { .name = "peer", .common_name = "Outwork edge, among edges", .names = true, .both = true };
    struct buf ca, ca_key, peer_ca, peer_ca_key;
    buf_init(&ca, PEM_MAX);
    buf_init(&ca_key, PEM_MAX);
    buf_init(&peer_ca, PEM_MAX);
    buf_init(&peer_ca_key, PEM_MAX);
    int rc = get_ca(s, "ca", "Outwork edge: authority of the outer connections", &ca, &ca_key, e);
    if (rc == RC_OK)
        rc = make_leaf(s, n, &edge, &ca, &ca_key, e);
    if (rc == RC_OK)
        rc = make_leaf(s, n, &provider, &ca, &ca_key, e);
    if (rc == RC_OK)
        rc = get_ca(s, "peer-ca", "Outwork edge: authority of edges among themselves", &peer_ca, &peer_ca_key, e);
    if (rc == RC_OK)
        rc = make_leaf(s, n, &peer, &peer_ca, &peer_ca_key, e);
    buf_done(&ca);
    buf_done(&peer_ca);
    buf_wipe(&ca_key);
    buf_wipe(&peer_ca_key);
    return rc;
}

/* All or nothing: an old file would not fit the new ones. */
static int refuse_existing(const struct init_settings *s, struct err *e)
{
    static const char *const files[] = { "ca.crt", "ca.key", "edge.crt", "edge.key", "provider.crt", "provider.key", "peer-ca.crt", "peer-ca.key", "peer.crt", "peer.key" };
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        AUTO_FREE char *path = str_printf("%s/%s", s->dir, files[i]);
        struct stat st;
        if (lstat(path, &st) == 0)
            return err_set(e, RC_CONFLICT, "'%s' exists and is not overwritten; choose another --dir, or --renew to make new certificates with the same authorities", path);
    }
    return RC_OK;
}

static void say_next(const struct init_settings *s, const struct names *n)
{
    const char *d = s->dir, *host = n->n_dns ? n->dns[0] : n->ip[0];
    bool v6 = !n->n_dns && strchr(host, ':');
    AUTO_FREE char *name = str_printf(v6 ? "[%s]" : "%s", host);
    printf("Made in %s: ca.crt ca.key edge.crt edge.key provider.crt provider.key peer-ca.crt peer-ca.key peer.crt peer.key\n\n", d);
    printf("1. On the server, make a key for the edge:\n"
           "   outwork edge-key create --data /var/lib/outwork\n\n");
    printf("2. Here (the edge needs edge.*, ca.crt and, with other edges, peer.* and peer-ca.crt; no ca.key):\n"
           "   OUTWORK_EDGE_KEY=... outwork edge --server https://SERVER \\\n"
           "       --gateway-listen :8443 --provider-listen :8444 --admin-listen 127.0.0.1:9444 \\\n"
           "       --tls-cert %s/edge.crt --tls-key %s/edge.key --provider-client-ca %s/ca.crt\n"
           "   with other edges, further: --peer-listen :8445 --peer-advertise %s:8445 \\\n"
           "       --peer-cert %s/peer.crt --peer-key %s/peer.key --peer-ca %s/peer-ca.crt\n\n",
           d, d, d, name, d, d, d);
    printf("3. Copy ca.crt, provider.crt and provider.key to the server and start it with\n"
           "   --tunnel-edge https://%s:8444 --tunnel-edge-ca ca.crt --tunnel-edge-cert provider.crt --tunnel-edge-key provider.key\n\n",
           name);
    printf("4. Give ca.crt to those who run gateways:\n"
           "   outwork gateway --edge %s:8443 --edge-ca ca.crt\n\n",
           name);
    printf("Keep ca.key and peer-ca.key off the edge: whoever has them can speak as the server or as an edge, though nobody can read payloads with them.\n"
           "Before %s.crt ends, run this again with --renew, copy the files, and send SIGHUP to the edge.\n",
           "edge");
}

int edge_init_main(int argc, char **argv)
{
    struct init_settings s = { 0 };
    struct names n = { 0 };
    struct err e = { 0 };
    bool help = false;
    int rc = conf_load(&program, argc, argv, &s, NULL, &help, &e);
    if (rc == RC_OK && !help && !s.dir)
        rc = err_set(&e, RC_INVALID, "--dir DIR is missing");
    if (rc == RC_OK && !help)
        rc = sort_names(&s.name, &n, &e);
    bool wrong_use = rc < 0;
    if (rc == RC_OK && !help) {
        rc = fd_mkdirs(s.dir, 0700, &e);
        if (rc == RC_OK && !s.renew)
            rc = refuse_existing(&s, &e);
        if (rc == RC_OK)
            rc = make_all(&s, &n, &e);
        if (rc == RC_OK)
            say_next(&s, &n);
    }
    if (rc < 0)
        (void)fprintf(stderr, "outwork edge init: %s\n", e.msg);
    conf_free(&program, &s);
    return rc == RC_OK ? 0 : wrong_use || rc == RC_INVALID ? 2 : 1;
}
