/* cli/api.c - see api.h. A command has nothing else to do while it waits, so each call runs the loop until its answer is there. */
#include "cli/api.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "ev/ev.h"
#include "http/client.h"

#define TIMEOUT_MS 30000
#define ANSWER_MAX (8 * MIB)
#define PAGES_MAX 1000
#define CURSOR_MAX 1024

struct cli_api {
    struct ev *ev;
    struct http_client *http;
    const struct secret *key;
    char *base, *headers, *headers_json;
    /* of the call that runs */
    bool done;
    int rc, status;
    json_t *json;
    struct err err;
};

int cli_api_new(const struct cli_api_conf *c, struct cli_api **ret, struct err *e)
{
    AUTO_PTR(cli_api) a = xcalloc(1, sizeof *a);
    struct http_client_conf hc = {
        .ca_file = c->ca_file, .http_proxy = c->http_proxy, .https_proxy = c->https_proxy, .no_proxy = c->no_proxy, .user_agent = "outwork-cli/" OUTWORK_VERSION,
    };
    size_t n = strlen(c->base);
    while (n && c->base[n - 1] == '/')
        n--;
    a->base = str_ndup(c->base, n);
    a->headers = str_dup(c->headers);
    a->headers_json = str_printf("%scontent-type: application/json\r\n", c->headers);
    a->key = c->key;
    TRY(ev_new(&a->ev, e));
    TRY(http_client_new(a->ev, &hc, &a->http, e));
    *ret = TAKE(a);
    return RC_OK;
}

void cli_api_free(struct cli_api *a)
{
    if (!a)
        return;
    if (a->http)
        http_client_free(a->http);
    if (a->ev)
        ev_free(a->ev);
    json_decref(a->json);
    free(a->base), free(a->headers), free(a->headers_json);
    free(a);
}

static void on_done(void *ctx, int rc, const struct http_response *r, const struct err *e)
{
    struct cli_api *a = ctx;
    a->done = true;
    a->rc = rc;
    if (rc < 0) {
        a->err = *e;
        return;
    }
    a->status = r->status;
    if (buf_len(r->body) && js_parse(buf_data(r->body), buf_len(r->body), ANSWER_MAX, &a->json, &a->err) < 0)
        a->json = NULL;
    buf_wipe(r->body);                       /* may have been a token */
}

static int rc_of(int status)
{
    switch (status) {
    case 401: return RC_UNAUTHORIZED;
    case 403: return RC_DENIED;
    case 404: return RC_NOT_FOUND;
    case 409: return RC_CONFLICT;
    default: return status >= 500 ? RC_IO : status >= 400 ? RC_INVALID : RC_PROTO;
    }
}

int cli_api_call(struct cli_api *a, const char *method, const char *path, json_t *take_body, json_t **ret, struct err *e)
{
    AUTO_JS body = take_body;
    AUTO_FREE char *url = str_printf("%s%s", a->base, path), *text = body ? js_text(body) : NULL;
    struct http_request q = {
        .method = method, .url = url, .headers = text ? a->headers_json : a->headers, .bearer = a->key, .body = text, .body_n = text ? strlen(text) : 0,
        .timeout_ms = TIMEOUT_MS, .body_max = ANSWER_MAX, .on_done = on_done, .ctx = a,
    };
    a->done = false;
    (void)http_call_start(a->http, &q);
    while (!a->done)
        (void)ev_run_once(a->ev, 1000);
    if (a->rc < 0) {
        *e = a->err;
        return err_wrap(e, a->rc, "no answer from %s", a->base);
    }
    AUTO_JS json = TAKE(a->json);
    if (a->status / 100 == 2 && json_is_object(json)) {
        *ret = TAKE(json);
        return RC_OK;
    }
    const char *said = js_str(json, "error.message");
    if (!said)
        return err_set(e, RC_PROTO, "%s %s: HTTP %d without an answer of this API; is %s an outwork server?", method, path, a->status, a->base);
    return err_set(e, rc_of(a->status), "%s", said);
}

int cli_api_list(struct cli_api *a, const char *path, json_t **ret, struct err *e)
{
    AUTO_JS rows = json_array();
    char cursor[CURSOR_MAX] = "";
    for (int i = 0; i < PAGES_MAX; i++) {
        AUTO_FREE char *p = cursor[0] ? str_printf("%s&page=%s", path, cursor) : str_dup(path);
        AUTO_JS page = NULL;
        TRY(cli_api_call(a, "GET", p, NULL, &page, e));
        (void)json_array_extend(rows, json_object_get(page, "data"));
        const char *next = js_str(page, "next_page");
        if (!next) {
            *ret = TAKE(rows);
            return RC_OK;
        }
        if (next[strspn(next, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")] || !str_copy(cursor, sizeof cursor, next))
            return err_set(e, RC_PROTO, "the server sent a page cursor that cannot be sent back");
    }
    return err_set(e, RC_LIMIT, "the list has more than %d pages", PAGES_MAX);
}
