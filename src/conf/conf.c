#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/dur.h"
#include "base/fd.h"
#include "base/secret.h"
#include "conf/private.h"

#define CUT 80      /* bytes of somebody's text that a message repeats */

static const char *const default_where = "default";

int conf_slot_add(struct conf_slot *s, const char *text, size_t n)
{
    if (s->n == CONF_ITEMS_MAX)
        return RC_LIMIT;
    s->item = xrealloc(s->item, s->n + 1, sizeof *s->item);
    s->item[s->n++] = str_ndup(text, n);
    return RC_OK;
}

static void drop_items(struct conf_slot *s)
{
    for (size_t i = 0; i < s->n; i++) {
        wipe(s->item[i], strlen(s->item[i]));
        free(s->item[i]);
    }
    free(s->item);
    s->item = NULL;
    s->n = 0;
}

static void slots_free(struct conf_slot *slots, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        drop_items(&slots[i]);
        conf_tree_free(slots[i].tree);
        free(slots[i].where);
    }
    free(slots);
}

/* ---- flags ---- */

struct flags {
    const struct conf_program *p;
    struct conf_slot *slots;
    char *const *argv; int argc, at;
    const char *config; bool print, help;
    struct conf_list *pos;
    struct err *e;
};

/* The value of an option: behind '=', or the next argument. `shown` is the option as typed. */
static int option_value(struct flags *f, const char *shown, const char *inline_value, const char *arg, const char **ret)
{
    if (inline_value) {
        *ret = inline_value;
        return RC_OK;
    }
    if (f->at + 1 >= f->argc)
        return err_set(f->e, RC_INVALID, "%.*s needs a value: %s", CUT, shown, arg ? arg : "VALUE");
    if (str_prefix(f->argv[f->at + 1], "--"))
        return err_set(f->e, RC_INVALID, "%.*s needs a value: %s (write %.*s=VALUE if it begins with dashes)", CUT, shown, arg ? arg : "VALUE",
                       CUT, shown);
    *ret = f->argv[++f->at];
    return RC_OK;
}

static int set_flag(struct flags *f, const struct conf_key *k, const char *shown, const char *value, const char *negated)
{
    struct conf_slot *s = &f->slots[k - f->p->keys];
    if (k->type == CONF_BOOL)
        value = negated ? "false" : value ? value : "true";
    else
        TRY(option_value(f, shown, value, k->arg, &value));
    if (k->type != CONF_LIST)
        drop_items(s);      /* the last one counts */
    if (conf_slot_add(s, value, strlen(value)) < 0)
        return err_set(f->e, RC_INVALID, "%.*s: more than %d values", CUT, shown, CONF_ITEMS_MAX);
    s->set = true;
    s->split = k->type == CONF_LIST;
    free(s->where);
    s->where = str_printf("flag %.*s", CUT, shown);
    return RC_OK;
}

static int unknown_flag(struct flags *f, const char *shown)
{
    char hint[CONF_NAME_MAX + 32], longer[CONF_NAME_MAX];
    if (shown[1] != '-') {      /* "-max-idle": one dash is missing */
        longer[0] = '-';
        (void)str_copy(longer + 1, sizeof longer - 1, shown);
    } else
        (void)str_copy(longer, sizeof longer, shown);
    longer[strcspn(longer, "=")] = '\0';
    conf_suggest(f->p, CONF_KIND_FLAG, longer, hint);
    if (shown[1] != '-' && !shown[2])
        hint[0] = '\0';
    return err_set(f->e, RC_INVALID, "unknown option %.*s%s; `%s --help` lists them", CUT, shown, hint, f->p->command);
}

static int secret_flag(struct flags *f, const struct conf_key *k)
{
    char env[CONF_NAME_MAX];
    conf_env_name(k->name, env);
    return err_set(f->e, RC_INVALID, "%s is a secret and not taken from the command line, where other users can see it: set the variable %s", k->name,
                   k->env ? k->env : env);
}

static int long_flag(struct flags *f, const char *arg)
{
    size_t n = strcspn(arg, "=");
    const char *value = arg[n] ? arg + n + 1 : NULL;
    char shown[CONF_NAME_MAX], name[CONF_NAME_MAX];
    if (n >= sizeof shown - 4)
        return unknown_flag(f, arg);
    memcpy(shown, arg, n);
    shown[n] = '\0';
    for (size_t i = 0; i < f->p->n_keys; i++) {
        const struct conf_key *k = &f->p->keys[i];
        conf_flag_name(k->name, name);
        if (conf_file_only(k))
            continue;
        bool same = strcmp(shown, name) == 0, no = !same && k->type == CONF_BOOL && str_prefix(shown, "--no-") && strcmp(shown + 5, name + 2) == 0;
        if (!same && !no)
            continue;
        if (k->secret)
            return secret_flag(f, k);
        if (no && value)
            return err_set(f->e, RC_INVALID, "%s takes no value", shown);
        return set_flag(f, k, shown, value, no ? "no" : NULL);
    }
    if (str_eq(shown, "--" CONF_CONFIG))
        return option_value(f, shown, value, "FILE", &f->config);
    if (value)
        return unknown_flag(f, arg);
    if (str_eq(shown, "--" CONF_PRINT))
        f->print = true;
    else if (str_eq(shown, "--" CONF_HELP))
        f->help = true;
    else
        return unknown_flag(f, arg);
    return RC_OK;
}

/* "-c value", "-cvalue", and several boolean ones together: "-vq". */
static int short_flags(struct flags *f, const char *arg)
{
    for (const char *c = arg + 1; *c; c++) {
        const struct conf_key *k = NULL;
        for (size_t i = 0; i < f->p->n_keys && !k; i++)
            if (f->p->keys[i].short_flag == *c)
                k = &f->p->keys[i];
        if (!k && *c == 'h' && arg[2] == '\0') {
            f->help = true;
            return RC_OK;
        }
        if (!k)
            return unknown_flag(f, arg);
        if (k->secret)
            return secret_flag(f, k);
        char shown[3] = { '-', *c, '\0' };
        bool boolean = k->type == CONF_BOOL;
        TRY(set_flag(f, k, shown, !boolean && c[1] ? c + 1 + (c[1] == '=') : NULL, NULL));
        if (!boolean)
            return RC_OK;
    }
    return RC_OK;
}

static int positional(struct flags *f, char *arg)
{
    if (!f->pos)
        return err_set(f->e, RC_INVALID, "unexpected argument '%.*s'; `%s --help` explains", CUT, arg, f->p->command);
    f->pos->item = xrealloc(f->pos->item, f->pos->n + 1, sizeof *f->pos->item);
    f->pos->item[f->pos->n++] = arg;
    return RC_OK;
}

static int read_flags(struct flags *f)
{
    bool only_positional = false;
    for (f->at = 1; f->at < f->argc && !f->help; f->at++) {
        char *arg = f->argv[f->at];
        if (only_positional || arg[0] != '-' || !arg[1])
            TRY(positional(f, arg));
        else if (str_eq(arg, "--"))
            only_positional = true;
        else
            TRY(arg[1] == '-' ? long_flag(f, arg) : short_flags(f, arg));
    }
    return RC_OK;
}

/* ---- environment and file ---- */

static void read_variable(const struct conf_key *k, struct conf_slot *s, const char *name)
{
    const char *v = getenv(name);
    if (!v || !*v || conf_file_only(k))
        return;
    if (k->secret) {        /* taken even when something better was set: it must not stay in the environment */
        AUTO_PTR(secret) x = secret_take_env(name);
        if (!s->set)
            (void)conf_slot_add(s, secret_text(x), secret_len(x));
    } else if (!s->set) {
        (void)conf_slot_add(s, v, strlen(v));
    }
    if (s->set)
        return;
    s->set = true;
    s->split = k->type == CONF_LIST;
    s->where = str_printf("variable %s", name);
}

static void read_environment(const struct conf_program *p, struct conf_slot *slots)
{
    for (size_t i = 0; i < p->n_keys; i++) {
        char name[CONF_NAME_MAX];
        conf_env_name(p->keys[i].name, name);
        read_variable(&p->keys[i], &slots[i], name);
        if (p->keys[i].env)
            read_variable(&p->keys[i], &slots[i], p->keys[i].env);
    }
}

static int read_file(const struct conf_program *p, struct conf_slot *slots, const char *path, struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    struct stat st;
    int rc = fd_read_file(AT_FDCWD, path, CONF_FILE_MAX, &text, &n, e);
    if (rc < 0)
        return err_wrap(e, RC_INVALID, "settings file");
    bool others = stat(path, &st) < 0 || (st.st_mode & 0006) != 0;
    rc = conf_read_yaml(p, slots, path, text, n, others, e);
    wipe(text, n);
    free(text);
    return rc;
}

/* The file's name: --config, OUTWORK_CONFIG, or a row of the table called "config". */
static const char *file_name(const struct flags *f)
{
    const struct conf_key *own = conf_find(f->p, CONF_CONFIG, strlen(CONF_CONFIG));
    if (own) {
        const struct conf_slot *s = &f->slots[own - f->p->keys];
        return s->set && s->n ? s->item[0] : own->dflt;
    }
    if (f->config)
        return *f->config ? f->config : NULL;
    const char *env = getenv("OUTWORK_CONFIG");
    return env && *env ? env : NULL;
}

const char *conf_file(const struct conf_program *p, int argc, char *const *argv)
{
    struct conf_slot *slots = xcalloc(p->n_keys, sizeof *slots);
    struct conf_list pos = { 0 };
    struct flags f = { .p = p, .slots = slots, .argv = (char **)(uintptr_t)argv, .argc = argc, .pos = &pos };
    const char *name = read_flags(&f) == RC_OK && conf_builtin(p, CONF_CONFIG) ? file_name(&f) : NULL;
    slots_free(slots, p->n_keys);
    free(pos.item);
    return name;
}

/* ---- values ---- */

static void *field(const struct conf_key *k, void *settings) { return (char *)settings + k->field; }

/* "a whole number from 1 to 1024" */
static int wrong(const struct conf_key *k, const struct conf_slot *s, const char *text, struct err *e)
{
    static const char *const form[] = { "text", "a whole number", "true or false", "a time with a unit such as 250ms, 30s, 5m, 1h or 7d",
                                        "a size with a unit such as 64KiB or 2GiB", "one of ", "a list", "a section" };
    char range[96] = "";
    if (k->type != CONF_ENUM && k->min && k->max)
        (void)snprintf(range, sizeof range, ", from %s to %s", k->min, k->max);
    else if (k->type != CONF_ENUM && (k->min || k->max))
        (void)snprintf(range, sizeof range, ", %s %s", k->min ? "at least" : "at most", k->min ? k->min : k->max);
    AUTO_FREE char *choices = str_dup(k->type == CONF_ENUM && k->choices ? k->choices : "");
    for (char *c = choices; *c; c++)
        if (*c == '|')
            *c = ' ';
    if (k->secret)
        return err_set(e, RC_INVALID, "%s: the value is not %s%s%s", s->where ? s->where : default_where, form[k->type], choices, range);
    return err_set(e, RC_INVALID, "%s: '%.*s' is not %s%s%s", s->where ? s->where : default_where, CUT, text, form[k->type], choices, range);
}

static int parse_int(const char *text, const char *min, const char *max, int64_t *ret)
{
    int64_t lo = INT64_MIN, hi = INT64_MAX;
    if (min)
        TRY(str_to_i64(min, lo, hi, &lo));
    if (max)
        TRY(str_to_i64(max, INT64_MIN, INT64_MAX, &hi));
    return str_to_i64(text, lo, hi, ret);
}

static int parse_dur(const char *text, const char *min, const char *max, int64_t *ret)
{
    int64_t lo = 0, hi = INT64_MAX, v;
    if (min)
        TRY(dur_parse(min, &lo));
    if (max)
        TRY(dur_parse(max, &hi));
    TRY(dur_parse(text, &v));
    if (v < lo || v > hi)
        return RC_INVALID;
    *ret = v;
    return RC_OK;
}

static int parse_size(const char *text, const char *min, const char *max, uint64_t *ret)
{
    uint64_t lo = 0, hi = UINT64_MAX, v;
    if (min)
        TRY(size_parse(min, &lo));
    if (max)
        TRY(size_parse(max, &hi));
    TRY(size_parse(text, &v));
    if (v < lo || v > hi)
        return RC_INVALID;
    *ret = v;
    return RC_OK;
}

static int parse_bool(const char *text, bool *ret)
{
    static const char *const yes[] = { "true", "yes", "on", "1" }, *const no[] = { "false", "no", "off", "0" };
    for (size_t i = 0; i < COUNT_OF(yes); i++) {
        bool y = strcasecmp(text, yes[i]) == 0;
        if (y || strcasecmp(text, no[i]) == 0) {
            *ret = y;
            return RC_OK;
        }
    }
    return RC_INVALID;
}

static int parse_enum(const char *text, const char *choices, int *ret)
{
    struct slice c;
    for (size_t i = 0; (c = conf_choice(choices, i)).n; i++)
        if (slice_eq(c, text)) {
            *ret = (int)i;
            return RC_OK;
        }
    return RC_INVALID;
}

static int list_push(struct conf_list *l, const char *text, size_t n)
{
    if (l->n == CONF_ITEMS_MAX)
        return RC_LIMIT;
    l->item = xrealloc(l->item, l->n + 1, sizeof *l->item);
    l->item[l->n++] = str_ndup(text, n);
    return RC_OK;
}

/* "a, b,c\,d" -> "a" "b" "c,d"; empty parts are dropped. */
static int list_split(struct conf_list *l, const char *text)
{
    AUTO_FREE char *part = xcalloc(1, strlen(text) + 1);
    size_t n = 0;
    for (const char *p = text;; p++) {
        if (p[0] == '\\' && p[1] == ',') {
            part[n++] = *++p;
        } else if (*p == ',' || !*p) {
            struct slice s = slice_trim((struct slice){ part, n });
            if (s.n)
                TRY(list_push(l, s.p, s.n));
            n = 0;
            if (!*p)
                return RC_OK;
        } else {
            part[n++] = *p;
        }
    }
}

static int set_list(struct conf_list *l, const struct conf_slot *s)
{
    for (size_t i = 0; i < s->n; i++)
        TRY(s->split ? list_split(l, s->item[i]) : list_push(l, s->item[i], strlen(s->item[i])));
    return RC_OK;
}

static int set_value(const struct conf_key *k, struct conf_slot *s, void *settings, struct err *e)
{
    const char *text = s->n ? s->item[s->n - 1] : "";
    void *at = field(k, settings);
    int rc = RC_INVALID;
    switch (k->type) {
    case CONF_STR:  *(char **)at = str_dup(text); rc = RC_OK; break;
    case CONF_INT:  rc = parse_int(text, k->min, k->max, at); break;
    case CONF_BOOL: rc = parse_bool(text, at); break;
    case CONF_DUR:  rc = parse_dur(text, k->min, k->max, at); break;
    case CONF_SIZE: rc = parse_size(text, k->min, k->max, at); break;
    case CONF_ENUM: rc = parse_enum(text, k->choices, at); break;
    case CONF_LIST:
        rc = set_list(at, s);
        if (rc < 0)
            return err_set(e, RC_INVALID, "%s: more than %d entries", s->where ? s->where : default_where, CONF_ITEMS_MAX);
        break;
    case CONF_TREE: *(struct conf_tree **)at = TAKE(s->tree); rc = RC_OK; break;
    }
    return rc < 0 ? wrong(k, s, text, e) : RC_OK;
}

static int set_values(const struct conf_program *p, struct conf_slot *slots, void *settings, struct err *e)
{
    for (size_t i = 0; i < p->n_keys; i++) {
        const struct conf_key *k = &p->keys[i];
        if (!slots[i].set && k->dflt) {
            (void)conf_slot_add(&slots[i], k->dflt, strlen(k->dflt));
            slots[i].set = true;
            slots[i].split = k->type == CONF_LIST;
            slots[i].where = str_printf("default of %s", k->name);
        }
        if (slots[i].set)
            TRY(set_value(k, &slots[i], settings, e));
    }
    return RC_OK;
}

static int print(int (*write_it)(const struct conf_program *, const void *, struct buf *), const struct conf_program *p, const void *settings,
                 struct err *e)
{
    struct buf b;
    buf_init(&b, 4 * CONF_FILE_MAX);
    int rc = write_it(p, settings, &b);
    if (rc < 0)
        err_set(e, rc, "%s: the text is too long to print", p->command);
    else if (fwrite(buf_data(&b), 1, buf_len(&b), stdout) != buf_len(&b) || fflush(stdout) != 0)
        rc = err_sys(e, RC_IO, errno, "write to standard output");
    buf_done(&b);
    return rc;
}

static int help_of(const struct conf_program *p, const void *settings, struct buf *out)
{
    (void)settings;
    return conf_write_help(p, out);
}

int conf_load(const struct conf_program *p, int argc, char **argv, void *settings, struct conf_list *ret_pos, bool *ret_help, struct err *e)
{
    struct conf_slot *slots = xcalloc(p->n_keys, sizeof *slots);
    struct flags f = { .p = p, .slots = slots, .argv = argv, .argc = argc, .pos = ret_pos, .e = e };
    *ret_help = false;
    int rc = read_flags(&f);
    if (rc == RC_OK && f.help) {
        *ret_help = true;
        rc = print(help_of, p, NULL, e);
    } else if (rc == RC_OK) {
        read_environment(p, slots);
        const char *path = file_name(&f);
        if (path)
            rc = read_file(p, slots, path, e);
        if (rc == RC_OK)
            rc = set_values(p, slots, settings, e);
        if (rc == RC_OK && f.print) {
            *ret_help = true;
            rc = print(conf_write_effective, p, settings, e);
        }
    }
    slots_free(slots, p->n_keys);
    return rc;
}

int conf_load_text(const struct conf_program *p, const char *yaml, size_t n, void *settings, struct err *e)
{
    if (n > CONF_FILE_MAX)
        return err_set(e, RC_TOO_LARGE, "settings are larger than %zu bytes", CONF_FILE_MAX);
    struct conf_slot *slots = xcalloc(p->n_keys, sizeof *slots);
    int rc = conf_read_yaml(p, slots, "settings", yaml, n, false, e);
    if (rc == RC_OK)
        rc = set_values(p, slots, settings, e);
    slots_free(slots, p->n_keys);
    return rc;
}

void conf_free(const struct conf_program *p, void *settings)
{
    for (size_t i = 0; i < p->n_keys; i++) {
        const struct conf_key *k = &p->keys[i];
        void *at = field(k, settings);
        if (k->type == CONF_STR) {
            char **s = at;
            if (*s && k->secret)
                wipe(*s, strlen(*s));
            free(*s);
            *s = NULL;
        } else if (k->type == CONF_LIST) {
            struct conf_list *l = at;
            for (size_t j = 0; j < l->n; j++) {
                if (k->secret)
                    wipe(l->item[j], strlen(l->item[j]));
                free(l->item[j]);
            }
            free(l->item);
            *l = (struct conf_list){ 0 };
        } else if (k->type == CONF_TREE) {
            struct conf_tree **t = at;
            conf_tree_free(*t);
            *t = NULL;
        }
    }
}
