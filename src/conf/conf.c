/* conf.c - the sources of settings and their order: default, YAML file, environment, flag. */
#include "conf/conf.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "base/fd.h"
#include "base/str.h"
#include "conf/conf_internal.h"

struct loader {
    const struct conf_program *p;
    void *settings;
    const char *file;
    bool *seen;              /* per key: set by the source that is being read (lists add up within one source only) */
};

static int put(struct loader *l, size_t i, const char *text, const char *where, struct err *e)
{
    const struct conf_key *k = &l->p->keys[i];
    if (k->type == CONF_LIST && !l->seen[i])
        conf_list_clear(conf_field(k, l->settings));
    l->seen[i] = true;
    return conf_set(k, l->settings, text, where, e);
}

static void next_source(struct loader *l)
{
    memset(l->seen, 0, l->p->n_keys * sizeof *l->seen);
}

/* ---- YAML ---- */
static int yaml_scalar(struct loader *l, const char *name, yaml_node_t *v, struct err *e)
{
    char where[512], near[CONF_NAME_MAX];
    snprintf(where, sizeof where, "%s:%zu: %s", l->file, v->start_mark.line + 1, name);
    for (size_t i = 0; i < l->p->n_keys; i++) {
        if (!str_eq(l->p->keys[i].name, name))
            continue;
        if (l->p->keys[i].secret)
            return err_set(e, RC_INVALID, "%s: a secret does not belong in a file of settings; name a file with the key's -file form, or use the environment", where);
        return put(l, i, (const char *)v->data.scalar.value, where, e);
    }
    const char *n = conf_nearest(l->p, name, false, near);
    return err_set(e, RC_INVALID, "%s: no such setting%s%s%s", where, n ? "; did you mean '" : "", n ? n : "", n ? "'?" : "");
}

static int yaml_walk(struct loader *l, yaml_document_t *doc, const char *prefix, yaml_node_t *node, int depth, struct err *e)
{
    if (depth > 8)
        return err_set(e, RC_INVALID, "%s:%zu: nested too deeply", l->file, node->start_mark.line + 1);
    if (node->type == YAML_SCALAR_NODE)
        return yaml_scalar(l, prefix, node, e);
    if (node->type == YAML_SEQUENCE_NODE) {
        for (yaml_node_item_t *it = node->data.sequence.items.start; it < node->data.sequence.items.top; it++) {
            yaml_node_t *item = yaml_document_get_node(doc, *it);
            if (!item || item->type != YAML_SCALAR_NODE)
                return err_set(e, RC_INVALID, "%s:%zu: %s: a list holds plain values only", l->file, node->start_mark.line + 1, prefix);
            TRY(yaml_scalar(l, prefix, item, e));
        }
        return RC_OK;
    }
    for (yaml_node_pair_t *it = node->data.mapping.pairs.start; it < node->data.mapping.pairs.top; it++) {
        yaml_node_t *key = yaml_document_get_node(doc, it->key), *value = yaml_document_get_node(doc, it->value);
        char name[CONF_NAME_MAX];
        if (!key || !value || key->type != YAML_SCALAR_NODE)
            return err_set(e, RC_INVALID, "%s:%zu: a key must be plain text", l->file, node->start_mark.line + 1);
        if ((size_t)snprintf(name, sizeof name, "%s%s%s", prefix, *prefix ? "." : "", (const char *)key->data.scalar.value) >= sizeof name)
            return err_set(e, RC_INVALID, "%s:%zu: a key is too long", l->file, key->start_mark.line + 1);
        TRY(yaml_walk(l, doc, name, value, depth + 1, e));
    }
    return RC_OK;
}

static int load_file(struct loader *l, const char *path, struct err *e)
{
    AUTO_FREE char *text = NULL;
    size_t n = 0;
    TRY(fd_read_file(AT_FDCWD, path, CONF_FILE_MAX, &text, &n, e));
    yaml_parser_t parser;
    yaml_document_t doc;
    if (!yaml_parser_initialize(&parser))
        return err_set(e, RC_NOMEM, "YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n);
    l->file = path;
    int rc;
    if (!yaml_parser_load(&parser, &doc)) {
        rc = err_set(e, RC_INVALID, "%s:%zu: %s", path, parser.problem_mark.line + 1, parser.problem ? parser.problem : "not YAML");
    } else {
        yaml_node_t *root = yaml_document_get_root_node(&doc);
        rc = !root ? RC_OK : root->type != YAML_MAPPING_NODE ? err_set(e, RC_INVALID, "%s:1: expected keys and values", path) : yaml_walk(l, &doc, "", root, 0, e);
        yaml_document_delete(&doc);
    }
    yaml_parser_delete(&parser);
    next_source(l);
    return rc;
}

/* ---- environment ---- */
static int load_environment(struct loader *l, struct err *e)
{
    for (size_t i = 0; i < l->p->n_keys; i++) {
        const struct conf_key *k = &l->p->keys[i];
        char name[CONF_NAME_MAX];
        if (k->secret)
            continue;        /* taken by the program itself, by secret_take_env() */
        conf_env_name(k, name);
        const char *v = k->env ? getenv(k->env) : NULL, *own = getenv(name);
        if (own && *own)
            TRY(put(l, i, own, name, e));
        else if (v && *v)
            TRY(put(l, i, v, k->env, e));
    }
    next_source(l);
    return RC_OK;
}

/* ---- flags ---- */
static int find_flag(const struct conf_program *p, const char *arg, size_t n, size_t *ret, bool *ret_no)
{
    for (size_t i = 0; i < p->n_keys; i++) {
        char flag[CONF_NAME_MAX];
        conf_flag_name(&p->keys[i], flag);
        *ret = i;
        *ret_no = false;
        if (p->keys[i].secret)
            continue;
        if ((strlen(flag) == n && memcmp(flag, arg, n) == 0) || (n == 2 && p->keys[i].short_flag && arg[1] == p->keys[i].short_flag))
            return RC_OK;
        *ret_no = true;
        if (p->keys[i].type == CONF_BOOL && n == strlen(flag) + 3 && memcmp(arg, "--no-", 5) == 0 && memcmp(arg + 5, flag + 2, n - 5) == 0)
            return RC_OK;
    }
    return RC_NOT_FOUND;
}

static int unknown_flag(const struct conf_program *p, const char *arg, size_t n, struct err *e)
{
    char near[CONF_NAME_MAX], name[CONF_NAME_MAX];
    snprintf(name, sizeof name, "%.*s", (int)n, arg);
    const char *k = conf_nearest(p, name, true, near);
    return err_set(e, RC_INVALID, "unknown option %s%s%s%s; `%s --help` lists them", name, k ? " (did you mean " : "", k ? k : "", k ? "?)" : "", p->command);
}

static int load_flag(struct loader *l, int argc, char **argv, int *at, struct err *e)
{
    const char *arg = argv[*at], *eq = strchr(arg, '=');
    size_t n = eq ? (size_t)(eq - arg) : strlen(arg), i;
    bool no;
    if (find_flag(l->p, arg, n, &i, &no) < 0)
        return unknown_flag(l->p, arg, n, e);
    if (l->p->keys[i].type == CONF_BOOL) {
        if (eq && no)
            return err_set(e, RC_INVALID, "%.*s takes no value", (int)n, arg);
        return put(l, i, eq ? eq + 1 : no ? "false" : "true", arg, e);
    }
    if (!eq && *at + 1 >= argc)
        return err_set(e, RC_INVALID, "%s needs a value (%s)", arg, l->p->keys[i].arg ? l->p->keys[i].arg : "VALUE");
    char where[CONF_NAME_MAX];
    snprintf(where, sizeof where, "%.*s", (int)n, arg);
    return put(l, i, eq ? eq + 1 : argv[++*at], where, e);
}

struct special { const char *config; bool help, print; };

/* First pass: what stands above the table's rows, so that the file is read before the flags are applied. */
static int scan_special(int argc, char **argv, struct special *s, struct err *e)
{
    for (int i = 1; i < argc && !str_eq(argv[i], "--"); i++) {
        if (str_eq(argv[i], "--help") || str_eq(argv[i], "-h"))
            s->help = true;
        else if (str_eq(argv[i], "--print-config"))
            s->print = true;
        else if (str_prefix(argv[i], "--config="))
            s->config = argv[i] + 9;
        else if (str_eq(argv[i], "--config") && i + 1 < argc)
            s->config = argv[++i];
        else if (str_eq(argv[i], "--config"))
            return err_set(e, RC_INVALID, "--config needs a value (FILE)");
    }
    return RC_OK;
}

static int load_arguments(struct loader *l, int argc, char **argv, struct conf_list *pos, struct err *e)
{
    bool rest = false;
    for (int i = 1; i < argc; i++) {
        if (!rest && str_eq(argv[i], "--")) {
            rest = true;
        } else if (!rest && (str_eq(argv[i], "--print-config") || str_prefix(argv[i], "--config="))) {
            continue;
        } else if (!rest && str_eq(argv[i], "--config")) {
            i++;
        } else if (!rest && argv[i][0] == '-' && argv[i][1]) {
            TRY(load_flag(l, argc, argv, &i, e));
        } else {
            pos->item = xrealloc(pos->item, pos->n + 1, sizeof *pos->item);
            pos->item[pos->n++] = argv[i];
        }
    }
    return RC_OK;
}

static int load_all(struct loader *l, int argc, char **argv, const struct special *s, struct conf_list *pos, struct err *e)
{
    for (size_t i = 0; i < l->p->n_keys; i++)
        if (l->p->keys[i].dflt)
            TRY(put(l, i, l->p->keys[i].dflt, l->p->keys[i].name, e));
    next_source(l);
    const char *file = s->config ? s->config : getenv("OUTWORK_CONFIG");
    if (file && *file)
        TRY(load_file(l, file, e));
    TRY(load_environment(l, e));
    return load_arguments(l, argc, argv, pos, e);
}

int conf_load(const struct conf_program *p, int argc, char **argv, void *settings, struct conf_list *ret_pos, bool *ret_help, struct err *e)
{
    struct special s = { 0 };
    TRY(scan_special(argc, argv, &s, e));
    *ret_help = s.help || s.print;
    if (s.help)
        return conf_print_help(p);
    struct loader l = { .p = p, .settings = settings, .seen = xcalloc(p->n_keys + 1, sizeof(bool)) };
    int rc = load_all(&l, argc, argv, &s, ret_pos, e);
    free(l.seen);
    if (rc == RC_OK && s.print) {
        struct buf b;
        buf_init(&b, MIB);
        rc = conf_write_effective(p, settings, &b);
        fwrite(buf_data(&b), 1, buf_len(&b), stdout);
        buf_done(&b);
    }
    return rc;
}

void conf_free(const struct conf_program *p, void *settings)
{
    for (size_t i = 0; i < p->n_keys; i++) {
        void *f = conf_field(&p->keys[i], settings);
        if (p->keys[i].type == CONF_STR) {
            free(*(char **)f);
            *(char **)f = NULL;
        } else if (p->keys[i].type == CONF_LIST) {
            conf_list_clear(f);
        }
    }
}
