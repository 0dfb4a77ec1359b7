/* The route table: every row is reached, literals win, nothing is open by accident. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "server/api/call.h"

/* "/v1/agents/{agent_id}" as a request would say it. */
static void fill(const char *pattern, char *out)
{
    for (; *pattern; pattern++)
        if (*pattern == '{') {
            *out++ = 'x';
            pattern = strchr(pattern, '}');
        } else {
            *out++ = *pattern;
        }
    *out = '\0';
}

static void test_every_row_is_reached(void **state)
{
    (void)state;
    for (size_t i = 0; i < routes_n; i++) {
        char path[256], allow[64];
        const struct route *r = NULL;
        struct slice params[CALL_PARAMS_MAX] = { { NULL, 0 } };
        fill(routes[i].path, path);
        assert_int_equal(route_find(routes[i].method, slice_of(path), &r, params, allow), RC_OK);
        if (r != &routes[i])
            fail_msg("%s leads to %s", routes[i].path, r->path);
        size_t n = 0;
        for (const char *p = routes[i].path; (p = strchr(p, '{')); p++)
            n++;
        for (size_t k = 0; k < CALL_PARAMS_MAX; k++)
            assert_int_equal(params[k].p != NULL, k < n);
    }
}

/* Each row names who may, and only the three health paths are open. */
static void test_permissions(void **state)
{
    (void)state;
    for (size_t i = 0; i < routes_n; i++) {
        const struct route *r = &routes[i];
        bool open = r->flags & WHO_ANYONE, health = strcmp(r->path, "/healthz") == 0 || strcmp(r->path, "/readyz") == 0 || strcmp(r->path, "/metrics") == 0;
        assert_int_equal(open, health);
        if (!open && r->role == ROLE_NONE)
            assert_true(r->flags & (WHO_ENV_KEY | WHO_SES_TOKEN | WHO_EDGE_KEY));
        if (r->method == HTTP_GET)
            assert_int_equal(r->body_max, 0);
        else
            assert_true(r->body_max > 0);
        bool edges = strncmp(r->path, "/outwork/v1/edges/", 18) == 0;        /* what edges ask: with their own kind of key, and nothing else with it */
        assert_int_equal(edges, (r->flags & WHO_EDGE_KEY) != 0);
        if (strncmp(r->path, "/outwork/", 9) == 0) {
            assert_int_equal(r->role, edges ? ROLE_NONE : r->method == HTTP_GET && strncmp(r->path, "/outwork/v1/tunnels", 19) == 0 ? ROLE_USER : ROLE_ADMIN);
            assert_int_equal(r->flags & (WHO_ENV_KEY | WHO_SES_TOKEN), 0);
        }
        if (r->method != HTTP_GET && strstr(r->path, "/v1/agents"))
            assert_true(r->role >= ROLE_DEVELOPER);
        assert_non_null(r->handler);
        if (r->op)
            assert_non_null(schema_op_find(r->op));
    }
}

static void test_paths(void **state)
{
    (void)state;
    static const struct { enum http_method m; const char *path, *want; int rc; } t[] = {
        { HTTP_GET, "/v1/environments/env_1/work/poll", "/v1/environments/{environment_id}/work/poll", RC_OK },
        { HTTP_GET, "/v1/environments/env_1/work/stats", "/v1/environments/{environment_id}/work/stats", RC_OK },
        { HTTP_GET, "/v1/environments/env_1/work/work_1", "/v1/environments/{environment_id}/work/{work_id}", RC_OK },
        { HTTP_POST, "/v1/environments/env_1/work/poll", "/v1/environments/{environment_id}/work/{work_id}", RC_OK },
        { HTTP_GET, "/v1/agents/", "/v1/agents", RC_OK },
        { HTTP_GET, "/v1/agents//", NULL, RC_NOT_FOUND },
        { HTTP_GET, "/v1/agents/a/b", NULL, RC_NOT_FOUND },
        { HTTP_GET, "/v1/sessions//events", NULL, RC_NOT_FOUND },
        { HTTP_GET, "v1/agents", NULL, RC_NOT_FOUND },
        { HTTP_GET, "/", NULL, RC_NOT_FOUND },
        { HTTP_GET, "", NULL, RC_NOT_FOUND },
        { HTTP_GET, "/V1/agents", NULL, RC_NOT_FOUND },
        { HTTP_DELETE, "/v1/agents", NULL, RC_INVALID },
        { HTTP_PUT, "/healthz", NULL, RC_INVALID },
        { HTTP_GET, "/a/b/c/d/e/f/g/h/i/j/k/l", NULL, RC_NOT_FOUND },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        const struct route *r = NULL;
        struct slice params[CALL_PARAMS_MAX] = { { NULL, 0 } };
        char allow[64];
        int rc = route_find(t[i].m, slice_of(t[i].path), &r, params, allow);
        if (rc != t[i].rc || (rc == RC_OK && strcmp(r->path, t[i].want) != 0))
            fail_msg("row %zu %s: rc %d %s", i, t[i].path, rc, r ? r->path : "");
        if (rc == RC_INVALID)
            assert_true(allow[0] != '\0');
    }
}

/* Each operation of the document is either served or known as unserved; nothing else is known. */
static void test_unserved(void **state)
{
    (void)state;
    assert_string_equal(route_unserved(HTTP_GET, SLICE("/v1/files")), "beta_files_list");
    assert_string_equal(route_unserved(HTTP_POST, SLICE("/v1/deployments/d/archive")), "beta_deployments_archive");
    assert_null(route_unserved(HTTP_GET, SLICE("/v1/nothing")));
    size_t served = 0;
    for (size_t i = 0; i < schema_known_n; i++) {
        char path[256], allow[64];
        const struct route *r = NULL;
        struct slice params[CALL_PARAMS_MAX] = { { NULL, 0 } };
        fill(schema_known[i].path, path);
        for (int m = 0; m < HTTP_METHOD_MAX_; m++) {
            if (strcmp(http_method_name((enum http_method)m), schema_known[i].method) != 0)
                continue;
            bool found = route_find((enum http_method)m, slice_of(path), &r, params, allow) == RC_OK;
            served += found;
            if (!found)
                assert_non_null(route_unserved((enum http_method)m, slice_of(path)));
        }
    }
    assert_true(served >= 37);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row_is_reached), cmocka_unit_test(test_permissions), cmocka_unit_test(test_paths), cmocka_unit_test(test_unserved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
