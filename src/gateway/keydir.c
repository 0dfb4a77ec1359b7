/* gateway/keydir.c - see keydir.h */
#include "gateway/keydir.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>

#include "base/buf.h"
#include "base/fd.h"
#include "base/str.h"
#include "tls/cert.h"
#include "tls/tls.h"

#define COMMON_NAME_MAX 64
#define LEAF_LEFT_MIN_MS ((int64_t)3600 * 1000)      /* an authority that ends sooner is of no use */

struct keydir { char *path; int fd, lock; };

/* Only for looking: makes nothing, locks nothing, so that a directory that is mounted read-only will do. */
static int look(const char *path, struct keydir **ret, struct err *e)
{
    char real[PATH_MAX];
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || !realpath(path, real))
        return err_sys(e, RC_IO, errno, "open the directory %s", path);
    struct keydir *d = xcalloc(1, sizeof *d);
    d->path = str_dup(real);
    d->fd = TAKE_FD(fd);
    d->lock = -1;
    *ret = d;
    return RC_OK;
}

static int lock(struct keydir *d, struct err *e)
{
    d->lock = openat(d->fd, ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (d->lock < 0)
        return err_sys(e, RC_DENIED, errno, "write to the directory %s", d->path);
    return flock(d->lock, LOCK_EX | LOCK_NB) == 0 ? RC_OK : err_set(e, RC_CONFLICT, "another command is working on %s", d->path);
}

int keydir_open(const char *path, struct keydir **ret, struct err *e)
{
    AUTO_PTR(keydir) d = NULL;
    TRY(fd_mkdirs(path, 0700, e));
    TRY(look(path, &d, e));
    TRY(lock(d, e));
    *ret = TAKE(d);
    return RC_OK;
}

void keydir_free(struct keydir *d)
{
    if (!d)
        return;
    (void)close(d->fd);
    if (d->lock >= 0)
        (void)close(d->lock);
    free(d->path);
    free(d);
}

const char *keydir_path(const struct keydir *d) { return d->path; }

bool keydir_has(const struct keydir *d, const char *name)
{
    return faccessat(d->fd, name, F_OK, 0) == 0;
}

int keydir_read(const struct keydir *d, const char *name, char **ret, struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    int rc = fd_read_file(d->fd, name, KEYDIR_FILE_MAX, &text, &n, e);
    if (rc < 0)
        return err_wrap(e, rc, "%s", d->path);
    char *from = text + strspn(text, " \t\r\n");
    n = strlen(from);
    while (n && strchr(" \t\r\n", from[n - 1]))
        n--;
    memmove(text, from, n);
    text[n] = '\0';
    *ret = text;
    return RC_OK;
}

int keydir_write(const struct keydir *d, const char *name, const char *text, size_t n, struct err *e)
{
    AUTO_FREE char *path = str_printf("%s/%s", d->path, name);
    return fd_write_file_atomic(path, text, n, 0600, e);
}

/* ---- certificates ---- */

static int put_pair(const struct keydir *d, const char *cert_name, const char *key_name, struct buf *cert, struct buf *key, struct err *e)
{
    /* The key first: a reader that catches the moment in between sees a pair that does not fit, and tries again; so does keydir_leaf_due() after a crash. */
    TRY(keydir_write(d, key_name, buf_data(key), buf_len(key), e));
    return keydir_write(d, cert_name, buf_data(cert), buf_len(cert), e);
}

int keydir_make_ca(const struct keydir *d, const char *domain, int64_t now_ms, struct err *e)
{
    struct buf cert, key;
    AUTO_FREE char *name = str_printf("Outwork CA of %.40s", domain);
    struct cert_spec s = { .common_name = name, .now_ms = now_ms, .valid_ms = KEYDIR_CA_VALID_MS };
    buf_init(&cert, CERT_PEM_MAX);
    buf_init(&key, CERT_PEM_MAX);
    int rc = cert_make_ca(&s, &cert, &key, e);
    if (rc == RC_OK)
        rc = put_pair(d, "ca.crt", "ca.key", &cert, &key, e);
    buf_done(&cert);
    buf_wipe(&key);
    return rc;
}

/* The pair's time of validity; RC_INVALID when the two do not fit or cannot be read. */
static int pair_validity(const struct keydir *d, const char *cert, const char *key, const char *host, int64_t *ret_from, int64_t *ret_to, bool *ret_covers,
                         struct err *e)
{
    AUTO_FREE char *c = str_printf("%s/%s", d->path, cert);
    AUTO_FREE char *k = str_printf("%s/%s", d->path, key);
    struct tls_conf conf = { .cert_file = c, .key_file = k };
    struct tls_ctx *x = NULL;
    TRY(tls_ctx_server(&conf, &x, e));
    bool ok = tls_ctx_validity(x, ret_from, ret_to);
    *ret_covers = host && tls_ctx_covers(x, host);
    tls_ctx_free(x);
    return ok ? RC_OK : err_set(e, RC_INVALID, "%s has no time of validity", c);
}

int keydir_make_leaf(const struct keydir *d, const char *domain, int64_t now_ms, int64_t valid_ms, struct err *e)
{
    AUTO_FREE char *wild = str_printf("*.%s", domain);
    const char *dns[] = { wild, domain };
    struct cert_spec s = { .common_name = strlen(domain) <= COMMON_NAME_MAX ? domain : "outwork gateway", .dns = dns, .n_dns = 2, .now_ms = now_ms,
                           .valid_ms = valid_ms };
    if (!keydir_has(d, "ca.key") || !keydir_has(d, "ca.crt"))
        return err_set(e, RC_NOT_FOUND, "%s has no %s: put it back for this command, or make the leaf where it is kept", d->path,
                       keydir_has(d, "ca.key") ? "ca.crt" : "ca.key");
    int64_t ca_from = 0, ca_to = 0;
    bool covers;
    TRY(pair_validity(d, "ca.crt", "ca.key", NULL, &ca_from, &ca_to, &covers, e));
    if (ca_to - now_ms < LEAF_LEFT_MIN_MS)
        return err_set(e, RC_INVALID, "the authority %s/ca.crt has expired or is about to: move it away and run `outwork gateway init` again", d->path);
    if (s.valid_ms > ca_to - now_ms)
        s.valid_ms = ca_to - now_ms;         /* a leaf that outlives its authority would only seem valid */
    AUTO_FREE char *ca = NULL;
    char *ca_key = NULL;
    struct buf cert, key;
    TRY(keydir_read(d, "ca.crt", &ca, e));
    TRY(keydir_read(d, "ca.key", &ca_key, e));
    buf_init(&cert, CERT_PEM_MAX);
    buf_init(&key, CERT_PEM_MAX);
    int rc = cert_make_leaf(&s, ca, ca_key, &cert, &key, e);
    wipe(ca_key, strlen(ca_key));
    free(ca_key);
    if (rc == RC_OK)
        rc = put_pair(d, "tls.crt", "tls.key", &cert, &key, e);
    buf_done(&cert);
    buf_wipe(&key);
    return rc;
}

void keydir_leaf_due(const struct keydir *d, const char *domain, int64_t now_ms, int64_t before_ms, const char **ret_why)
{
    int64_t from = 0, to = 0;
    bool covers = false;
    AUTO_FREE char *host = domain ? str_printf("outwork-route.%s", domain) : NULL;
    if (!keydir_has(d, "tls.crt") || !keydir_has(d, "tls.key"))
        *ret_why = "there is none";
    else if (pair_validity(d, "tls.crt", "tls.key", host, &from, &to, &covers, NULL) < 0)
        *ret_why = "certificate and key do not fit, or cannot be read";
    else if (host && !covers)
        *ret_why = "it is of another domain";
    else if (from > now_ms)
        *ret_why = "it is not valid yet";
    else if (to <= now_ms)
        *ret_why = "it has expired";
    else
        *ret_why = to - now_ms < before_ms ? "it expires soon" : NULL;
}

int renew_if_due(const char *dir, int64_t now_ms, int64_t before_ms, int64_t valid_ms, bool *ret_done, struct err *e)
{
    AUTO_PTR(keydir) d = NULL;
    AUTO_FREE char *domain = NULL;
    const char *why = NULL;
    TRY(look(dir, &d, e));
    struct err no_domain = { 0 };
    int rc = keydir_read(d, "tunnel-domain", &domain, &no_domain);
    keydir_leaf_due(d, domain, now_ms, before_ms, &why);
    if (why && rc == RC_OK && (rc = lock(d, e)) == RC_OK)
        keydir_leaf_due(d, domain, now_ms, before_ms, &why);     /* somebody else may just have done it */
    else if (why && rc < 0 && no_domain.rc && e)
        *e = no_domain;
    if (why && rc == RC_OK)
        rc = keydir_make_leaf(d, domain, now_ms, valid_ms, e);
    if (why && rc < 0)
        return err_wrap(e, rc, "renew the certificate (%s)", why);
    *ret_done = why != NULL;
    return RC_OK;
}
