/* The settings file: a mapping of mappings whose joined names are rows. Aliases, tags and several documents are refused. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "conf/private.h"

#define DEPTH_MAX 8
#define CUT 80      /* bytes of somebody's text that a message repeats */

struct reader {
    yaml_parser_t parser;
    const struct conf_program *p;
    struct conf_slot *slots;
    const char *name;
    bool others_read;
    struct err *e;
    char path[CONF_NAME_MAX];
};

static size_t line_of(const yaml_event_t *ev) { return ev->start_mark.line + 1; }

static int next(struct reader *r, yaml_event_t *ev)
{
    if (yaml_parser_parse(&r->parser, ev))
        return RC_OK;
    const yaml_parser_t *y = &r->parser;
    if (y->error == YAML_MEMORY_ERROR)
        return err_set(r->e, RC_NOMEM, "%s: out of memory", r->name);
    if (y->error == YAML_READER_ERROR)
        return err_set(r->e, RC_INVALID, "%s: not readable as text at byte %zu: %s", r->name, y->problem_offset, y->problem);
    return err_set(r->e, RC_INVALID, "%s:%zu: invalid YAML: %s%s%s", r->name, y->problem_mark.line + 1,
                   y->problem ? y->problem : "unknown problem", y->context ? " " : "", y->context ? y->context : "");
}

static int refuse(struct reader *r, const yaml_event_t *ev, const char *what)
{
    return err_set(r->e, RC_INVALID, "%s:%zu: %s%s%s", r->name, line_of(ev), r->path, r->path[0] ? ": " : "", what);
}

/* What is neither a value of the expected form nor allowed anywhere. */
static int check(struct reader *r, const yaml_event_t *ev)
{
    if (ev->type == YAML_ALIAS_EVENT)
        return refuse(r, ev, "aliases (*name) are not allowed here");
    if ((ev->type == YAML_SCALAR_EVENT && ev->data.scalar.tag) || (ev->type == YAML_MAPPING_START_EVENT && ev->data.mapping_start.tag) ||
        (ev->type == YAML_SEQUENCE_START_EVENT && ev->data.sequence_start.tag))
        return refuse(r, ev, "tags (!name) are not allowed here");
    return RC_OK;
}

static bool is_null(const yaml_event_t *ev)
{
    const char *v = (const char *)ev->data.scalar.value;
    return ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && (!*v || str_eq(v, "~") || str_eq(v, "null"));
}

static bool is_section(const struct conf_program *p, const char *path)
{
    size_t n = strlen(path);
    for (size_t i = 0; i < p->n_keys; i++)
        if (str_prefix(p->keys[i].name, path) && p->keys[i].name[n] == '.')
            return true;
    return false;
}

static int unknown(struct reader *r, size_t line)
{
    char hint[CONF_NAME_MAX + 32];
    conf_suggest(r->p, CONF_KIND_FILE, r->path, hint);
    return err_set(r->e, RC_INVALID, "%s:%zu: unknown setting '%.*s'%s", r->name, line, CUT, r->path, hint);
}

/* The row named by the path, checked for being set twice. *ret_slot NULL: a better source has set it. */
static int row_of(struct reader *r, size_t line, const struct conf_key **ret, struct conf_slot **ret_slot)
{
    const struct conf_key *k = conf_find(r->p, r->path, strlen(r->path));
    if (!k)
        return is_section(r->p, r->path) ? err_set(r->e, RC_INVALID, "%s:%zu: '%s' is a section and needs settings below it", r->name, line, r->path)
                                         : unknown(r, line);
    struct conf_slot *s = &r->slots[k - r->p->keys];
    if (s->file_line)
        return err_set(r->e, RC_INVALID, "%s:%zu: '%s' was already set in line %zu", r->name, line, k->name, s->file_line);
    s->file_line = line;
    if (k->secret && r->others_read)
        return err_set(r->e, RC_DENIED, "%s:%zu: '%s' is a secret, but other users can read this file; run: chmod o-rwx %s", r->name, line,
                       k->name, r->name);
    *ret = k;
    *ret_slot = s->set ? NULL : s;
    return RC_OK;
}

static int add(struct reader *r, struct conf_slot *s, const yaml_event_t *ev)
{
    const char *v = (const char *)ev->data.scalar.value;
    size_t n = ev->data.scalar.length;
    if (memchr(v, '\0', n))
        return refuse(r, ev, "NUL is not allowed in a value");
    if (s && conf_slot_add(s, v, n) < 0)
        return refuse(r, ev, "too many entries");
    return RC_OK;
}

static void claim(struct reader *r, struct conf_slot *s, size_t line)
{
    if (!s)
        return;
    s->set = true;
    s->where = str_printf("%s:%zu: %s", r->name, line, r->path);
}

static int scalar(struct reader *r, const yaml_event_t *ev)
{
    const struct conf_key *k = NULL;
    struct conf_slot *s = NULL;
    size_t line = line_of(ev);
    if (is_null(ev) && is_section(r->p, r->path))
        return RC_OK;           /* "model:" with everything below it commented out */
    TRY(row_of(r, line, &k, &s));
    if (is_null(ev))
        return RC_OK;
    TRY(add(r, s, ev));
    if (s)
        s->split = k->type == CONF_LIST;
    claim(r, s, line);
    return RC_OK;
}

static int sequence(struct reader *r, const yaml_event_t *start)
{
    const struct conf_key *k = NULL;
    struct conf_slot *s = NULL;
    size_t line = line_of(start);
    TRY(row_of(r, line, &k, &s));
    if (k->type != CONF_LIST)
        return refuse(r, start, "one value is expected, not a list");
    for (;;) {
        yaml_event_t ev;
        TRY(next(r, &ev));
        int rc = check(r, &ev);
        bool end = ev.type == YAML_SEQUENCE_END_EVENT;
        if (rc == RC_OK && !end)
            rc = ev.type == YAML_SCALAR_EVENT ? add(r, s, &ev) : refuse(r, &ev, "the entries of this list are texts");
        yaml_event_delete(&ev);
        TRY(rc);
        if (end)
            break;
    }
    claim(r, s, line);
    return RC_OK;
}

static int mapping(struct reader *r, int depth);

/* ---- sub-trees, for the program to read ---- */

static int node(struct reader *r, const yaml_event_t *first, struct conf_node *x, int depth);

static int node_text(struct reader *r, const yaml_event_t *ev, struct conf_node *x)
{
    const char *v = (const char *)ev->data.scalar.value;
    if (memchr(v, '\0', ev->data.scalar.length))
        return refuse(r, ev, "NUL is not allowed in a value");
    x->kind = CONF_NODE_TEXT;
    x->quoted = ev->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    x->text = is_null(ev) ? NULL : str_ndup(v, ev->data.scalar.length);
    return RC_OK;
}

static int node_key(struct reader *r, const yaml_event_t *ev, const struct conf_node *map, char **ret)
{
    const char *v = (const char *)ev->data.scalar.value;
    if (ev->type != YAML_SCALAR_EVENT || !ev->data.scalar.length || memchr(v, '\0', ev->data.scalar.length))
        return refuse(r, ev, "names are texts");
    const struct conf_node *twin = conf_node_get(map, v);
    if (twin)
        return err_set(r->e, RC_INVALID, "%s:%zu: %s: '%.*s' was already given in line %zu", r->name, line_of(ev), r->path, CUT, v, twin->line);
    *ret = str_ndup(v, ev->data.scalar.length);
    return RC_OK;
}

/* Reads the children up to the end of the list or mapping. */
static int node_children(struct reader *r, struct conf_node *x, int depth)
{
    bool map = x->kind == CONF_NODE_MAP;
    for (;;) {
        yaml_event_t ev;
        AUTO_FREE char *key = NULL;
        TRY(next(r, &ev));
        bool end = ev.type == YAML_MAPPING_END_EVENT || ev.type == YAML_SEQUENCE_END_EVENT;
        int rc = end ? RC_OK : check(r, &ev);
        if (rc == RC_OK && !end && x->n == CONF_ITEMS_MAX)
            rc = refuse(r, &ev, "too many entries");
        if (rc == RC_OK && !end && map) {
            rc = node_key(r, &ev, x, &key);
            yaml_event_delete(&ev);
            TRY(rc);
            TRY(next(r, &ev));
            rc = check(r, &ev);
        }
        if (rc == RC_OK && !end) {
            x->child = xrealloc(x->child, x->n + 1, sizeof *x->child);
            x->child[x->n] = (struct conf_node){ .key = TAKE(key) };
            rc = node(r, &ev, &x->child[x->n++], depth + 1);
        }
        yaml_event_delete(&ev);
        TRY(rc);
        if (end)
            return RC_OK;
    }
}

static int node(struct reader *r, const yaml_event_t *first, struct conf_node *x, int depth)
{
    x->line = line_of(first);
    if (first->type == YAML_SCALAR_EVENT)
        return node_text(r, first, x);
    if (depth > DEPTH_MAX)
        return refuse(r, first, "nested too deep");
    x->kind = first->type == YAML_MAPPING_START_EVENT ? CONF_NODE_MAP : CONF_NODE_LIST;
    return node_children(r, x, depth);
}

static void node_done(struct conf_node *x)
{
    for (size_t i = 0; i < x->n; i++)
        node_done(&x->child[i]);
    free(x->child);
    free(x->key);
    free(x->text);
}

void conf_tree_free(struct conf_tree *t)
{
    if (!t)
        return;
    node_done(&t->root);
    free(t->file);
    free(t);
}

static int tree(struct reader *r, const yaml_event_t *first, int depth)
{
    const struct conf_key *k = NULL;
    struct conf_slot *s = NULL;
    TRY(row_of(r, line_of(first), &k, &s));
    struct conf_tree *t = xcalloc(1, sizeof *t);
    t->file = str_dup(r->name);
    int rc = node(r, first, &t->root, depth);
    if (rc < 0 || !s || (t->root.kind == CONF_NODE_TEXT && !t->root.text)) {
        conf_tree_free(t);
        return rc;
    }
    s->tree = t;
    s->set = true;
    return RC_OK;
}

const struct conf_node *conf_node_get(const struct conf_node *map, const char *key)
{
    for (size_t i = 0; map && map->kind == CONF_NODE_MAP && i < map->n; i++)
        if (str_eq(map->child[i].key, key))
            return &map->child[i];
    return NULL;
}

int conf_node_err(const struct conf_tree *t, const struct conf_node *at, const char *path, struct err *e, const char *fmt, ...)
{
    char what[ERR_MSG_MAX];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return err_set(e, RC_INVALID, "%s:%zu: %s%s%s", t->file, at->line, path, *path ? ": " : "", what);
}

/* ---- rows ---- */

static int value(struct reader *r, size_t key_line, int depth)
{
    yaml_event_t ev;
    TRY(next(r, &ev));
    int rc = check(r, &ev);
    const struct conf_key *k = conf_find(r->p, r->path, strlen(r->path));
    if (rc == RC_OK && k && k->type == CONF_TREE)
        rc = tree(r, &ev, depth);
    else if (rc == RC_OK && ev.type == YAML_SCALAR_EVENT)
        rc = scalar(r, &ev);
    else if (rc == RC_OK && ev.type == YAML_SEQUENCE_START_EVENT)
        rc = sequence(r, &ev);
    else if (rc == RC_OK && !is_section(r->p, r->path))
        rc = k ? refuse(r, &ev, "a value is expected, not a section") : unknown(r, key_line);
    else if (rc == RC_OK)
        rc = depth < DEPTH_MAX ? mapping(r, depth + 1) : refuse(r, &ev, "nested too deep");
    yaml_event_delete(&ev);
    return rc;
}

/* Appends one name to the path; underscores are taken as dashes. */
static int enter(struct reader *r, const yaml_event_t *ev)
{
    size_t at = strlen(r->path), n = ev->data.scalar.length;
    const char *v = (const char *)ev->data.scalar.value;
    if (!n || memchr(v, '\0', n))
        return refuse(r, ev, "an empty name");
    if (at + n + 2 > sizeof r->path)
        return err_set(r->e, RC_INVALID, "%s:%zu: unknown setting '%.*s...'", r->name, line_of(ev), CUT, v);
    if (at)
        r->path[at++] = '.';
    for (size_t i = 0; i < n; i++)
        r->path[at + i] = v[i] == '_' ? '-' : v[i];
    r->path[at + n] = '\0';
    return RC_OK;
}

static int mapping(struct reader *r, int depth)
{
    size_t keep = strlen(r->path);
    for (;;) {
        yaml_event_t ev;
        TRY(next(r, &ev));
        size_t line = line_of(&ev);
        int rc = check(r, &ev);
        bool end = ev.type == YAML_MAPPING_END_EVENT;
        if (rc == RC_OK && !end)
            rc = ev.type == YAML_SCALAR_EVENT ? enter(r, &ev) : refuse(r, &ev, "names of settings are texts");
        yaml_event_delete(&ev);
        TRY(rc);
        if (end)
            return RC_OK;
        TRY(value(r, line, depth));
        r->path[keep] = '\0';
    }
}

static int document(struct reader *r)
{
    for (bool seen = false;;) {
        yaml_event_t ev;
        TRY(next(r, &ev));
        int rc = check(r, &ev);
        bool end = ev.type == YAML_STREAM_END_EVENT;
        if (rc == RC_OK && ev.type == YAML_DOCUMENT_START_EVENT) {
            if (seen)
                rc = refuse(r, &ev, "a second document; one is expected");
            seen = true;
        } else if (rc == RC_OK && ev.type == YAML_MAPPING_START_EVENT) {
            rc = mapping(r, 0);
        } else if (rc == RC_OK && (ev.type == YAML_SEQUENCE_START_EVENT || (ev.type == YAML_SCALAR_EVENT && !is_null(&ev)))) {
            rc = refuse(r, &ev, "settings of the form 'name: value' are expected");
        }
        yaml_event_delete(&ev);
        TRY(rc);
        if (end)
            return RC_OK;
    }
}

int conf_read_yaml(const struct conf_program *p, struct conf_slot *slots, const char *name, const char *text, size_t n,
                   bool others_read, struct err *e)
{
    struct reader r = { .p = p, .slots = slots, .name = name, .others_read = others_read, .e = e };
    if (!yaml_parser_initialize(&r.parser))
        return err_set(e, RC_NOMEM, "%s: out of memory", name);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n);
    int rc = document(&r);
    yaml_parser_delete(&r.parser);
    return rc;
}
