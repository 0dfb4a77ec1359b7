/* server/api/views.c - stored rows as API objects. Texts that were stored as JSON are copied, not decoded. */
#include <string.h>

#include "server/api/call.h"

static void put_string(struct buf *out, const char *key, const char *s)
{
    buf_printf(out, ",\"%s\":", key);
    if (s)
        (void)js_write_string(out, s, strlen(s));
    else
        buf_puts(out, "null");
}

static void put_time(struct buf *out, const char *key, int64_t ms)
{
    char text[RFC3339_MAX];
    if (ms < 0) {
        buf_printf(out, ",\"%s\":null", key);
        return;
    }
    rfc3339_format(ms, text);
    buf_printf(out, ",\"%s\":\"%s\"", key, text);
}

static void put_id(struct buf *out, const char *id, const char *type)
{
    buf_puts(out, "{\"id\":");
    (void)js_write_string(out, id, strlen(id));
    buf_printf(out, ",\"type\":\"%s\"", type);
}

/* The members of a stored object (text "{...}") after those already written; closes the object. */
static void put_members(struct buf *out, const char *object)
{
    if (object[0] == '{' && object[1] != '}') {
        buf_putc(out, ',');
        buf_puts(out, object + 1);
    } else {
        buf_putc(out, '}');
    }
}

void view_agent(struct buf *out, const struct store_agent *a)
{
    put_id(out, a->id, "agent");
    buf_printf(out, ",\"version\":%lld", (long long)a->version);
    put_time(out, "created_at", a->created_ms);
    put_time(out, "updated_at", a->updated_ms);
    put_time(out, "archived_at", a->archived_ms);
    put_members(out, a->body);
}

void view_environment(struct buf *out, const struct store_environment *v)
{
    put_id(out, v->id, "environment");
    put_time(out, "created_at", v->created_ms);
    put_time(out, "updated_at", v->updated_ms);
    put_time(out, "archived_at", v->archived_ms);
    put_members(out, v->body);
}

static int64_t active_ms(const struct store_session *s, int64_t now_ms)
{
    int64_t run = s->running_since_ms >= 0 && now_ms > s->running_since_ms ? now_ms - s->running_since_ms : 0;
    return s->active_ms + run;
}

static void put_usage(struct buf *out, const struct store_session *s, int64_t now_ms)
{
    const struct store_usage *u = &s->usage;
    buf_printf(out, ",\"usage\":{\"input_tokens\":%lld,\"output_tokens\":%lld,\"cache_read_input_tokens\":%lld,",
               (long long)u->input, (long long)u->output, (long long)u->cache_read);
    buf_printf(out, "\"cache_creation\":{\"ephemeral_5m_input_tokens\":%lld,\"ephemeral_1h_input_tokens\":%lld},",
               (long long)u->cache_write_5m, (long long)u->cache_write_1h);
    buf_printf(out, "\"list_cost\":null,\"server_tool_use\":null,\"active_seconds\":%.3f}", (double)active_ms(s, now_ms) / 1000.0);
}

static void put_stats(struct buf *out, const struct store_session *s, int64_t now_ms)
{
    int64_t end = s->terminated_ms >= 0 ? s->terminated_ms : now_ms;
    int64_t age = end > s->created_ms ? end - s->created_ms : 0;
    buf_printf(out, ",\"stats\":{\"active_seconds\":%.3f,\"duration_seconds\":%.3f}", (double)active_ms(s, now_ms) / 1000.0, (double)age / 1000.0);
}

static void put_vault_ids(struct buf *out, const char *extra)
{
    json_t *all = extra && extra[0] == '{' && extra[1] != '}' ? parse_stored(extra) : NULL;
    const json_t *ids = json_object_get(all, "vault_ids");
    if (!ids || js_write(ids, out) < 0)
        buf_puts(out, "[]");
    json_decref(all);
}

void view_session(struct buf *out, const struct store_session *s, int64_t now_ms)
{
    put_id(out, s->id, "session");
    buf_printf(out, ",\"status\":\"%s\"", session_status_name(s->status));
    put_string(out, "title", s->title && s->title[0] ? s->title : NULL);       /* a cleared title is stored as "" */
    put_string(out, "environment_id", s->env_id);
    put_time(out, "created_at", s->created_ms);
    put_time(out, "updated_at", s->updated_ms);
    put_time(out, "archived_at", s->archived_ms);
    buf_puts(out, ",\"metadata\":");
    buf_puts(out, s->metadata);
    buf_puts(out, ",\"agent\":");
    buf_puts(out, s->agent);
    put_usage(out, s, now_ms);
    put_stats(out, s, now_ms);
    buf_puts(out, ",\"budget\":null,\"deployment_id\":null,\"outcome_evaluations\":[],\"resources\":[],\"vault_ids\":");
    put_vault_ids(out, s->extra);
    buf_putc(out, '}');
}

void view_thread(struct buf *out, const struct store_session *s, int64_t now_ms)
{
    put_id(out, s->thread_id, "session_thread");
    put_string(out, "session_id", s->id);
    buf_printf(out, ",\"parent_thread_id\":null,\"workflow_run_id\":null,\"status\":\"%s\"", session_status_name(s->status));
    put_time(out, "created_at", s->created_ms);
    put_time(out, "updated_at", s->updated_ms);
    put_time(out, "archived_at", s->archived_ms);
    buf_puts(out, ",\"agent\":");
    buf_puts(out, s->agent);
    put_usage(out, s, now_ms);
    put_stats(out, s, now_ms);
    buf_putc(out, '}');
}

void view_work(struct buf *out, const struct store_work *w, const char *secret)
{
    put_id(out, w->id, "work");
    put_string(out, "environment_id", w->env_id);
    buf_puts(out, ",\"data\":{\"type\":");
    (void)js_write_string(out, w->data_type, strlen(w->data_type));
    buf_puts(out, ",\"id\":");
    (void)js_write_string(out, w->session_id, strlen(w->session_id));
    buf_printf(out, "},\"state\":\"%s\",\"metadata\":%s", work_state_name(w->state), w->metadata ? w->metadata : "{}");
    put_string(out, "secret", secret);
    put_time(out, "created_at", w->created_ms);
    put_time(out, "acknowledged_at", w->acknowledged_ms);
    put_time(out, "started_at", w->started_ms);
    put_time(out, "latest_heartbeat_at", w->heartbeat_ms);
    put_time(out, "stop_requested_at", w->stop_requested_ms);
    put_time(out, "stopped_at", w->stopped_ms);
    buf_putc(out, '}');
}

void view_vault(struct buf *out, const struct store_vault *v)
{
    put_id(out, v->id, "vault");
    put_time(out, "created_at", v->created_ms);
    put_time(out, "updated_at", v->updated_ms);
    put_time(out, "archived_at", v->archived_ms);
    put_members(out, v->body);
}

void view_credential(struct buf *out, const struct store_credential *c)
{
    put_id(out, c->id, "vault_credential");
    put_string(out, "vault_id", c->vault_id);
    put_time(out, "created_at", c->created_ms);
    put_time(out, "updated_at", c->updated_ms);
    put_time(out, "archived_at", c->archived_ms);
    put_members(out, c->body);
}

void view_key(struct buf *out, const struct store_key *k, const char *secret)
{
    static const char *const types[] = { [KEY_API] = "api_key", [KEY_ENVIRONMENT] = "environment_key", [KEY_EDGE] = "edge_key" };
    put_id(out, k->id, types[k->kind]);
    put_string(out, "name", k->name);
    put_string(out, "hint", k->hint);
    if (k->kind == KEY_API)
        put_string(out, "role", auth_role_name(k->role));
    if (k->kind == KEY_ENVIRONMENT)
        put_string(out, "environment_id", k->env_id);
    put_time(out, "created_at", k->created_ms);
    put_time(out, "last_used_at", k->last_used_ms);
    put_time(out, "revoked_at", k->revoked_ms);
    if (secret)
        put_string(out, "key", secret);
    buf_putc(out, '}');
}

void view_tunnel(struct buf *out, const struct store_tunnel *t, bool with_workspace)
{
    put_id(out, t->id, "tunnel");
    put_string(out, "display_name", t->display_name);
    put_string(out, "domain", t->domain);
    if (with_workspace)
        put_string(out, "workspace_id", t->workspace_id);
    put_time(out, "created_at", t->created_ms);
    put_time(out, "archived_at", t->archived_ms);
    buf_putc(out, '}');
}

void view_certificate(struct buf *out, const struct store_tunnel_certificate *k)
{
    put_id(out, k->id, "tunnel_certificate");
    put_string(out, "tunnel_id", k->tunnel_id);
    put_string(out, "fingerprint", k->fingerprint);
    put_time(out, "expires_at", k->expires_ms);
    put_time(out, "created_at", k->created_ms);
    put_time(out, "archived_at", k->archived_ms);
    buf_putc(out, '}');
}

void view_deleted(struct buf *out, const char *id, const char *type)
{
    put_id(out, id, type);
    buf_putc(out, '}');
}
