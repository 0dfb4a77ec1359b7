/* gateway/routes.c - see routes.h */
#include "gateway/routes.h"

#include <string.h>

#include "base/str.h"

#define ROUTE_TEXT_MAX (1 * MIB)

struct route_table { char *domain; struct route **at; size_t n; };

struct route *route_ref(struct route *r)
{
    r->refs++;
    return r;
}

void route_unref(struct route *r)
{
    if (!r || --r->refs)
        return;
    if (r->upstream)
        r->upstream_free(r->upstream);
    tool_policy_free(r->policy);
    header_rules_done(&r->headers);
    env_unref(r->env);
    free(r->leads_to);
    free(r->name);
    free(r->text);
    free(r);
}

static struct route *find(const struct route_table *t, const char *name)
{
    size_t lo = 0, hi = t->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, t->at[mid]->name);
        if (c == 0)
            return t->at[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

/* The length of the part in front of ".<domain>"; 0 when the host does not lie under it. */
static size_t below(const struct route_table *t, const char *host)
{
    size_t n = strlen(host), d = t->domain ? strlen(t->domain) : 0;
    return d && n > d + 1 && host[n - d - 1] == '.' && strcmp(host + n - d, t->domain) == 0 ? n - d - 1 : 0;
}

struct route *route_table_find(const struct route_table *t, const char *host)
{
    struct route *r = find(t, host);
    size_t n = r ? 0 : below(t, host);
    char label[ROUTE_NAME_MAX + 1];
    if (!n || n >= sizeof label)
        return r;
    memcpy(label, host, n);
    label[n] = '\0';
    return find(t, label);
}

bool route_table_ours(const struct route_table *t, const char *host)
{
    return below(t, host) || (strchr(host, '.') && find(t, host));
}

size_t route_table_count(const struct route_table *t) { return t->n; }
const struct route *route_table_at(const struct route_table *t, size_t i) { return t->at[i]; }

/* ---- making ---- */

static int name_of(const struct conf_tree *t, const struct conf_node *x, const char *domain, char out[ROUTE_NAME_MAX + 1], struct err *e)
{
    size_t n = strlen(x->key);
    if (n > ROUTE_NAME_MAX)
        return conf_node_err(t, x, "routes", e, "a name has at most %d bytes", ROUTE_NAME_MAX);
    for (size_t i = 0; i <= n; i++) {
        char c = x->key[i];
        out[i] = c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
        bool ok = !c || (out[i] >= 'a' && out[i] <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
        if (!ok || (c == '.' && (i == 0 || i + 1 == n || x->key[i - 1] == '.')))
            return conf_node_err(t, x, "routes", e, "'%.80s' is no host name or sub-domain (letters, digits, '-' and dots; no wildcards)", x->key);
    }
    if (!domain && !strchr(out, '.'))
        return conf_node_err(t, x, "routes", e, "'%.80s' is a bare sub-domain: set tunnel_domain, or write the whole host name", x->key);
    return RC_OK;
}

static void insert(struct route_table *t, struct route *take)
{
    size_t i = t->n++;
    for (; i > 0 && strcmp(t->at[i - 1]->name, take->name) > 0; i--)
        t->at[i] = t->at[i - 1];
    t->at[i] = take;
}

static int add(struct route_table *t, struct env *env, const struct conf_tree *tree, const struct conf_node *x, const struct route_table *old, struct err *e)
{
    char name[ROUTE_NAME_MAX + 1];
    TRY(name_of(tree, x, t->domain, name, e));
    if (find(t, name))
        return conf_node_err(tree, x, "routes", e, "'%s' is there twice (names are compared without case)", name);
    struct buf text;
    buf_init(&text, ROUTE_TEXT_MAX);
    int rc = route_text(x, &text);
    if (rc < 0) {
        buf_done(&text);
        return conf_node_err(tree, x, "routes", e, "'%s' is too large", name);
    }
    struct route *r = old ? find(old, name) : NULL;
    if (r && r->env == env && str_eq(r->text, buf_data(&text)))
        r = route_ref(r);
    else
        rc = route_make(env, tree, x, name, buf_data(&text), &r, e);
    buf_done(&text);
    TRY(rc);
    insert(t, r);
    return RC_OK;
}

int route_table_new(struct env *env, const struct gateway_settings *s, const struct route_table *old, struct route_table **ret, struct err *e)
{
    const struct conf_tree *tree = s->routes;
    const struct conf_node *root = &tree->root;
    if (root->kind == CONF_NODE_LIST)
        return conf_node_err(tree, root, "routes", e, "cannot unmarshal !!seq into map[string]string: write 'name: scheme://host:port' lines without dashes");
    if (root->kind != CONF_NODE_MAP || root->n == 0)
        return conf_node_err(tree, root, "routes", e, "at least one 'name: scheme://host:port' is required");
    struct route_table *t = xcalloc(1, sizeof *t);
    t->domain = str_dup(s->tunnel_domain && *s->tunnel_domain ? s->tunnel_domain : NULL);
    t->at = xcalloc(root->n, sizeof(struct route *));
    int rc = RC_OK;
    for (size_t i = 0; i < root->n && rc == RC_OK; i++)
        rc = add(t, env, tree, &root->child[i], old, e);
    if (rc < 0) {
        route_table_free(t);
        return rc;
    }
    *ret = t;
    return RC_OK;
}

void route_table_free(struct route_table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++)
        route_unref(t->at[i]);
    free(t->at);
    free(t->domain);
    free(t);
}
