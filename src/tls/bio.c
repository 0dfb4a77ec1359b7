/* tls/bio.c - a BIO over the two callbacks of a struct tls_io. */
#include "tls/bio.h"

#include <limits.h>
#include <pthread.h>

static BIO_METHOD *method;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What a callback's code means to OpenSSL: 1 done, 0 the end, -1 later or failed. */
static int bio_result(BIO *b, struct tls_pipe *p, int rc, int retry)
{
    if (rc == RC_OK)
        return 1;
    if (rc == RC_AGAIN) {
        BIO_set_flags(b, retry | BIO_FLAGS_SHOULD_RETRY);
        return -1;
    }
    if (rc == RC_CLOSED && retry == BIO_FLAGS_READ) {
        p->eof = true;
        return 0;
    }
    if (p->rc == RC_OK)
        p->rc = rc;
    return -1;
}

static int bio_read(BIO *b, char *out, int n)
{
    struct tls_pipe *p = BIO_get_data(b);
    BIO_clear_retry_flags(b);
    if (n <= 0)
        return 0;
    size_t got = 0;
    int r = bio_result(b, p, p->io.read(p->io.ctx, out, (size_t)n, &got), BIO_FLAGS_READ);
    return r == 1 ? (int)got : r;
}

static int bio_write(BIO *b, const char *in, int n)
{
    struct tls_pipe *p = BIO_get_data(b);
    BIO_clear_retry_flags(b);
    if (n <= 0)
        return 0;
    size_t got = 0;
    int r = bio_result(b, p, p->io.write(p->io.ctx, in, (size_t)n, &got), BIO_FLAGS_WRITE);
    return r == 1 ? (int)got : r;
}

static long bio_ctrl(BIO *b, int cmd, long num, void *ptr)
{
    (void)num, (void)ptr;
    const struct tls_pipe *p = BIO_get_data(b);
    switch (cmd) {
    case BIO_CTRL_FLUSH:
        return 1;
    case BIO_CTRL_EOF:
        return p && p->eof;
    default:
        return 0;
    }
}

static int bio_create(BIO *b)
{
    BIO_set_init(b, 1);
    return 1;
}

static void method_make(void)
{
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "outwork pipe");
    if (method && (BIO_meth_set_read(method, bio_read) != 1 || BIO_meth_set_write(method, bio_write) != 1 || BIO_meth_set_ctrl(method, bio_ctrl) != 1
                   || BIO_meth_set_create(method, bio_create) != 1)) {
        BIO_meth_free(method);
        method = NULL;
    }
}

BIO *tls_bio_new(struct tls_pipe *p)
{
    (void)pthread_once(&once, method_make);      /* one for the life of the process */
    BIO *b = method ? BIO_new(method) : NULL;
    if (b)
        BIO_set_data(b, p);
    return b;
}
