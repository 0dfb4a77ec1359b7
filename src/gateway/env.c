/* gateway/env.c - see env.h */
#include "gateway/env.h"

#include <string.h>
#include <sys/stat.h>

#include "base/str.h"

#define ENV_TEXT_MAX (1 * MIB)

void file_stamp(struct buf *out, const char *path)
{
    struct stat st;
    if (!path)
        (void)buf_puts(out, "-\n");
    else if (stat(path, &st) < 0)
        (void)buf_printf(out, "%s ?\n", path);
    else
        (void)buf_printf(out, "%s %llu.%llu %lld %lld.%09ld %lld.%09ld\n", path, (unsigned long long)st.st_dev, (unsigned long long)st.st_ino, (long long)st.st_size,
                         (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (long long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}

static char *text_of(const struct gateway_settings *s)
{
    struct buf b;
    buf_init(&b, ENV_TEXT_MAX);
    for (size_t i = 0; i < s->allowed_ips.n; i++)
        (void)buf_printf(&b, "%s,", s->allowed_ips.item[i]);
    (void)buf_printf(&b, "\n%d %d %lld %lld %lld\n", s->ip_validation_off, s->upstream_system_cas, (long long)s->connect_ms, (long long)s->idle_ms, (long long)s->idle_max);
    file_stamp(&b, s->upstream_ca);
    file_stamp(&b, s->upstream_cert);
    file_stamp(&b, s->upstream_key);
    return buf_take(&b, NULL);
}

int env_new(struct ev *ev, const struct gateway_settings *s, struct env *old, struct env **ret, struct err *e)
{
    AUTO_FREE char *text = text_of(s);
    if (old && str_eq(old->text, text)) {
        *ret = env_ref(old);
        return RC_OK;
    }
    struct env *v = xcalloc(1, sizeof *v);
    v->refs = 1;
    v->ev = ev;
    v->connect_ms = s->connect_ms;
    v->idle_ms = s->idle_ms;
    v->idle_max = (size_t)s->idle_max;
    v->text = TAKE(text);
    int rc = ip_guard_new(&s->allowed_ips, s->ip_validation_off, &v->guard, e);
    if (rc == RC_OK && (s->upstream_ca || s->upstream_system_cas)) {
        struct tls_conf c = { .ca_file = s->upstream_ca, .system_cas = s->upstream_system_cas, .cert_file = s->upstream_cert, .key_file = s->upstream_key };
        rc = tls_ctx_client(&c, &v->tls, e);
        if (rc < 0)
            (void)err_wrap(e, rc, "upstream.tls");
    }
    if (rc < 0) {
        env_unref(v);
        return rc;
    }
    *ret = v;
    return RC_OK;
}

struct env *env_ref(struct env *v)
{
    v->refs++;
    return v;
}

void env_unref(struct env *v)
{
    if (!v || --v->refs)
        return;
    ip_guard_free(v->guard);
    tls_ctx_free(v->tls);
    free(v->text);
    free(v);
}
