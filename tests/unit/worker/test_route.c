#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/str.h"
#include "worker/route.h"

/* What the route did, as text: "run a;" "int a;" (dispatched as interrupted) "!;" (interrupt) "held a;" ... */
static char did[4096];

static void add(const char *what, const char *id)
{
    size_t n = strlen(did);
    (void)snprintf(did + n, sizeof did - n, "%s%s%s;", what, *id ? " " : "", id);
}

static bool op_known(void *ctx, const char *name)
{
    (void)ctx;
    return str_eq(name, "bash") || str_eq(name, "read");
}

static void op_dispatch(void *ctx, const char *id, const char *name, const json_t *ev, bool interrupted)
{
    (void)ctx, (void)name;
    assert_non_null(ev);
    add(interrupted ? "int" : "run", id);
}

static void op_interrupt(void *ctx) { (void)ctx; add("!", ""); }

static void op_note(void *ctx, const char *what, const char *id, const char *name)
{
    (void)ctx, (void)name;
    add(what, id);
}

static const struct route_ops ops = { op_known, op_dispatch, op_interrupt, op_note };

/* One event from a short form:
 *   use ID [perm] | cust ID | other ID (a tool that is not ours) | res ID | cres ID | ares ID | allow ID | deny ID | idle | wait | term | del | int [ID] | msg */
static json_t *event(const char *s)
{
    char k[16] = "", id[300] = "", perm[16] = "";
    size_t n = strcspn(s, " ");
    memcpy(k, s, n);
    if (s[n]) {
        s += n + 1;
        n = strcspn(s, " ");
        memcpy(id, s, n);
        if (s[n])
            (void)str_copy(perm, sizeof perm, s + n + 1);
    }
    json_t *j = json_object();
    static const struct { const char *k, *type, *idkey; } kinds[] = {
        { "use", "agent.tool_use", "id" }, { "cust", "agent.custom_tool_use", "id" }, { "other", "agent.tool_use", "id" },
        { "res", "user.tool_result", "tool_use_id" }, { "cres", "user.custom_tool_result", "custom_tool_use_id" },
        { "ares", "agent.tool_result", "tool_use_id" }, { "allow", "user.tool_confirmation", "tool_use_id" },
        { "deny", "user.tool_confirmation", "tool_use_id" }, { "idle", "session.status_idle", NULL }, { "wait", "session.status_idle", NULL },
        { "term", "session.status_terminated", NULL }, { "del", "session.deleted", NULL }, { "int", "user.interrupt", "id" },
        { "msg", "agent.message", "id" },
    };
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        if (!str_eq(k, kinds[i].k))
            continue;
        js_set_str(j, "type", kinds[i].type);
        if (kinds[i].idkey && id[0])
            js_set_str(j, kinds[i].idkey, id);
        if (str_eq(k, "use") || str_eq(k, "cust"))
            js_set_str(j, "name", "bash");
        if (str_eq(k, "other"))
            js_set_str(j, "name", "deploy");
        if (perm[0])
            js_set_str(j, "evaluated_permission", str_eq(perm, "null") ? NULL : perm);
        if (str_eq(k, "allow") || str_eq(k, "deny"))
            js_set_str(j, "result", k);
        if (str_eq(k, "idle") || str_eq(k, "wait")) {
            json_t *r = json_object();
            js_set_str(r, "type", str_eq(k, "idle") ? "end_turn" : "requires_action");
            js_set(j, "stop_reason", r);
        }
        return j;
    }
    fail_msg("no event kind '%s'", k);
    return NULL;
}

/* Steps: "[" history begins, "]" ends, "x" aborts, "=ID" route_finished; anything else is an event (of the history inside brackets, else live). */
struct row { const char *name, *steps, *want; bool idle, ended; size_t outstanding; };

static const struct row rows[] = {
    { "empty history", "[,]", "", false, false, 0 },
    { "no permission field runs", "[,],use a", "run a;", false, false, 1 },
    { "null permission runs", "use a null", "run a;", false, false, 1 },
    { "allow runs", "use a allow", "run a;", false, false, 1 },
    { "deny is the server's", "use a deny", "denied a;", false, false, 0 },
    { "ask is held", "use a ask", "held a;", false, false, 1 },
    { "an unknown permission is held", "use a maybe", "held a;", false, false, 1 },
    { "held, then allowed", "use a ask,allow a", "held a;run a;", false, false, 1 },
    { "held, then denied", "use a ask,deny a", "held a;denied a;", false, false, 0 },
    { "verdict before the call: allow", "allow a,use a ask", "run a;", false, false, 1 },
    { "verdict before the call: deny", "deny a,use a ask", "denied a;", false, false, 0 },
    { "deny wins over a plain call", "deny a,use a", "denied a;", false, false, 0 },
    { "deny permission is not lifted by allow", "allow a,use a deny", "denied a;", false, false, 0 },
    { "the first verdict counts", "use a ask,deny a,allow a", "held a;denied a;", false, false, 0 },
    { "held and answered elsewhere", "use a ask,res a", "held a;", false, false, 0 },
    { "unknown tool is left alone", "other a", "foreign a;", false, false, 0 },
    { "unknown tool is left alone though asked", "other a ask", "foreign a;", false, false, 0 },
    { "a custom tool named as ours is left alone", "cust a", "foreign a;", false, false, 0 },
    { "live duplicate runs once", "use a,use a", "run a;", false, false, 1 },
    { "listed and streamed runs once", "[,use a,],use a", "run a;", false, false, 1 },
    { "streamed, then listed at a reconnect", "use a,[,use a,]", "run a;", false, false, 1 },
    { "answered in the history", "[,use a,res a,]", "", false, false, 0 },
    { "answered by the agent's own result", "[,use a,ares a,]", "", false, false, 0 },
    { "custom answered in the history", "[,cust a,cres a,]", "", false, false, 0 },
    { "answer before its call in the list", "[,res a,use a,]", "", false, false, 0 },
    { "answered live before the call", "res a,use a", "", false, false, 0 },
    { "order of the history is kept", "[,use a,use b,res a,use c,]", "run b;run c;", false, false, 2 },
    { "history: ask without verdict is held", "[,use a ask,]", "held a;", false, false, 1 },
    { "history: ask with verdict runs", "[,use a ask,allow a,]", "run a;", false, false, 1 },
    { "history: denied", "[,use a ask,deny a,]", "denied a;", false, false, 0 },
    { "held, then allowed while away", "use a ask,[,use a ask,allow a,]", "held a;run a;", false, false, 1 },
    { "held, then answered while away", "use a ask,[,use a ask,res a,]", "held a;", false, false, 0 },
    { "left open when the turn ended", "[,use a,idle,]", "stale a;", true, false, 0 },
    { "left open, then a new turn", "[,use a,idle,msg m,use b,]", "stale a;run b;", false, false, 1 },
    { "waiting for action is not the end", "[,use a,wait,]", "run a;", false, false, 1 },
    { "interrupted before it ran", "[,use a,int i,]", "int a;", false, false, 1 },
    { "interrupted and over", "[,use a,int i,idle,]", "stale a;", true, false, 0 },
    { "only what was there is interrupted", "[,use a,int i,use b,]", "int a;run b;", false, false, 2 },
    { "interrupt live", "use a,int i", "run a;!;", false, false, 1 },
    { "the same interrupt again when processed", "use a,int i,int i", "run a;!;", false, false, 1 },
    { "interrupt known from the history", "[,int i,use a,],int i", "run a;", false, false, 1 },
    { "interrupt without id is always new", "int,int", "!;!;", false, false, 0 },
    { "interrupt and end drop what is held", "use a ask,int i,idle", "held a;!;stale a;", true, false, 0 },
    { "held stays without an interrupt", "use a ask,idle", "held a;", false, false, 1 },
    { "held, interrupted and over while away", "use a ask,[,use a ask,int i,idle,]", "held a;stale a;", true, false, 0 },
    { "aborted listing: the live event runs it", "[,use a,x,use a", "run a;", false, false, 1 },
    { "aborted listing, listed again", "[,use a,x,[,use a,]", "run a;", false, false, 1 },
    { "aborted by a new begin", "[,use a,[,use a,]", "run a;", false, false, 1 },
    { "idle at the end of the history", "[,msg m,idle,]", "", true, false, 0 },
    { "not idle when something follows", "[,idle,msg m,]", "", false, false, 0 },
    { "idle live", "idle", "", true, false, 0 },
    { "any event disarms", "idle,msg m", "", false, false, 0 },
    { "a confirmation is neutral", "idle,allow z", "", true, false, 0 },
    { "a running call blocks", "use a,idle", "run a;", false, false, 1 },
    { "idle when the last one is done", "use a,idle,=a", "run a;", true, false, 0 },
    { "requires_action never idles", "wait", "", false, false, 0 },
    { "terminated live", "term", "", false, true, 0 },
    { "deleted live", "del", "", false, true, 0 },
    { "terminated in the history", "[,term,]", "", false, true, 0 },
    { "finished twice is harmless", "use a,=a,=a", "run a;", false, false, 0 },
    { "finished is never run again", "use a,=a,[,use a,]", "run a;", false, false, 0 },
    { "a call without id is ignored", "use", "", false, false, 0 },
    { "a reconnect disarms", "idle,[,msg m,]", "", false, false, 0 },
};

static void play(struct route *r, const char *steps)
{
    bool listing = false;
    struct err e;
    char step[400];
    for (const char *p = steps; *p;) {
        size_t n = strcspn(p, ",");
        memcpy(step, p, n);
        step[n] = 0;
        p += n + (p[n] == ',');
        if (str_eq(step, "[")) {
            route_history_begin(r);
            listing = true;
        } else if (str_eq(step, "]")) {
            assert_int_equal(route_history_end(r, &e), RC_OK);
            listing = false;
        } else if (str_eq(step, "x")) {
            route_history_abort(r);
            listing = false;
        } else if (step[0] == '=') {
            route_finished(r, step + 1);
        } else {
            json_t *ev = event(step);
            assert_int_equal(listing ? route_history_event(r, ev, &e) : route_live(r, ev, &e), RC_OK);
            json_decref(ev);
        }
    }
}

static void test_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct row *w = &rows[i];
        struct route *r = route_new(&ops, NULL);
        uint64_t epoch = 0;
        did[0] = 0;
        play(r, w->steps);
        if (!str_eq(did, w->want) || route_idle(r, &epoch) != w->idle || route_ended(r) != w->ended || route_outstanding(r) != w->outstanding)
            fail_msg("%s: did \"%s\" want \"%s\", idle %d, ended %d, outstanding %zu", w->name, did, w->want, route_idle(r, &epoch), route_ended(r),
                     route_outstanding(r));
        route_free(r);
    }
}

static void test_idle_windows(void **state)
{
    (void)state;
    struct route *r = route_new(&ops, NULL);
    uint64_t a = 0, b = 0;
    play(r, "idle");
    assert_true(route_idle(r, &a));
    assert_true(route_idle(r, &b));
    assert_int_equal(a, b);
    play(r, "idle");                     /* a second end_turn begins a fresh window */
    assert_true(route_idle(r, &b));
    assert_int_not_equal(a, b);
    play(r, "use c,idle");
    assert_false(route_idle(r, &a));
    play(r, "=c");                       /* and so does the last running call */
    assert_true(route_idle(r, &b));
    assert_int_not_equal(a, b);
    route_free(r);
}

static void test_answered(void **state)
{
    (void)state;
    struct route *r = route_new(&ops, NULL);
    assert_false(route_answered(r, "a"));
    play(r, "use a");
    assert_false(route_answered(r, "a"));
    play(r, "res a");
    assert_true(route_answered(r, "a"));
    route_free(r);
}

static void test_limits(void **state)
{
    (void)state;
    struct route *r = route_new(&ops, NULL);
    struct err e;
    char s[32];
    int rc = RC_OK;
    for (int i = 0; i < ROUTE_PENDING_MAX && rc == RC_OK; i++) {
        (void)snprintf(s, sizeof s, "use %d ask", i);
        json_t *ev = event(s);
        rc = route_live(r, ev, &e);
        json_decref(ev);
        did[0] = 0;
    }
    assert_int_equal(rc, RC_OK);
    json_t *ev = event("use over ask");
    assert_int_equal(route_live(r, ev, &e), RC_LIMIT);
    json_decref(ev);
    route_free(r);

    r = route_new(&ops, NULL);           /* ids: to the limit, over it, and what is known stays usable */
    for (int i = 0; i < ROUTE_IDS_MAX; i++) {
        (void)snprintf(s, sizeof s, "res %d", i);
        ev = event(s);
        assert_int_equal(route_live(r, ev, &e), RC_OK);
        json_decref(ev);
    }
    ev = event("res over");
    assert_int_equal(route_live(r, ev, &e), RC_LIMIT);
    json_decref(ev);
    assert_true(route_answered(r, "77"));
    route_free(r);

    r = route_new(&ops, NULL);           /* an id over the limit of length is no id */
    json_t *j = event("use a");
    char id[ROUTE_ID_MAX + 2];
    memset(id, 'x', sizeof id);
    id[ROUTE_ID_MAX + 1] = 0;
    js_set_str(j, "id", id);
    did[0] = 0;
    assert_int_equal(route_live(r, j, &e), RC_OK);
    assert_string_equal(did, "");
    id[ROUTE_ID_MAX] = 0;
    js_set_str(j, "id", id);
    assert_int_equal(route_live(r, j, &e), RC_OK);
    assert_true(route_outstanding(r) == 1);
    json_decref(j);
    route_free(r);
}

int main(void)
{
    const struct CMUnitTest t[] = { cmocka_unit_test(test_table), cmocka_unit_test(test_idle_windows), cmocka_unit_test(test_answered), cmocka_unit_test(test_limits) };
    return cmocka_run_group_tests(t, NULL, NULL);
}
