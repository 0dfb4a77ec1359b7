/* registry.c - which provider serves which model id. */
#include "server/model/provider.h"

#include <string.h>

#include "base/str.h"

#define RULES_MAX 16
#define SCRIPT_PREFIX "script-"

struct rule {
    char *prefix;
    const struct model_provider *p;
    void *self;
};
struct model_registry {
    struct model_table *table;
    struct rule rules[RULES_MAX];
    size_t n;
};

struct model_registry *model_registry_empty(void)
{
    return xcalloc(1, sizeof(struct model_registry));
}

void model_registry_add(struct model_registry *m, const char *prefix, const struct model_provider *p, void *self)
{
    if (m->n == RULES_MAX)
        abort();         /* rules are few and written in code */
    m->rules[m->n++] = (struct rule){ .prefix = str_dup(prefix), .p = p, .self = self };
}

int model_registry_new(struct ev *ev, struct fetch *fetch, const struct model_conf *c, struct model_registry **ret, struct err *e)
{
    bool script = str_eq(c->provider, "script");
    if (!script && !str_eq(c->provider, "anthropic"))
        return err_set(e, RC_INVALID, "unknown model provider \"%s\": use \"anthropic\" or \"script\"", c->provider ? c->provider : "");
    struct model_registry *m = model_registry_empty();
    const struct model_provider *p;
    void *self;
    int rc = model_table_new(c->models_file, &m->table, e);
    if (rc == RC_OK && (script || c->script_file)) {
        rc = model_script_new(ev, c->script_file, &p, &self, e);
        if (rc == RC_OK)
            model_registry_add(m, script ? "" : SCRIPT_PREFIX, p, self);
    }
    if (rc == RC_OK && !script) {
        rc = model_anthropic_new(fetch, m->table, c, &p, &self, e);
        if (rc == RC_OK)
            model_registry_add(m, "", p, self);
    }
    if (rc < 0) {
        model_registry_free(m);
        return rc;
    }
    *ret = m;
    return RC_OK;
}

void model_registry_free(struct model_registry *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->n; i++) {
        if (m->rules[i].p->free)
            m->rules[i].p->free(m->rules[i].self);
        free(m->rules[i].prefix);
    }
    model_table_free(m->table);
    free(m);
}

int model_resolve(struct model_registry *m, const char *model, const struct model_provider **ret, void **ret_self, struct model_caps *ret_caps)
{
    for (size_t i = 0; model && i < m->n; i++) {
        const struct rule *r = &m->rules[i];
        if (!str_prefix(model, r->prefix))
            continue;
        struct model_caps caps;
        int rc = r->p->caps(r->self, model, &caps);
        if (rc == RC_NOT_FOUND)
            continue;
        TRY(rc);
        *ret = r->p;
        *ret_self = r->self;
        *ret_caps = caps;
        return RC_OK;
    }
    return RC_NOT_FOUND;
}

json_t *model_list_all(struct model_registry *m)
{
    json_t *a = json_array();
    for (size_t i = 0; i < m->n; i++)
        (void)m->rules[i].p->list(m->rules[i].self, a);
    return a;
}
