/* caps.c - the table of known model ids (service.md 4.3, 4.4) and its override file. */
#include "server/model/provider.h"

#include <fcntl.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"

#define MODELS_FILE_MAX (1 * MIB)
#define MODELS_MAX 512

struct row {
    const char *id, *name, *line;
    struct model_caps c;
};
#define CAPS(ctx, out, cache, compact, mid, eff, adapt) { .context_tokens = (ctx), .max_output_tokens = (out), .cache_min_tokens = (cache), \
    .compaction = (compact), .mid_system = (mid), .effort = (eff), .adaptive_thinking = (adapt) }

/* Prefixes: the longest one that fits an id wins, so dated ids find their family. */
static const struct row builtin[] = {
    { "claude-fable-5-2",  "Claude Fable 5.2",  "fable",  CAPS(1000000, 64000, 512, true, true, true, true) },
    { "claude-fable-5-1",  "Claude Fable 5.1",  "fable",  CAPS(1000000, 64000, 512, true, true, true, true) },
    { "claude-fable-5",    "Claude Fable 5",    "fable",  CAPS(1000000, 64000, 512, true, true, true, true) },
    { "claude-mythos-5",   "Claude Mythos 5",   "mythos", CAPS(1000000, 64000, 512, true, true, true, true) },
    { "claude-opus-5-5",   "Claude Opus 5.5",   "opus",   CAPS(1000000, 64000, 512, true, true, true, true) },
    { "claude-opus-5",     "Claude Opus 5",     "opus",   CAPS(1000000, 64000, 512, true, true, true, true) },
    { "claude-sonnet-5-5", "Claude Sonnet 5.5", "sonnet", CAPS(1000000, 64000, 1024, true, true, true, true) },
    { "claude-sonnet-5",   "Claude Sonnet 5",   "sonnet", CAPS(1000000, 64000, 1024, true, true, true, true) },
    { "claude-haiku-5-5",  "Claude Haiku 5.5",  "haiku",  CAPS(200000, 64000, 4096, false, false, false, false) },
    { "claude-opus-4-8",   "Claude Opus 4.8",   "opus",   CAPS(1000000, 64000, 1024, true, true, true, true) },
    { "claude-opus-4-7",   "Claude Opus 4.7",   "opus",   CAPS(200000, 64000, 2048, true, false, true, true) },
    { "claude-opus-4-6",   "Claude Opus 4.6",   "opus",   CAPS(200000, 64000, 4096, true, false, true, true) },
    { "claude-sonnet-4-6", "Claude Sonnet 4.6", "sonnet", CAPS(200000, 64000, 1024, true, false, true, true) },
    { "claude-opus-4-5",   "Claude Opus 4.5",   "opus",   CAPS(200000, 64000, 4096, false, false, true, false) },
    { "claude-sonnet-4-5", "Claude Sonnet 4.5", "sonnet", CAPS(200000, 64000, 1024, false, false, false, false) },
    { "claude-haiku-4-5",  "Claude Haiku 4.5",  "haiku",  CAPS(200000, 64000, 4096, false, false, false, false) },
};
/* An id that nobody told us about: a gateway's own model, most likely. The least that current models do. */
static const struct model_caps unknown_caps = CAPS(200000, 8192, 4096, false, false, false, false);

struct model_table {
    struct row *rows;        /* from the file; searched before the built-in ones at equal length */
    size_t n;
    json_t *doc;             /* owns the texts */
};

static void caps_override(struct model_caps *c, const json_t *o)
{
    c->context_tokens = js_int(o, "context_tokens", c->context_tokens);
    c->max_output_tokens = js_int(o, "max_output_tokens", c->max_output_tokens);
    c->cache_min_tokens = js_int(o, "cache_min_tokens", c->cache_min_tokens);
    c->compaction = js_bool(o, "compaction", c->compaction);
    c->mid_system = js_bool(o, "mid_system", c->mid_system);
    c->effort = js_bool(o, "effort", c->effort);
    c->adaptive_thinking = js_bool(o, "adaptive_thinking", c->adaptive_thinking);
}

static int file_rows(struct model_table *t, const char *file, struct err *e)
{
    json_t *models = js_at(t->doc, "models");
    size_t n = json_object_size(models);
    if (!json_is_object(models) || n > MODELS_MAX)
        return err_set(e, RC_INVALID, "%s: \"models\" must be an object with at most %d members", file, MODELS_MAX);
    t->rows = xcalloc(n ? n : 1, sizeof *t->rows);
    const char *id;
    json_t *o;
    json_object_foreach(models, id, o) {
        if (!json_is_object(o) || !id[0])
            return err_set(e, RC_INVALID, "%s: model \"%s\" must be an object", file, id);
        struct row *r = &t->rows[t->n++];
        struct model_table base = { 0 };
        *r = (struct row){ .id = id, .name = js_str(o, "display_name"), .line = js_str(o, "line") };
        (void)model_table_caps(&base, id, &r->c);
        caps_override(&r->c, o);
        if (r->c.context_tokens < 4096 || r->c.max_output_tokens < 256 || r->c.max_output_tokens > r->c.context_tokens)
            return err_set(e, RC_INVALID, "%s: model \"%s\": need context_tokens >= 4096 and 256 <= max_output_tokens <= context_tokens", file, id);
    }
    return RC_OK;
}

int model_table_new(const char *models_file, struct model_table **ret, struct err *e)
{
    struct model_table *t = xcalloc(1, sizeof *t);
    int rc = RC_OK;
    if (models_file) {
        char *text = NULL;
        size_t n = 0;
        rc = fd_read_file(AT_FDCWD, models_file, MODELS_FILE_MAX, &text, &n, e);
        if (rc == RC_OK)
            rc = js_parse(text, n, MODELS_FILE_MAX, &t->doc, e);
        if (rc == RC_OK)
            rc = file_rows(t, models_file, e);
        free(text);
    }
    if (rc < 0) {
        model_table_free(t);
        return rc;
    }
    *ret = t;
    return RC_OK;
}

void model_table_free(struct model_table *t)
{
    if (!t)
        return;
    free(t->rows);
    json_decref(t->doc);
    free(t);
}

static const struct row *find(const struct row *rows, size_t n, const char *model, size_t *best)
{
    const struct row *ret = NULL;
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(rows[i].id);
        if (len >= *best && str_prefix(model, rows[i].id)) {
            ret = &rows[i];
            *best = len;
        }
    }
    return ret;
}

bool model_table_caps(const struct model_table *t, const char *model, struct model_caps *ret)
{
    size_t best = 1;
    const struct row *r = find(builtin, COUNT_OF(builtin), model, &best);
    const struct row *own = t ? find(t->rows, t->n, model, &best) : NULL;
    if (own)
        r = own;
    *ret = r ? r->c : unknown_caps;
    return r != NULL;
}

static json_t *support(bool yes)
{
    json_t *o = json_object();
    js_set_bool(o, "supported", yes);
    return o;
}

json_t *model_info_new(const char *id, const char *display_name, const char *line, const struct model_caps *c)
{
    json_t *caps = json_object();
    js_set(caps, "batch", support(false));
    js_set(caps, "citations", support(false));
    js_set(caps, "code_execution", support(false));
    json_t *cm = json_object();
    js_set(cm, "clear_thinking_20251015", json_null());
    js_set(cm, "clear_tool_uses_20250919", json_null());
    js_set(cm, "compact_20260112", support(c->compaction));
    js_set_bool(cm, "supported", c->compaction);
    js_set(caps, "context_management", cm);
    json_t *eff = json_object();
    static const char *const levels[] = { "high", "low", "max", "medium", "xhigh" };
    for (size_t i = 0; i < COUNT_OF(levels); i++)
        js_set(eff, levels[i], support(c->effort));
    js_set_bool(eff, "supported", c->effort);
    js_set(caps, "effort", eff);
    js_set(caps, "image_input", support(true));
    js_set(caps, "pdf_input", support(true));
    json_t *st = json_object();
    js_set(st, "code_execution", support(false));
    js_set_bool(st, "supported", false);
    js_set(st, "web_search", support(false));
    js_set(caps, "server_tools", st);
    js_set(caps, "structured_outputs", support(false));
    json_t *types = json_object();
    js_set(types, "adaptive", support(c->adaptive_thinking));
    js_set(types, "between_tools", support(c->adaptive_thinking));
    js_set(types, "disabled", support(true));
    js_set(types, "enabled", support(false));
    json_t *th = json_object();
    js_set_bool(th, "supported", c->adaptive_thinking);
    js_set(th, "types", types);
    js_set(caps, "thinking", th);

    json_t *o = json_object();
    js_set_str(o, "id", id);
    js_set(o, "capabilities", caps);
    js_set_time(o, "created_at", 0);         /* unknown to us: the epoch, as the Models API does for such ids */
    js_set_time(o, "deprecated_at", -1);
    js_set_str(o, "display_name", display_name ? display_name : id);
    js_set_str(o, "lifecycle", "active");
    js_set_str(o, "line", line);
    js_set_int(o, "max_input_tokens", c->context_tokens);
    js_set_int(o, "max_tokens", c->max_output_tokens);
    js_set_time(o, "retires_at", -1);
    js_set_str(o, "type", "model");
    return o;
}

void model_table_list(const struct model_table *t, json_t *into_array)
{
    for (size_t i = 0; i < t->n; i++)
        js_push(into_array, model_info_new(t->rows[i].id, t->rows[i].name, t->rows[i].line, &t->rows[i].c));
    for (size_t i = 0; i < COUNT_OF(builtin); i++) {
        bool shadowed = false;
        for (size_t k = 0; k < t->n; k++)
            shadowed |= str_eq(t->rows[k].id, builtin[i].id);
        if (!shadowed)
            js_push(into_array, model_info_new(builtin[i].id, builtin[i].name, builtin[i].line, &builtin[i].c));
    }
}
