/* What people and their tools read: --help, --print-config, the tables of the docs, shell completion. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/dur.h"
#include "conf/private.h"
#include "json/js.h"

#define WIDTH 100           /* columns of --help */
#define TEXT_COLUMN 32      /* where the explanations begin */
#define DASHED_GROUP_MIN 3  /* rows "sandbox-..." that make a group; dotted names always do */
#define NOTES_MAX 512

/* ---- groups ---- */

static bool same_prefix(const struct conf_key *k, struct slice prefix)
{
    return strncmp(k->name, prefix.p, prefix.n) == 0 && k->name[prefix.n] == prefix.p[prefix.n];
}

/* The group of a row: "model" of "model.url"; "" for rows that stand alone. */
static struct slice group_of(const struct conf_program *p, const struct conf_key *k)
{
    size_t n = strcspn(k->name, "."), rows = 0;
    if (k->name[n])
        return (struct slice){ k->name, n };
    n = strcspn(k->name, "-");
    struct slice dashed = { k->name, n };
    if (!k->name[n])
        return (struct slice){ "", 0 };
    for (size_t i = 0; i < p->n_keys; i++)
        rows += !p->keys[i].hidden && same_prefix(&p->keys[i], dashed);
    return rows >= DASHED_GROUP_MIN ? dashed : (struct slice){ "", 0 };
}

static bool in_group(const struct conf_program *p, const struct conf_key *k, struct slice group)
{
    struct slice own = group_of(p, k);
    return own.n == group.n && memcmp(own.p, group.p, own.n) == 0;
}

/* The first row of its group, rows of no group aside. */
static bool begins_group(const struct conf_program *p, size_t at)
{
    struct slice group = group_of(p, &p->keys[at]);
    if (!group.n)
        return false;
    for (size_t i = 0; i < at; i++)
        if (!p->keys[i].hidden && in_group(p, &p->keys[i], group))
            return false;
    return true;
}

/* ---- --help ---- */

static void write_wrapped(struct buf *out, size_t column, size_t indent, const char *text)
{
    bool first = true;
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, " ");
        if (!first && column + 1 + n > WIDTH) {
            (void)buf_printf(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (!first) {
            (void)buf_putc(out, ' ');
            column++;
        }
        (void)buf_put(out, p, n);
        column += n;
        first = false;
        p += n;
        p += strspn(p, " ");
    }
    (void)buf_putc(out, '\n');
}

static void write_row(struct buf *out, const char *left, const char *text)
{
    size_t n = strlen(left);
    if (n + 2 > TEXT_COLUMN)
        (void)buf_printf(out, "%s\n%*s", left, TEXT_COLUMN, "");
    else
        (void)buf_printf(out, "%-*s", TEXT_COLUMN, left);
    write_wrapped(out, TEXT_COLUMN, TEXT_COLUMN, text);
}

static const char *placeholder(const struct conf_key *k)
{
    static const char *const by_type[] = { "TEXT", "N", "", "TIME", "SIZE", "CHOICE", "LIST", "" };
    return k->arg ? k->arg : k->type == CONF_ENUM && k->choices ? k->choices : by_type[k->type];
}

/* "default 16, from 1 to 1024, none|host; or $VAR" */
static void write_notes(const struct conf_key *k, struct buf *out)
{
    size_t start = buf_len(out);
    bool shown = k->type == CONF_ENUM && k->choices && strcmp(placeholder(k), k->choices) != 0;
    if (shown)
        (void)buf_puts(out, k->choices);
    if (k->dflt && *k->dflt && k->type != CONF_BOOL)
        (void)buf_printf(out, "%sdefault %s", buf_len(out) > start ? ", " : "", k->dflt);
    else if (k->dflt && k->type == CONF_BOOL && strcmp(k->dflt, "true") == 0)
        (void)buf_puts(out, "default on");
    if (k->min && k->max && k->type != CONF_ENUM)
        (void)buf_printf(out, "%sfrom %s to %s", buf_len(out) > start ? ", " : "", k->min, k->max);
    else if ((k->min || k->max) && k->type != CONF_ENUM)
        (void)buf_printf(out, "%sat %s %s", buf_len(out) > start ? ", " : "", k->min ? "least" : "most", k->min ? k->min : k->max);
    if (k->env && !k->secret)
        (void)buf_printf(out, "%svariable %s", buf_len(out) > start ? "; " : "", k->env);
}

static void write_key(struct buf *out, const struct conf_key *k)
{
    char flag[CONF_NAME_MAX], left[2 * CONF_NAME_MAX], env[CONF_NAME_MAX];
    struct buf notes, text;
    buf_init(&notes, NOTES_MAX);
    buf_init(&text, 4 * NOTES_MAX);
    conf_flag_name(k->name, flag);
    conf_env_name(k->name, env);
    if (conf_file_only(k))
        (void)snprintf(left, sizeof left, "  %s:", k->name);
    else if (k->secret)
        (void)snprintf(left, sizeof left, "  %s", k->env ? k->env : env);
    else if (k->short_flag)
        (void)snprintf(left, sizeof left, "  -%c, %s %s", k->short_flag, flag, placeholder(k));
    else
        (void)snprintf(left, sizeof left, "  %s %s", flag, placeholder(k));
    if (k->type == CONF_BOOL && k->dflt && strcmp(k->dflt, "true") == 0 && !k->short_flag && !k->secret)
        (void)snprintf(left, sizeof left, "  --no-%s", flag + 2);
    write_notes(k, &notes);
    (void)buf_puts(&text, k->help ? k->help : "");
    if (conf_file_only(k))
        (void)buf_puts(&text, " Only in the settings file.");
    if (k->secret)
        (void)buf_puts(&text, " A secret: only as a variable or in a settings file that no other user can read.");
    if (buf_len(&notes))
        (void)buf_printf(&text, "%s[%s]", buf_len(&text) ? " " : "", buf_data(&notes));
    for (size_t n = strlen(left); n && left[n - 1] == ' ';)
        left[--n] = '\0';
    write_row(out, left, buf_data(&text));
    buf_done(&notes);
    buf_done(&text);
}

static void write_heading(struct buf *out, struct slice group)
{
    static const char *const initials[] = { "tls", "api", "mcp", "http", "ca" };
    (void)buf_putc(out, '\n');
    bool upper = false;
    for (size_t i = 0; i < COUNT_OF(initials); i++)
        upper |= slice_eq(group, initials[i]);
    for (size_t i = 0; i < group.n; i++) {
        char c = group.p[i];
        (void)buf_putc(out, (i == 0 || upper) && c >= 'a' && c <= 'z' ? (char)(c & ~0x20) : c);
    }
    (void)buf_puts(out, ":\n");
}

static void write_group(const struct conf_program *p, struct slice group, struct buf *out)
{
    for (size_t i = 0; i < p->n_keys; i++)
        if (!p->keys[i].hidden && in_group(p, &p->keys[i], group))
            write_key(out, &p->keys[i]);
}

static bool any_alone(const struct conf_program *p)
{
    for (size_t i = 0; i < p->n_keys; i++)
        if (!p->keys[i].hidden && !group_of(p, &p->keys[i]).n)
            return true;
    return false;
}

int conf_write_help(const struct conf_program *p, struct buf *out)
{
    if (p->summary) {
        write_wrapped(out, 0, 0, p->summary);
        (void)buf_putc(out, '\n');
    }
    (void)buf_printf(out, "Usage: %s %s\n", p->command, p->usage ? p->usage : "[options]");
    if (any_alone(p)) {
        write_heading(out, SLICE("options"));
        write_group(p, (struct slice){ "", 0 }, out);
    }
    for (size_t i = 0; i < p->n_keys; i++)
        if (!p->keys[i].hidden && begins_group(p, i)) {
            write_heading(out, group_of(p, &p->keys[i]));
            write_group(p, group_of(p, &p->keys[i]), out);
        }
    write_heading(out, SLICE("general"));
    if (conf_builtin(p, CONF_CONFIG))
        write_row(out, "  --config FILE", "Read settings from this YAML file. [variable OUTWORK_CONFIG]");
    if (conf_builtin(p, CONF_PRINT))
        write_row(out, "  --print-config", "Print the settings in force as YAML and exit.");
    write_row(out, "  -h, --help", "Print this help and exit.");
    (void)buf_putc(out, '\n');
    write_wrapped(out, 0, 0,
                  "Every option can also be set by a variable, OUTWORK_ and its name in capitals (--log-level: OUTWORK_LOG_LEVEL), or in the file. "
                  "A flag counts more than a variable, a variable more than the file.");
    if (p->epilog)
        (void)buf_printf(out, "\n%s", p->epilog);
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}

/* ---- --print-config ---- */

/* Code points that JSON shows as they are, but YAML takes for a line's end or refuses. Returns the length in UTF-8, 0 for others. */
static size_t yaml_escape(const unsigned char *p, unsigned *ret)
{
    static const struct { unsigned char from[3], to[3]; size_t n; } range[] = {
        { { 0x7f }, { 0x7f }, 1 }, { { 0xc2, 0x80 }, { 0xc2, 0x9f }, 2 }, { { 0xe2, 0x80, 0xa8 }, { 0xe2, 0x80, 0xa9 }, 3 },
        { { 0xef, 0xbb, 0xbf }, { 0xef, 0xbb, 0xbf }, 3 }, { { 0xef, 0xbf, 0xbe }, { 0xef, 0xbf, 0xbf }, 3 },
    };
    for (size_t i = 0; i < COUNT_OF(range); i++) {
        size_t n = range[i].n;
        if (strncmp((const char *)p, (const char *)range[i].from, n - 1) != 0 || p[n - 1] < range[i].from[n - 1] || p[n - 1] > range[i].to[n - 1])
            continue;
        *ret = n == 1 ? p[0] : n == 2 ? (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu) : (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
        return n;
    }
    return 0;
}

static void write_quoted(struct buf *out, const char *s)
{
    struct buf json;
    unsigned code;
    buf_init(&json, SIZE_MAX);
    if (js_write_string(&json, s, strlen(s)) < 0)
        out->failed = true;
    for (const char *p = buf_data(&json); *p;) {
        size_t n = yaml_escape((const unsigned char *)p, &code);
        (void)(n ? buf_printf(out, "\\u%04x", code) : buf_putc(out, *p));
        p += n ? n : 1;
    }
    buf_done(&json);
}

/* Texts that YAML takes for something else, or that hold marks, are quoted as JSON, which YAML reads as well. */
static void write_text(struct buf *out, const char *s)
{
    static const char *const words[] = { "true", "false", "null", "yes", "no", "on", "off", "y", "n" };
    bool plain = (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || *s == '/';
    for (const char *c = s; *c && plain; c++)
        plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("/._-@", *c) || (*c == ':' && c[1] == '/');
    for (size_t i = 0; i < COUNT_OF(words); i++)
        plain = plain && strcasecmp(s, words[i]) != 0;
    if (plain)
        (void)buf_puts(out, s);
    else
        write_quoted(out, s);
}

/* In YAML's flow form, which is JSON. */
static void write_node(const struct conf_node *x, struct buf *out)
{
    if (x->kind == CONF_NODE_TEXT) {
        if (x->text)
            write_quoted(out, x->text);
        else
            (void)buf_puts(out, "null");
        return;
    }
    (void)buf_putc(out, x->kind == CONF_NODE_MAP ? '{' : '[');
    for (size_t i = 0; i < x->n; i++) {
        (void)buf_puts(out, i ? ", " : "");
        if (x->kind == CONF_NODE_MAP) {
            write_quoted(out, x->child[i].key);
            (void)buf_puts(out, ": ");
        }
        write_node(&x->child[i], out);
    }
    (void)buf_putc(out, x->kind == CONF_NODE_MAP ? '}' : ']');
}

static void write_value(const struct conf_key *k, const void *settings, struct buf *out)
{
    const void *at = (const char *)settings + k->field;
    char text[24];
    switch (k->type) {
    case CONF_STR:
        write_text(out, *(char *const *)at);
        return;
    case CONF_INT:
        (void)buf_printf(out, "%" PRId64, *(const int64_t *)at);
        return;
    case CONF_BOOL:
        (void)buf_puts(out, *(const bool *)at ? "true" : "false");
        return;
    case CONF_DUR:
        dur_format(*(const int64_t *)at, text);
        break;
    case CONF_SIZE:
        size_format(*(const uint64_t *)at, text);
        break;
    case CONF_ENUM: {
        struct slice c = conf_choice(k->choices, (size_t)*(const int *)at);
        (void)buf_put(out, c.p, c.n);
        return;
    }
    case CONF_LIST: {
        const struct conf_list *l = at;
        (void)buf_putc(out, '[');
        for (size_t i = 0; i < l->n; i++) {
            (void)buf_puts(out, i ? ", " : "");
            write_quoted(out, l->item[i]);
        }
        (void)buf_putc(out, ']');
        return;
    }
    case CONF_TREE:
        write_node(&(*(struct conf_tree *const *)at)->root, out);
        return;
    }
    (void)buf_puts(out, text);
}

static void write_setting(const struct conf_key *k, const char *name, const char *indent, const void *settings, struct buf *out)
{
    const void *at = (const char *)settings + k->field;
    bool unset = k->type == CONF_STR || k->type == CONF_TREE ? !*(void *const *)at : k->type == CONF_LIST && k->secret && !((const struct conf_list *)at)->n;
    if (k->secret || unset) {
        (void)buf_printf(out, "%s# %s: %s\n", indent, name, unset ? "(not set)" : "(set, not shown)");
        return;
    }
    (void)buf_printf(out, "%s%s: ", indent, name);
    write_value(k, settings, out);
    (void)buf_putc(out, '\n');
}

static bool is_meta(const struct conf_key *k)
{
    return str_eq(k->name, CONF_CONFIG) || str_eq(k->name, CONF_PRINT) || str_eq(k->name, CONF_HELP);
}

int conf_write_effective(const struct conf_program *p, const void *settings, struct buf *out)
{
    for (size_t i = 0; i < p->n_keys; i++)
        if (!strchr(p->keys[i].name, '.') && !is_meta(&p->keys[i]))
            write_setting(&p->keys[i], p->keys[i].name, "", settings, out);
    for (size_t i = 0; i < p->n_keys; i++) {
        size_t n = strcspn(p->keys[i].name, ".");
        struct slice section = { p->keys[i].name, n };
        bool first = p->keys[i].name[n] == '.';
        for (size_t j = 0; j < i; j++)
            first = first && !same_prefix(&p->keys[j], section);
        if (!first)
            continue;
        (void)buf_printf(out, "%.*s:\n", (int)n, section.p);
        for (size_t j = i; j < p->n_keys; j++)
            if (same_prefix(&p->keys[j], section))
                write_setting(&p->keys[j], p->keys[j].name + n + 1, "  ", settings, out);
    }
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}

/* ---- docs and completion ---- */

static void write_cell(struct buf *out, const char *text)
{
    for (const char *c = text; *c; c++)
        (void)(*c == '|' ? buf_puts(out, "\\|") : *c == '\n' ? buf_putc(out, ' ') : buf_putc(out, *c));
    (void)buf_puts(out, " |");
}

int conf_write_markdown(const struct conf_program *p, struct buf *out)
{
    (void)buf_puts(out, "| Setting | Flag | Variable | Default | Allowed | Meaning |\n|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < p->n_keys; i++) {
        const struct conf_key *k = &p->keys[i];
        char flag[CONF_NAME_MAX], env[CONF_NAME_MAX], allowed[256] = "";
        if (k->hidden)
            continue;
        conf_flag_name(k->name, flag);
        conf_env_name(k->name, env);
        (void)buf_printf(out, "| `%s` | ", k->name);
        (void)(conf_file_only(k) ? buf_puts(out, "only in the file |") : k->secret ? buf_puts(out, "none: a secret |") : buf_printf(out, "`%s` |", flag));
        if (conf_file_only(k))
            env[0] = '\0';
        (void)buf_printf(out, *env ? " `%s`%s%s%s | " : " %s%s%s%s | ", env, k->env ? ", `" : "", k->env ? k->env : "", k->env ? "`" : "");
        write_cell(out, k->dflt ? k->dflt : "");
        if (k->type == CONF_ENUM)
            (void)snprintf(allowed, sizeof allowed, "%s", k->choices ? k->choices : "");
        else if (k->min || k->max)
            (void)snprintf(allowed, sizeof allowed, "%s%s%s", k->min ? k->min : "", k->min && k->max ? " to " : k->min ? " or more" : "up to ",
                           k->max ? k->max : "");
        (void)buf_putc(out, ' ');
        write_cell(out, allowed);
        (void)buf_putc(out, ' ');
        write_cell(out, k->help ? k->help : "");
        (void)buf_putc(out, '\n');
    }
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}

int conf_complete(const struct conf_program *p, struct buf *out)
{
    for (size_t i = 0; i < p->n_keys; i++) {
        const struct conf_key *k = &p->keys[i];
        char flag[CONF_NAME_MAX];
        if (k->hidden || conf_no_flag(k))
            continue;
        conf_flag_name(k->name, flag);
        const char *value = k->type == CONF_ENUM && k->choices ? k->choices : placeholder(k), *help = k->help ? k->help : "";
        (void)buf_printf(out, "%s\t%s\t%s\n", flag, k->type == CONF_BOOL ? "" : value, help);
        if (k->type == CONF_BOOL)
            (void)buf_printf(out, "--no-%s\t\tNot: %s\n", flag + 2, help);
    }
    if (conf_builtin(p, CONF_CONFIG))
        (void)buf_puts(out, "--config\tFILE\tRead settings from this YAML file.\n");
    if (conf_builtin(p, CONF_PRINT))
        (void)buf_puts(out, "--print-config\t\tPrint the settings in force as YAML and exit.\n");
    (void)buf_puts(out, "--help\t\tPrint this help and exit.\n");
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}
