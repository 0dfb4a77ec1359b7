/* Names of rows: look-up, their flag and variable forms, and the nearest one to a mistyped name. */
#include <string.h>

#include "conf/private.h"

const struct conf_key *conf_find(const struct conf_program *p, const char *name, size_t n)
{
    for (size_t i = 0; i < p->n_keys; i++)
        if (slice_eq((struct slice){ name, n }, p->keys[i].name))
            return &p->keys[i];
    return NULL;
}

void conf_flag_name(const char *name, char out[CONF_NAME_MAX])
{
    memcpy(out, "--", 3);
    (void)str_copy(out + 2, CONF_NAME_MAX - 2, name);
    for (char *c = out; *c; c++)
        if (*c == '.')
            *c = '-';
}

void conf_env_name(const char *name, char out[CONF_NAME_MAX])
{
    static const char prefix[] = "OUTWORK_";
    memcpy(out, prefix, sizeof prefix);
    (void)str_copy(out + sizeof prefix - 1, CONF_NAME_MAX - sizeof prefix + 1, name);
    for (char *c = out; *c; c++) {
        if (*c == '.' || *c == '-')
            *c = '_';
        else if (*c >= 'a' && *c <= 'z')
            *c = (char)(*c & ~0x20);
    }
}

struct slice conf_choice(const char *choices, size_t i)
{
    for (const char *p = choices ? choices : ""; *p;) {
        size_t n = strcspn(p, "|");
        if (i-- == 0)
            return (struct slice){ p, n };
        p += n + (p[n] == '|');
    }
    return (struct slice){ "", 0 };
}

static size_t min3(size_t a, size_t b, size_t c) { return a < b ? (a < c ? a : c) : (b < c ? b : c); }

/* Edits (insert, drop, replace, swap neighbours) from a to b. */
static size_t distance(const char *a, const char *b)
{
    size_t n = strnlen(a, CONF_NAME_MAX - 1), m = strnlen(b, CONF_NAME_MAX - 1);
    size_t row[3][CONF_NAME_MAX];
    for (size_t j = 0; j <= m; j++)
        row[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t *now = row[i % 3], *last = row[(i + 2) % 3], *older = row[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            now[j] = min3(last[j] + 1, now[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && older[j - 2] + 1 < now[j])
                now[j] = older[j - 2] + 1;
        }
    }
    return row[n % 3][m];
}

struct best { size_t score; char name[CONF_NAME_MAX]; };

static void consider(struct best *b, const char *wrong, const char *name)
{
    size_t k = strlen(wrong), d = distance(wrong, name), limit = k / 3 > 2 ? k / 3 : 2;
    bool start = k >= 3 && str_prefix(name, wrong);
    if (start && d > 1)
        d = 1;      /* an abbreviation */
    if ((d <= limit || start) && d < b->score) {
        b->score = d;
        (void)str_copy(b->name, sizeof b->name, name);
    }
}

void conf_suggest(const struct conf_program *p, enum conf_kind kind, const char *wrong, char out[CONF_NAME_MAX + 32])
{
    struct best b = { .score = SIZE_MAX };
    char name[CONF_NAME_MAX];
    for (size_t i = 0; i < p->n_keys; i++) {
        if (p->keys[i].hidden)
            continue;
        if (kind == CONF_KIND_FILE) {
            consider(&b, wrong, p->keys[i].name);
            size_t section = strcspn(p->keys[i].name, ".");
            if (p->keys[i].name[section]) {
                (void)str_copy(name, section + 1 < sizeof name ? section + 1 : sizeof name, p->keys[i].name);
                consider(&b, wrong, name);
            }
        } else if (!conf_no_flag(&p->keys[i])) {
            conf_flag_name(p->keys[i].name, name);
            consider(&b, wrong, name);
        }
    }
    if (kind == CONF_KIND_FLAG) {
        consider(&b, wrong, "--" CONF_CONFIG);
        consider(&b, wrong, "--" CONF_PRINT);
        consider(&b, wrong, "--" CONF_HELP);
    }
    out[0] = '\0';
    if (b.score == SIZE_MAX)
        return;
    (void)str_copy(out, CONF_NAME_MAX + 32, " (did you mean ");
    (void)str_copy(out + strlen(out), CONF_NAME_MAX + 32 - strlen(out), b.name);
    (void)str_copy(out + strlen(out), CONF_NAME_MAX + 32 - strlen(out), "?)");
}
