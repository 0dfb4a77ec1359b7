/* conf_help.c - everything a person reads about the settings: --help, the nearest known name, tables for the docs. */
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "conf/conf_internal.h"

#define HELP_COLUMN 34
#define HELP_WIDTH 110

void conf_flag_name(const struct conf_key *k, char out[CONF_NAME_MAX])
{
    snprintf(out, CONF_NAME_MAX, "--%s", k->name);
    for (char *p = out + 2; *p; p++)
        if (*p == '.' || *p == '_')
            *p = '-';
}

void conf_env_name(const struct conf_key *k, char out[CONF_NAME_MAX])
{
    snprintf(out, CONF_NAME_MAX, "OUTWORK_%s", k->name);
    for (char *p = out; *p; p++) {
        if (*p == '.' || *p == '-')
            *p = '_';
        else if (*p >= 'a' && *p <= 'z')
            *p = (char)(*p - 'a' + 'A');
    }
}

/* Levenshtein distance, bounded by the names' length. */
static size_t distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b), row[CONF_NAME_MAX + 1];
    if (n >= CONF_NAME_MAX || m >= CONF_NAME_MAX)
        return CONF_NAME_MAX;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diag = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t up = row[j], best = diag + (a[i - 1] != b[j - 1]);
            if (up + 1 < best)
                best = up + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
            diag = up;
        }
    }
    return row[m];
}

const char *conf_nearest(const struct conf_program *p, const char *name, bool flag, char out[CONF_NAME_MAX])
{
    size_t best = strlen(name) / 2 + 1;
    const char *found = NULL;
    for (size_t i = 0; i < p->n_keys; i++) {
        char known[CONF_NAME_MAX];
        if (flag)
            conf_flag_name(&p->keys[i], known);
        else
            snprintf(known, sizeof known, "%s", p->keys[i].name);
        size_t d = distance(name, known);
        if (!p->keys[i].hidden && d < best) {
            best = d;
            found = str_copy(out, CONF_NAME_MAX, known) ? out : NULL;
        }
    }
    return found;
}

/* Prints words from column HELP_COLUMN on, wrapped. */
static void print_wrapped(const char *text, size_t *column)
{
    while (*text) {
        size_t n = strcspn(text, " ");
        if (*column + n + 1 > HELP_WIDTH) {
            printf("\n%*s", HELP_COLUMN, "");
            *column = HELP_COLUMN;
        }
        printf("%.*s ", (int)n, text);
        *column += n + 1;
        text += n;
        text += strspn(text, " ");
    }
}

static void print_row(const char *left, const char *help, const char *notes)
{
    size_t column = HELP_COLUMN;
    if (strlen(left) + 2 >= HELP_COLUMN)
        printf("  %s\n%*s", left, HELP_COLUMN, "");
    else
        printf("  %-*s", HELP_COLUMN - 2, left);
    print_wrapped(help, &column);
    print_wrapped(notes, &column);
    printf("\n");
}

static void print_key(const struct conf_key *k)
{
    char flag[CONF_NAME_MAX], left[2 * CONF_NAME_MAX], notes[512] = "", env[CONF_NAME_MAX];
    conf_flag_name(k, flag);
    conf_env_name(k, env);
    if (k->secret)
        snprintf(left, sizeof left, "(%s)", k->env ? k->env : env);
    else if (k->type == CONF_BOOL)
        snprintf(left, sizeof left, "%s", flag);
    else
        snprintf(left, sizeof left, "%s%c%s%s %s", k->short_flag ? "-" : "", k->short_flag ? k->short_flag : ' ', k->short_flag ? ", " : "", flag,
                 k->arg ? k->arg : k->type == CONF_ENUM ? k->choices : "VALUE");
    char *l = left + strspn(left, " ");
    size_t n = 0;
    if (k->dflt && *k->dflt && k->type != CONF_BOOL)
        n += (size_t)snprintf(notes + n, sizeof notes - n, "[default: %s]", k->dflt);
    if (k->env && !k->secret && n < sizeof notes)
        (void)snprintf(notes + n, sizeof notes - n, " [variable: %s]", k->env);
    print_row(l, k->help ? k->help : "", notes);
}

int conf_print_help(const struct conf_program *p)
{
    printf("%s\n\nUsage: %s %s\n\nOptions:\n", p->summary, p->command, p->usage ? p->usage : "[options]");
    for (size_t i = 0; i < p->n_keys; i++)
        if (!p->keys[i].hidden)
            print_key(&p->keys[i]);
    print_row("--config FILE", "Read settings from a YAML file; its keys are the options' names.", "");
    print_row("--print-config", "Print the settings in force as YAML and end.", "");
    print_row("-h, --help", "Print this help.", "");
    printf("\nEvery option is also a variable: OUTWORK_ and its name in capitals (--log-level: OUTWORK_LOG_LEVEL). A flag is stronger than a variable,\n"
           "a variable than the file.\n");
    if (p->epilog)
        printf("\n%s", p->epilog);
    return RC_OK;
}

int conf_write_effective(const struct conf_program *p, const void *settings, struct buf *out)
{
    for (size_t i = 0; i < p->n_keys; i++) {
        const struct conf_key *k = &p->keys[i];
        if (k->secret)
            continue;
        buf_printf(out, "%s: ", k->name);
        conf_write_value(k, settings, out);
        buf_putc(out, '\n');
    }
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}

int conf_write_markdown(const struct conf_program *p, struct buf *out)
{
    buf_puts(out, "| Key | Variable | Default | Meaning |\n|---|---|---|---|\n");
    for (size_t i = 0; i < p->n_keys; i++) {
        const struct conf_key *k = &p->keys[i];
        char env[CONF_NAME_MAX];
        conf_env_name(k, env);
        if (!k->hidden)
            buf_printf(out, "| `%s` | `%s` | %s | %s |\n", k->name, k->env ? k->env : env, k->dflt ? k->dflt : "", k->help ? k->help : "");
    }
    return buf_ok(out) ? RC_OK : RC_LIMIT;
}
