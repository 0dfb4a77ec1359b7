/* worker/keys.c - see keys.h */
#include "worker/keys.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/str.h"
#include "log/log.h"
#include "worker/creds.h"

#define KEY_MAX 4096

struct keys { char env_key[KEY_MAX]; char work_secret[WORK_SECRET_MAX]; };

static int take(const char *name, char *to, size_t cap, struct err *e)
{
    struct secret *s = secret_take_env(name);
    if (!s)
        return RC_OK;
    bool fits = secret_len(s) < cap;
    if (fits)
        memcpy(to, secret_text(s), secret_len(s) + 1);
    secret_free(s);
    return fits ? RC_OK : err_set(e, RC_INVALID, "%s is too long", name);
}

int keys_take(bool keep_others, struct keys **ret, struct err *e)
{
    struct keys *k = mmap(NULL, sizeof *k, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (k == MAP_FAILED)
        return err_sys(e, RC_NOMEM, errno, "memory for the keys");
    if (madvise(k, sizeof *k, MADV_WIPEONFORK) < 0 || madvise(k, sizeof *k, MADV_DONTDUMP) < 0) {
        (void)munmap(k, sizeof *k);
        return err_sys(e, RC_UNSUPPORTED, errno, "memory that is not inherited");
    }
    *ret = k;
    TRY(take("ANTHROPIC_ENVIRONMENT_KEY", k->env_key, sizeof k->env_key, e));
    TRY(take("ANTHROPIC_WORK_SECRET", k->work_secret, sizeof k->work_secret, e));
    if (!keep_others) {                /* never used by a worker: two credentials in one request are refused (worker.md 1.2) */
        secret_free(secret_take_env("ANTHROPIC_API_KEY"));
        secret_free(secret_take_env("ANTHROPIC_AUTH_TOKEN"));
    }
    return RC_OK;
}

static int check_key(const struct secret *s, struct err *e)
{
    for (const char *p = secret_text(s); *p; p++)
        if ((unsigned char)*p <= ' ' || (unsigned char)*p >= 127)
            return err_set(e, RC_INVALID, "the environment key holds a space or a character that no key has");
    return RC_OK;
}

static int load_token(struct keys *k, const struct worker_settings *s, struct secret **ret, struct err *e)
{
    AUTO_PTR(secret) text = NULL;
    if (s->work_secret_file)
        TRY(secret_read_file(s->work_secret_file, &text, e));
    else if (k->work_secret[0])
        text = secret_new(k->work_secret, strlen(k->work_secret));
    return text ? creds_decode(secret_text(text), secret_len(text), ret, e) : RC_OK;
}

static int load(struct keys *k, const struct worker_settings *s, bool run, struct secret **ret_env_key, struct secret **ret_token, struct err *e)
{
    AUTO_PTR(secret) key = NULL;
    AUTO_PTR(secret) token = NULL;
    if (s->environment_key_file)
        TRY(secret_read_file(s->environment_key_file, &key, e));
    else if (k->env_key[0])
        key = secret_new(k->env_key, strlen(k->env_key));
    if (key)
        TRY(check_key(key, e));
    if (run) {
        int rc = load_token(k, s, &token, e);
        if (rc < 0 && !key)
            return rc;
        if (rc < 0)
            log_warn("work.secret", "why=%s use=%s", e->msg, "the environment key");
    }
    if (!key && !token)
        return err_set(e, RC_INVALID, "no environment key: give --environment-key-file FILE or set ANTHROPIC_ENVIRONMENT_KEY%s",
                       run ? ", or the item's secret by --work-secret-file" : "");
    *ret_env_key = TAKE(key);
    *ret_token = TAKE(token);
    return RC_OK;
}

int keys_load(struct keys *k, const struct worker_settings *s, bool run, struct secret **ret_env_key, struct secret **ret_token, struct err *e)
{
    int rc = load(k, s, run, ret_env_key, ret_token, e);
    wipe(k, sizeof *k);
    (void)munmap(k, sizeof *k);
    return rc;
}
