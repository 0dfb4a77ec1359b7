/* `outwork vault`: the keys under which the secrets of vaults and tunnels are sealed (crypto/seal.h), straight in the data directory, also while the server
 * runs: it reads the key file again by itself. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "cli/cmd.h"
#include "conf/conf.h"
#include "crypto/seal.h"
#include "server/vault/secrets.h"
#include "store/store.h"

#define PAGE 100                     /* rows read at once */
#define PAGE_MEMORY (64 * MIB)
#define PASSES_MAX 10                /* over all rows: the server writes meanwhile */
#define TRIES_MAX 8                  /* of one row */

struct settings { char *data, *key_file; };
#define F(field) offsetof(struct settings, field)
static const struct conf_key keys[] = {
    { .name = "data", .type = CONF_STR, .field = F(data), .arg = "DIR", .help = "The server's data directory (default: /var/lib/outwork as root, else ./.outwork/server)." },
    { .name = "vault.key-file", .type = CONF_STR, .field = F(key_file), .arg = "FILE", .help = "As the server has it (default: vault.key in the data directory)." },
};
static const struct conf_program program = {
    .command = "outwork vault", .summary = "Replace the key that seals the secrets of vaults and tunnels.", .usage = "rewrap | key add | key list [options]",
    .epilog = "To replace a key:\n"
              "  outwork vault key add        puts a fresh key first in the key file; the server seals with it from now on\n"
              "  outwork vault rewrap         seals everything anew that is not under the first key; may be broken off and run again\n"
              "  then remove the old key's line from the key file, when no backup of the database needs it any more.\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static int fail(const struct err *e)
{
    fprintf(stderr, "outwork vault: %s\n", e->msg);
    return EXIT_FAILED;
}

/* ---- keys ---- */
static int key_add(const struct settings *s)
{
    char id[SEAL_KEY_ID_MAX];
    struct err e = { 0 };
    if (seal_key_add(s->key_file, id, &e) < 0)
        return fail(&e);
    fprintf(stderr, "outwork vault: key %s is now the first of %s; run `outwork vault rewrap` next\n", id, s->key_file);
    return EXIT_DONE;
}

static int key_list(const struct settings *s)
{
    AUTO_PTR(seal_ring) ring = NULL;
    char id[SEAL_KEY_ID_MAX];
    struct err e = { 0 };
    if (seal_load(s->key_file, false, &ring, &e) < 0)
        return fail(&e);
    for (size_t i = 0; seal_key_id(ring, i, id) == RC_OK; i++)
        printf("%s %s\n", id, i ? "opens" : "seals and opens");
    return EXIT_DONE;
}

/* ---- rewrap ---- */
enum result { CURRENT, DONE, GONE, BROKEN };      /* GONE: purged or changed meanwhile by somebody who seals with the newest key, or the next pass sees it */
struct tally { size_t seen, done, broken; };
/* The two tables behind one face. */
struct source {
    const char *what;
    int (*scan)(struct store *st, struct arena *a, const char *after, struct store_credential **ret, size_t *ret_n, struct err *e);
    int (*replace)(struct store *st, const char *id, const void *old, size_t old_n, const void *fresh, size_t fresh_n, struct err *e);
    void (*context)(const char *id, char out[VAULT_CONTEXT_MAX]);
};

static int scan_credentials(struct store *st, struct arena *a, const char *after, struct store_credential **ret, size_t *ret_n, struct err *e)
{
    return st->ops->vault->sealed_scan(st, a, after, PAGE, ret, ret_n, e);
}

static int replace_credential(struct store *st, const char *id, const void *old, size_t old_n, const void *fresh, size_t fresh_n, struct err *e)
{
    return st->ops->vault->sealed_replace(st, id, old, old_n, fresh, fresh_n, e);
}

static int scan_tokens(struct store *st, struct arena *a, const char *after, struct store_credential **ret, size_t *ret_n, struct err *e)
{
    struct store_tunnel_token *rows = NULL;
    size_t n = 0;
    TRY(st->ops->tunnel->token_scan(st, a, after, PAGE, &rows, &n, e));
    struct store_credential *out = arena_zalloc(a, (n + 1) * sizeof *out);
    if (!out)
        return err_set(e, RC_NOMEM, "out of memory");
    for (size_t i = 0; i < n; i++)
        out[i] = (struct store_credential){ .id = rows[i].id, .sealed = rows[i].sealed, .sealed_n = rows[i].sealed_n };
    *ret = out;
    *ret_n = n;
    return RC_OK;
}

static int replace_token(struct store *st, const char *id, const void *old, size_t old_n, const void *fresh, size_t fresh_n, struct err *e)
{
    return st->ops->tunnel->token_reseal(st, id, old, old_n, fresh, fresh_n, e);
}

/* As server/api/tunnels.c seals them. */
static void token_context(const char *id, char out[VAULT_CONTEXT_MAX]) { (void)snprintf(out, VAULT_CONTEXT_MAX, "tunnel_token:%s", id); }

static const struct source sources[] = {
    { "credential", scan_credentials, replace_credential, vault_context },
    { "tunnel token", scan_tokens, replace_token, token_context },
};

static enum result rewrap_row(struct store *st, const struct source *src, const struct seal_ring *ring, const struct store_credential *row, struct err *e)
{
    char context[VAULT_CONTEXT_MAX];
    AUTO_PTR(secret) plain = NULL;
    struct buf fresh;
    if (seal_is_current(ring, row->sealed, row->sealed_n))
        return CURRENT;
    src->context(row->id, context);
    if (seal_open(ring, context, row->sealed, row->sealed_n, &plain, e) < 0)
        return BROKEN;
    buf_init(&fresh, SEAL_PLAIN_MAX + SEAL_OVERHEAD);
    int rc = seal_put(ring, context, secret_text(plain), secret_len(plain), &fresh, e);
    for (int i = 0; rc == RC_OK || (rc == RC_AGAIN && i < TRIES_MAX); i++) {
        rc = src->replace(st, row->id, row->sealed, row->sealed_n, buf_data(&fresh), buf_len(&fresh), e);
        if (rc == RC_OK)
            break;
    }
    buf_done(&fresh);
    return rc == RC_OK ? DONE : rc == RC_CONFLICT ? GONE : BROKEN;
}

/* Every row once, page by page; each page has its own memory. */
static int pass(struct store *st, const struct source *src, const struct seal_ring *ring, struct tally *t, struct err *e)
{
    char after[ID_MAX] = "";
    size_t n;
    do {
        AUTO_PTR(arena) a = arena_new(64 * KIB, PAGE_MEMORY);
        struct store_credential *rows = NULL;
        if (!a)
            return err_set(e, RC_NOMEM, "out of memory");
        TRY(src->scan(st, a, after[0] ? after : NULL, &rows, &n, e));
        for (size_t i = 0; i < n; i++) {
            struct err why = { 0 };
            enum result r = rewrap_row(st, src, ring, &rows[i], &why);
            t->seen++;
            t->done += r == DONE || r == GONE;
            t->broken += r == BROKEN;
            if (r == BROKEN)
                fprintf(stderr, "outwork vault: %s %s: %s\n", src->what, rows[i].id, why.msg);
        }
        if (n) {
            (void)str_copy(after, sizeof after, rows[n - 1].id);
            fprintf(stderr, "outwork vault: %zu %ss seen, %zu sealed anew\n", t->seen, src->what, t->done);
        }
    } while (n == PAGE);
    return RC_OK;
}

static int rewrap(const struct settings *s)
{
    AUTO_PTR(seal_ring) ring = NULL;
    struct err e = { 0 };
    struct store *st = NULL;
    size_t done = 0, broken = 0;
    int rc = seal_load(s->key_file, false, &ring, &e);
    AUTO_FREE char *path = str_printf("%s/outwork.db", s->data);
    if (rc == RC_OK)
        rc = store_open(path, false, &st, &e);
    if (rc < 0)
        return fail(&e);
    for (size_t i = 0; i < COUNT_OF(sources) && rc == RC_OK; i++) {
        struct tally t = { .done = 1 };
        for (int p = 0; rc == RC_OK && t.done && p < PASSES_MAX; p++) {     /* until a pass finds nothing: the server may have been sealing when the key came */
            t = (struct tally){ 0 };
            rc = pass(st, &sources[i], ring, &t, &e);
            done += t.done;
        }
        broken += t.broken;
    }
    store_close(st);
    if (rc < 0)
        return fail(&e);
    fprintf(stderr, "outwork vault: %zu sealed anew, %zu cannot be opened%s\n", done, broken, broken ? "" : "; all are under the first key now");
    return broken ? EXIT_FAILED : EXIT_DONE;
}

/* ---- dispatch ---- */
static int usage(const char *what)
{
    fprintf(stderr, "outwork vault: %s; see `outwork vault --help`\n", what);
    return EXIT_USAGE;
}

static int run(struct settings *s, const struct conf_list *pos)
{
    const char *verb = pos->n ? pos->item[0] : NULL, *what = pos->n > 1 ? pos->item[1] : NULL;
    if (!s->data)
        s->data = str_dup(geteuid() == 0 ? "/var/lib/outwork" : "./.outwork/server");
    if (!s->key_file)
        s->key_file = str_printf("%s/vault.key", s->data);
    if (str_eq(verb, "rewrap") && pos->n == 1)
        return rewrap(s);
    if (str_eq(verb, "key") && pos->n == 2 && str_eq(what, "add"))
        return key_add(s);
    if (str_eq(verb, "key") && pos->n == 2 && str_eq(what, "list"))
        return key_list(s);
    return usage("expected rewrap, key add or key list");
}

int cmd_vault(int argc, char **argv)
{
    struct settings s = { 0 };
    struct conf_list pos = { 0 };
    struct err e = { 0 };
    bool help = false;
    int status = EXIT_DONE;
    if (conf_load(&program, argc, argv, &s, &pos, &help, &e) < 0) {
        (void)fail(&e);
        status = EXIT_USAGE;
    } else if (!help) {
        status = run(&s, &pos);
    }
    free(pos.item);
    conf_free(&program, &s);
    return status;
}
