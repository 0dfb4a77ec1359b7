/* conf_value.c - one setting: text to value with bounds, and back. */
#include <inttypes.h>
#include <string.h>

#include "base/dur.h"
#include "base/str.h"
#include "conf/conf_internal.h"

static int set_int(const struct conf_key *k, void *f, const char *text, const char *where, struct err *e)
{
    int64_t min = INT64_MIN, max = INT64_MAX, v;
    if ((k->min && str_to_i64(k->min, INT64_MIN, INT64_MAX, &min) < 0) || (k->max && str_to_i64(k->max, INT64_MIN, INT64_MAX, &max) < 0))
        return err_set(e, RC_INVALID, "%s: the table's bounds are malformed", k->name);
    if (str_to_i64(text, min, max, &v) < 0)
        return err_set(e, RC_INVALID, "%s: '%s' is no whole number%s%s%s%s", where, text, k->min ? " from " : "", k->min ? k->min : "", k->max ? " up to " : "", k->max ? k->max : "");
    *(int64_t *)f = v;
    return RC_OK;
}

static int set_dur(const struct conf_key *k, void *f, const char *text, const char *where, struct err *e)
{
    int64_t v, min = 0, max = INT64_MAX;
    if ((k->min && dur_parse(k->min, &min) < 0) || (k->max && dur_parse(k->max, &max) < 0))
        return err_set(e, RC_INVALID, "%s: the table's bounds are malformed", k->name);
    if (dur_parse(text, &v) < 0)
        return err_set(e, RC_INVALID, "%s: '%s' is no duration; write it with a unit: 250ms, 30s, 5m, 1h, 7d", where, text);
    if (v < min || v > max)
        return err_set(e, RC_INVALID, "%s: %s is outside %s to %s", where, text, k->min ? k->min : "0", k->max ? k->max : "any");
    *(int64_t *)f = v;
    return RC_OK;
}

static int set_size(const struct conf_key *k, void *f, const char *text, const char *where, struct err *e)
{
    uint64_t v, min = 0, max = UINT64_MAX;
    if ((k->min && size_parse(k->min, &min) < 0) || (k->max && size_parse(k->max, &max) < 0))
        return err_set(e, RC_INVALID, "%s: the table's bounds are malformed", k->name);
    if (size_parse(text, &v) < 0)
        return err_set(e, RC_INVALID, "%s: '%s' is no size; write it with a unit: 64KiB, 512MiB, 2GiB", where, text);
    if (v < min || v > max)
        return err_set(e, RC_INVALID, "%s: %s is outside %s to %s", where, text, k->min ? k->min : "0", k->max ? k->max : "any");
    *(uint64_t *)f = v;
    return RC_OK;
}

static int set_bool(void *f, const char *text, const char *where, struct err *e)
{
    static const char *const yes[] = { "true", "yes", "on", "1" }, *const no[] = { "false", "no", "off", "0" };
    for (size_t i = 0; i < COUNT_OF(yes); i++) {
        if (str_eq(text, yes[i]) || str_eq(text, no[i])) {
            *(bool *)f = str_eq(text, yes[i]);
            return RC_OK;
        }
    }
    return err_set(e, RC_INVALID, "%s: '%s' is neither true nor false", where, text);
}

static int set_enum(const struct conf_key *k, void *f, const char *text, const char *where, struct err *e)
{
    int index = 0;
    size_t n = strlen(text);
    for (const char *p = k->choices; p; index++) {
        const char *end = strchr(p, '|');
        size_t len = end ? (size_t)(end - p) : strlen(p);
        if (len == n && memcmp(p, text, n) == 0) {
            *(int *)f = index;
            return RC_OK;
        }
        p = end ? end + 1 : NULL;
    }
    return err_set(e, RC_INVALID, "%s: '%s' is none of %s", where, text, k->choices);
}

static int list_add(struct conf_list *l, const char *text, const char *where, struct err *e)
{
    while (*text) {
        const char *end = strchr(text, ',');
        size_t n = end ? (size_t)(end - text) : strlen(text);
        if (l->n >= CONF_LIST_MAX)
            return err_set(e, RC_INVALID, "%s: more than %d items", where, CONF_LIST_MAX);
        l->item = xrealloc(l->item, l->n + 1, sizeof *l->item);
        l->item[l->n++] = str_ndup(text, n);
        text += n + (end ? 1 : 0);
    }
    return RC_OK;
}

void conf_list_clear(struct conf_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->item[i]);
    free(l->item);
    *l = (struct conf_list){ 0 };
}

int conf_set(const struct conf_key *k, void *settings, const char *text, const char *where, struct err *e)
{
    void *f = conf_field(k, settings);
    switch (k->type) {
    case CONF_STR:
        free(*(char **)f);
        *(char **)f = *text ? str_dup(text) : NULL;
        return RC_OK;
    case CONF_INT: return set_int(k, f, text, where, e);
    case CONF_BOOL: return set_bool(f, text, where, e);
    case CONF_DUR: return set_dur(k, f, text, where, e);
    case CONF_SIZE: return set_size(k, f, text, where, e);
    case CONF_ENUM: return set_enum(k, f, text, where, e);
    case CONF_LIST: return list_add(f, text, where, e);
    }
    return err_set(e, RC_INVALID, "%s: unknown type of setting", k->name);
}

void conf_write_value(const struct conf_key *k, const void *settings, struct buf *out)
{
    const void *f = (const char *)settings + k->field;
    char text[24];
    switch (k->type) {
    case CONF_STR:
        if (*(char *const *)f)
            buf_printf(out, "\"%s\"", *(char *const *)f);
        else
            buf_puts(out, "null");
        break;
    case CONF_INT: buf_printf(out, "%" PRId64, *(const int64_t *)f); break;
    case CONF_BOOL: buf_puts(out, *(const bool *)f ? "true" : "false"); break;
    case CONF_DUR: dur_format(*(const int64_t *)f, text); buf_puts(out, text); break;
    case CONF_SIZE: size_format(*(const uint64_t *)f, text); buf_puts(out, text); break;
    case CONF_ENUM: {
        const char *p = k->choices;
        for (int i = *(const int *)f; i > 0 && p; i--)
            p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL;
        if (p)
            buf_put(out, p, strcspn(p, "|"));
        break;
    }
    case CONF_LIST: {
        const struct conf_list *l = f;
        buf_putc(out, '[');
        for (size_t i = 0; i < l->n; i++)
            buf_printf(out, "%s\"%s\"", i ? ", " : "", l->item[i]);
        buf_putc(out, ']');
        break;
    }
    }
}
