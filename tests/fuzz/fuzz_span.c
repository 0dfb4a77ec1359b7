/* What js_parse() takes, the walk takes too, with the same members in the same order and the same values; a walk never leaves its text. */
#include <string.h>

#include "json/js.h"
#include "json/span.h"

#define REQUIRE(x) do { if (!(x)) abort(); } while (0)

static void walk(struct slice text, const json_t *tree)
{
    struct span_walk w;
    struct slice key, value;
    struct err e = { 0 };
    bool object = json_is_object(tree);
    size_t i = 0;
    int rc;
    void *it = json_object_iter((json_t *)(uintptr_t)tree);
    REQUIRE(span_enter(text, object ? '{' : '[', &w, &e) == RC_OK);
    while ((rc = span_next(&w, &key, &value, &e)) == RC_OK) {
        REQUIRE(value.n && value.p >= text.p && value.p + value.n <= text.p + text.n);
        json_t *child;
        if (object) {
            REQUIRE(it && span_key_is(key, json_object_iter_key(it)));
            child = json_object_iter_value(it);
            struct slice again;
            REQUIRE(span_member(text, json_object_iter_key(it), &again, &e) == RC_OK && again.p == value.p && again.n == value.n);
            it = json_object_iter_next((json_t *)(uintptr_t)tree, it);
        } else {
            child = json_array_get(tree, i);
        }
        i++;
        REQUIRE(child);
        if (json_is_object(child) || json_is_array(child)) {
            walk(value, child);
        } else if (json_is_string(child)) {
            struct buf b;
            buf_init(&b, value.n + 1);
            REQUIRE(span_text(value, &b) == RC_OK && strcmp(buf_data(&b), json_string_value(child)) == 0);
            REQUIRE(span_is(value, json_string_value(child)));
            buf_done(&b);
        }
    }
    REQUIRE(rc == RC_NOT_FOUND && i == (object ? json_object_size(tree) : json_array_size(tree)));
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    /* An exact copy, so that one byte too far is seen by a sanitizer. */
    char *copy = malloc(n ? n : 1);
    struct slice text = { copy, n }, key, value;
    struct span_walk w;
    struct err e = { 0 };
    json_t *j = NULL;
    if (!copy)
        abort();
    memcpy(copy, in, n);
    if (js_parse(copy, n, 1 << 16, &j, NULL) == RC_OK && (json_is_object(j) || json_is_array(j)))
        walk(text, j);
    json_decref(j);
    for (int k = 0; k < 2; k++) {
        if (span_enter(text, k ? '[' : '{', &w, &e) != RC_OK)
            continue;
        int rc;
        while ((rc = span_next(&w, &key, &value, &e)) == RC_OK)
            REQUIRE(value.n && value.p >= copy && value.p + value.n <= copy + n);
        REQUIRE(rc == RC_NOT_FOUND || (rc == RC_INVALID && e.msg[0]));
    }
    if (span_member(text, "a", &value, &e) == RC_OK)
        REQUIRE(value.n);
    free(copy);
    return 0;
}
