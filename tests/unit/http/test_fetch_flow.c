/* fetch: the head of an answer, and a receiver that asks the peer to wait. */
#include "http/fetch_rig.h"

static int heads, head_status, head_pieces;
static char head_text[FETCH_HEAD_MAX + 1];
static bool head_cancels, head_holds;

static void on_head(void *ctx, int status, struct slice lines)
{
    struct got *g = ctx;
    heads++;
    head_status = status;
    head_pieces = g->pieces + g->done;
    memcpy(head_text, lines.p, lines.n);
    head_text[lines.n] = '\0';
    if (head_holds)
        fetch_hold(g->call, true);
    if (head_cancels)
        fetch_cancel(g->call);
}

static void heads_are_told(void **st)
{
    (void)st;
    static const struct { const char *path, *name, *want; int status; } t[] = {
        { "/ok", "REQUEST-ID", "req_1", 200 }, { "/ok", "content-length", "5", 200 }, { "/ok", "request", NULL, 200 },
        { "/retry/7", "retry-after", "7", 429 }, { "/interim", "request-id", NULL, 200 }, { "/stream", "retry-after", NULL, 200 },
        { "/stream-error", "transfer-encoding", "chunked", 529 }, { "/redirect", "location", "/ok", 302 },
    };
    struct got g;
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        heads = 0;
        get(&g, (struct fetch_request){ .method = "GET", .url = url(t[i].path), .on_head = on_head, .on_data = on_data });
        assert_int_equal(g.rc, RC_OK);
        assert_int_equal(heads, 1);
        assert_int_equal(head_status, t[i].status);
        assert_int_equal(head_pieces, 0);
        struct slice v = fetch_header((struct slice){ head_text, strlen(head_text) }, t[i].name);
        if (t[i].want ? !slice_eq(v, t[i].want) : v.p != NULL)
            fail_msg("%s %s: \"%.*s\"", t[i].path, t[i].name, (int)v.n, v.p ? v.p : "");
        got_done(&g);
    }
    heads = 0;                                          /* no answer, no head */
    get(&g, (struct fetch_request){ .method = "GET", .url = url("/nothing"), .on_head = on_head });
    assert_int_equal(heads, 0);
    got_done(&g);
    head_cancels = true;
    got_init(&g);
    start(&g, (struct fetch_request){ .method = "GET", .url = url("/stream"), .on_head = on_head, .on_data = on_data });
    for (int64_t end = clock_mono_ms() + 20000; !heads && clock_mono_ms() < end;)
        ev_run_once(ev, 50);
    turn(30);
    head_cancels = false;
    assert_int_equal(heads, 1);
    assert_int_equal(g.done + g.pieces, 0);
    got_done(&g);
}

/* A held call neither hands over nor reads on without end, and a stall is not the peer's. */
static void holding(void **st)
{
    (void)st;
    struct got g;
    static const char *const paths[] = { "/stream", "/big", "/ok", "/retry/1" };
    for (size_t i = 0; i < COUNT_OF(paths); i++) {
        heads = 0;
        head_holds = true;
        got_init(&g);
        start(&g, (struct fetch_request){ .method = "GET", .url = url(paths[i]), .stall_ms = 30, .on_head = on_head, .on_data = on_data });
        for (int64_t end = clock_mono_ms() + 20000; !heads && clock_mono_ms() < end;)
            ev_run_once(ev, 50);
        turn(80);
        assert_int_equal(g.done + g.pieces, 0);
        fetch_hold(g.call, false);
        assert_int_equal(g.done + g.pieces, 0);         /* never from inside the call */
        head_holds = false;
        wait_done(&g);
        assert_int_equal(g.rc, RC_OK);
        assert_true(g.streamed == (i == 0 ? 25 : i == 1 ? 320 * 65536 : i == 2 ? 5 : 0));
        got_done(&g);
    }
    head_holds = true;                                  /* cancelled while held */
    heads = 0;
    got_init(&g);
    start(&g, (struct fetch_request){ .method = "GET", .url = url("/big"), .on_head = on_head, .on_data = on_data });
    for (int64_t end = clock_mono_ms() + 20000; !heads && clock_mono_ms() < end;)
        ev_run_once(ev, 50);
    fetch_cancel(g.call);
    head_holds = false;
    turn(20);
    assert_int_equal(g.done + g.pieces, 0);
    got_done(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(heads_are_told), cmocka_unit_test(holding) };
    return cmocka_run_group_tests(tests, setup, teardown);
}
