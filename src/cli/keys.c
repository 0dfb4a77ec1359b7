/* `outwork key`, `outwork environment-key`, `outwork edge-key`, `outwork environment`: credentials and environments straight in the data directory, also while the
 * server runs and before its first start. A key is printed once, alone on stdout; everything said about it goes to stderr. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "auth/auth.h"
#include "base/arena.h"
#include "base/clock.h"
#include "base/secret.h"
#include "base/str.h"
#include "cli/cmd.h"
#include "conf/conf.h"
#include "json/js.h"
#include "store/store.h"

#define LIST_MEMORY (64 * MIB)
#define ENVIRONMENTS_PAGE 200

struct settings { char *data, *role, *name; bool json, archived; };
#define F(field) offsetof(struct settings, field)
#define KEY_DATA                                                                                                                   \
    { .name = "data", .type = CONF_STR, .field = F(data), .arg = "DIR",                                                            \
      .help = "The server's data directory (default: /var/lib/outwork as root, else ./.outwork/server)." }
#define KEY_NAME { .name = "name", .type = CONF_STR, .field = F(name), .arg = "TEXT", .help = "What the key is for; shown in lists." }
#define KEY_JSON { .name = "json", .type = CONF_BOOL, .field = F(json), .dflt = "false", .help = "Print lists as JSON." }

static const struct conf_key api_keys[] = {
    KEY_DATA,
    { .name = "role", .type = CONF_STR, .field = F(role), .dflt = "developer", .arg = "ROLE",
      .help = "admin, developer or user: what a new key may do." },
    KEY_NAME, KEY_JSON,
};
static const struct conf_key environment_keys[] = { KEY_DATA, KEY_NAME, KEY_JSON };
static const struct conf_key edge_keys[] = { KEY_DATA, KEY_NAME, KEY_JSON };
static const struct conf_key environments[] = {
    KEY_DATA, KEY_JSON,
    { .name = "archived", .type = CONF_BOOL, .field = F(archived), .dflt = "false", .help = "List archived environments too." },
};

static const struct conf_program key_program = {
    .command = "outwork key", .summary = "Create, list and revoke API keys.", .usage = "create|list|revoke [options] [KEY_ID]",
    .epilog = "Examples:\n"
              "  outwork key create --role admin --name laptop      prints the key, once\n"
              "  outwork key list\n"
              "  outwork key revoke apikey_01...                    acts on the next request\n",
    .keys = api_keys, .n_keys = COUNT_OF(api_keys),
};
static const struct conf_program environment_key_program = {
    .command = "outwork environment-key", .summary = "Create, list and revoke the keys that workers use.",
    .usage = "create|list ENV_ID, or revoke KEY_ID [options]",
    .epilog = "Examples:\n"
              "  outwork environment-key create env_01...           prints the key, once\n"
              "  outwork environment-key list env_01...             without ENV_ID: of all environments\n"
              "  outwork environment-key revoke ekey_01...\n",
    .keys = environment_keys, .n_keys = COUNT_OF(environment_keys),
};
static const struct conf_program edge_key_program = {
    .command = "outwork edge-key", .summary = "Create, list and revoke the keys that edges use towards the server.", .usage = "create|list|revoke [options] [KEY_ID]",
    .epilog = "Examples:\n"
              "  outwork edge-key create --name edge-1              prints the key, once\n"
              "  outwork edge-key list\n"
              "  outwork edge-key revoke edgekey_01...              acts on the edge's next call\n",
    .keys = edge_keys, .n_keys = COUNT_OF(edge_keys),
};
static const struct conf_program environment_program = {
    .command = "outwork environment", .summary = "List environments.", .usage = "list [options]",
    .epilog = "Environments are created through the API: POST /v1/environments.\n",
    .keys = environments, .n_keys = COUNT_OF(environments),
};

struct run {
    const struct conf_program *program;
    struct settings s;
    const char *verb, *arg;      /* arg: NULL when not given */
};

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static int fail(const struct run *r, const struct err *e)
{
    fprintf(stderr, "%s: %s\n", r->program->command, e->msg);
    return EXIT_FAILED;
}

static int usage(const struct run *r, const char *what)
{
    fprintf(stderr, "%s: %s; see `%s --help`\n", r->program->command, what, r->program->command);
    return EXIT_USAGE;
}

static int open_data(const struct run *r, bool create, struct store **ret, struct err *e)
{
    const char *dir = r->s.data ? r->s.data : geteuid() == 0 ? "/var/lib/outwork" : "./.outwork/server";
    AUTO_FREE char *path = str_printf("%s/outwork.db", dir);
    int rc = store_open(path, create, ret, e);
    return rc == RC_NOT_FOUND ? err_set(e, rc, "there is no database '%s': start the server once, or name its data directory with --data", path) : rc;
}

/* ---- lists ---- */

static const char *time_text(int64_t ms, char out[RFC3339_MAX])
{
    if (ms < 0)
        return "-";
    rfc3339_format(ms, out);
    return out;
}

/* Names come from the API and may hold anything: nothing that steers a terminal is printed raw. */
static void print_text(const char *s)
{
    for (; *s; s++)
        putchar((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s);
    putchar('\n');
}

static int print_json(json_t *take_rows)
{
    AUTO_JS rows = take_rows;
    AUTO_FREE char *text = js_text(rows);
    printf("%s\n", text);
    return EXIT_DONE;
}

/* The column, and the JSON member, that only keys of this kind have; edge keys have none. */
static const struct { const char *title, *member; } extra[] = {
    [KEY_API] = { "ROLE", "role" }, [KEY_ENVIRONMENT] = { "ENVIRONMENT", "environment_id" }, [KEY_EDGE] = { NULL, NULL },
};

static const char *extra_of(const struct store_key *k)
{
    return k->kind == KEY_API ? auth_role_name(k->role) : k->env_id;
}

static void print_key_line(const struct store_key *k)
{
    char created[RFC3339_MAX], used[RFC3339_MAX];
    printf("%-32s ", k->id);
    if (extra[k->kind].title)
        printf("%-32s ", extra_of(k));
    printf("...%-4s %-24s %-24s %-8s ", k->hint, time_text(k->created_ms, created), time_text(k->last_used_ms, used), k->revoked_ms < 0 ? "active" : "revoked");
    print_text(k->name);
}

static int print_keys(const struct run *r, enum key_kind kind, const struct store_key *k, size_t n)
{
    if (!r->s.json) {
        printf("%-32s ", "ID");
        if (extra[kind].title)
            printf("%-32s ", extra[kind].title);
        printf("%-7s %-24s %-24s %-8s %s\n", "KEY", "CREATED", "LAST USED", "STATE", "NAME");
    }
    AUTO_JS rows = json_array();
    for (size_t i = 0; i < n; i++) {
        if (!r->s.json) {
            print_key_line(&k[i]);
            continue;
        }
        json_t *row = json_object();
        js_set_str(row, "id", k[i].id);
        js_set_str(row, "name", k[i].name);
        if (extra[kind].member)
            js_set_str(row, extra[kind].member, extra_of(&k[i]));
        js_set_str(row, "hint", k[i].hint);
        js_set_time(row, "created_at", k[i].created_ms);
        js_set_time(row, "last_used_at", k[i].last_used_ms);
        js_set_time(row, "revoked_at", k[i].revoked_ms);
        js_push(rows, row);
    }
    return r->s.json ? print_json(TAKE(rows)) : EXIT_DONE;
}

static int list_keys(const struct run *r, enum key_kind kind)
{
    struct err e = { 0 };
    AUTO_PTR(arena) a = arena_new(64 * KIB, LIST_MEMORY);
    struct store *st;
    struct store_key *k;
    size_t n;
    if (open_data(r, false, &st, &e) < 0)
        return fail(r, &e);
    int rc = st->ops->key_list(st, a, kind, r->arg, &k, &n, &e);
    int status = rc < 0 ? fail(r, &e) : print_keys(r, kind, k, n);
    store_close(st);
    return status;
}

static void print_environment(const struct run *r, const struct store_environment *n, json_t *rows)
{
    char created[RFC3339_MAX];
    if (!r->s.json) {
        printf("%-32s %-24s %-8s ", n->id, time_text(n->created_ms, created), n->archived_ms < 0 ? "active" : "archived");
        print_text(n->name);
        return;
    }
    json_t *row = json_object();
    js_set_str(row, "id", n->id);
    js_set_str(row, "name", n->name);
    js_set_time(row, "created_at", n->created_ms);
    js_set_time(row, "archived_at", n->archived_ms);
    js_push(rows, row);
}

/* Page by page, newest first; each page has its own memory. */
static int each_environment(const struct run *r, struct store *st, json_t *rows, struct err *e)
{
    struct store_page p = STORE_PAGE_INIT;
    char after[ID_MAX];
    size_t n;
    p.limit = ENVIRONMENTS_PAGE;
    p.include_archived = r->s.archived;
    do {
        AUTO_PTR(arena) a = arena_new(64 * KIB, LIST_MEMORY);
        struct store_environment *page;
        TRY(st->ops->environment_list(st, a, &p, &page, &n, e));
        for (size_t i = 0; i < n; i++)
            print_environment(r, &page[i], rows);
        if (n) {
            (void)str_copy(after, sizeof after, page[n - 1].id);
            p.after_id = after;
            p.after_ms = page[n - 1].created_ms;
        }
    } while (n == ENVIRONMENTS_PAGE);
    return RC_OK;
}

static int list_environments(const struct run *r)
{
    struct err e = { 0 };
    struct store *st;
    if (open_data(r, false, &st, &e) < 0)
        return fail(r, &e);
    if (!r->s.json)
        printf("%-32s %-24s %-8s %s\n", "ID", "CREATED", "STATE", "NAME");
    AUTO_JS rows = json_array();
    int rc = each_environment(r, st, rows, &e);
    store_close(st);
    if (rc < 0)
        return fail(r, &e);
    return r->s.json ? print_json(TAKE(rows)) : EXIT_DONE;
}

/* ---- create, revoke ---- */

static int create_key(const struct run *r, enum key_kind kind)
{
    struct err e = { 0 };
    enum key_role role = ROLE_NONE;
    struct store *st;
    char text[TOKEN_MAX], id[ID_MAX];
    if (kind == KEY_API && auth_role_parse(r->s.role, &role) < 0) {
        fprintf(stderr, "%s: --role '%s' is none of admin, developer, user\n", r->program->command, r->s.role);
        return EXIT_USAGE;
    }
    if (open_data(r, kind != KEY_ENVIRONMENT, &st, &e) < 0)      /* a new directory has no environment to make a key for */
        return fail(r, &e);
    int rc = kind == KEY_API ? auth_api_key_create(st, role, r->s.name, text, id, &e)
           : kind == KEY_EDGE ? auth_edge_key_create(st, r->s.name, text, id, &e) : auth_environment_key_create(st, r->arg, r->s.name, text, id, &e);
    store_close(st);
    if (rc < 0)
        return fail(r, &e);
    fprintf(stderr, "%s: made %s; the key below is shown this once, only its hash is kept\n", r->program->command, id);
    printf("%s\n", text);
    bool written = fflush(stdout) == 0;
    wipe(text, sizeof text);
    if (written)
        return EXIT_DONE;
    fprintf(stderr, "%s: the key could not be written to stdout; revoke %s\n", r->program->command, id);
    return EXIT_FAILED;
}

static int revoke_key(const struct run *r)
{
    struct err e = { 0 };
    struct store *st;
    if (open_data(r, false, &st, &e) < 0)
        return fail(r, &e);
    int rc = st->ops->key_revoke(st, r->arg, clock_now_ms(), &e);
    store_close(st);
    if (rc < 0)
        return fail(r, &e);
    fprintf(stderr, "%s: %s is revoked\n", r->program->command, r->arg);
    return EXIT_DONE;
}

static int do_plain_key(const struct run *r, enum key_kind kind)
{
    if (str_eq(r->verb, "create"))
        return r->arg ? usage(r, "`create` takes no argument") : create_key(r, kind);
    if (str_eq(r->verb, "list"))
        return r->arg ? usage(r, "`list` takes no argument") : list_keys(r, kind);
    if (str_eq(r->verb, "revoke"))
        return r->arg ? revoke_key(r) : usage(r, "`revoke` needs a KEY_ID");
    return usage(r, "expected create, list or revoke");
}

static int do_key(const struct run *r) { return do_plain_key(r, KEY_API); }
static int do_edge_key(const struct run *r) { return do_plain_key(r, KEY_EDGE); }

static int do_environment_key(const struct run *r)
{
    if (str_eq(r->verb, "create"))
        return r->arg ? create_key(r, KEY_ENVIRONMENT) : usage(r, "`create` needs an ENV_ID");
    if (str_eq(r->verb, "list"))
        return list_keys(r, KEY_ENVIRONMENT);
    if (str_eq(r->verb, "revoke"))
        return r->arg ? revoke_key(r) : usage(r, "`revoke` needs a KEY_ID (see `list`)");
    return usage(r, "expected create, list or revoke");
}

static int do_environment(const struct run *r)
{
    if (!str_eq(r->verb, "list") || r->arg)
        return usage(r, "expected `list`");
    return list_environments(r);
}

static int dispatch(const struct conf_program *p, int (*run)(const struct run *r), int argc, char **argv)
{
    struct run r = { .program = p };
    struct conf_list pos = { 0 };
    struct err e = { 0 };
    bool help = false;
    int status = EXIT_DONE;
    if (conf_load(p, argc, argv, &r.s, &pos, &help, &e) < 0) {
        (void)fail(&r, &e);
        status = EXIT_USAGE;
    } else if (!help && (pos.n < 1 || pos.n > 2)) {
        status = usage(&r, pos.n ? "too many arguments" : "a verb is missing");
    } else if (!help) {
        r.verb = pos.item[0];
        r.arg = pos.n == 2 ? pos.item[1] : NULL;
        status = run(&r);
    }
    free(pos.item);
    conf_free(p, &r.s);
    return status;
}

int cmd_key(int argc, char **argv) { return dispatch(&key_program, do_key, argc, argv); }
int cmd_environment_key(int argc, char **argv) { return dispatch(&environment_key_program, do_environment_key, argc, argv); }
int cmd_edge_key(int argc, char **argv) { return dispatch(&edge_key_program, do_edge_key, argc, argv); }
int cmd_environment(int argc, char **argv) { return dispatch(&environment_program, do_environment, argc, argv); }
