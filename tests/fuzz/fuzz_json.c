/* What js_parse() accepts keeps the limits, and comes back byte for byte the same after a round trip; any bytes make a valid string. */
#include <string.h>

#include "json/js.h"

static int depth_of(const json_t *j)
{
    int most = 0;
    size_t i;
    const char *key;
    json_t *v;
    if (json_is_object(j))
        json_object_foreach((json_t *)(uintptr_t)j, key, v) {
            if (strlen(key) != json_object_iter_key_len(json_object_iter_at((json_t *)(uintptr_t)j, key)))
                abort();        /* NUL in a key */
            int d = depth_of(v);
            most = d > most ? d : most;
        }
    else if (json_is_array(j))
        json_array_foreach(j, i, v) {
            int d = depth_of(v);
            most = d > most ? d : most;
        }
    else if (json_is_string(j) && strlen(json_string_value(j)) != json_string_length(j))
        abort();
    return most + (json_is_object(j) || json_is_array(j));
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    struct err e = { 0 };
    json_t *j = NULL, *again = NULL;
    struct buf a, b;
    buf_init(&a, SIZE_MAX);
    buf_init(&b, SIZE_MAX);
    int rc = js_parse((const char *)in, n, 1 << 16, &j, &e);
    if ((rc != RC_OK) != (e.msg[0] != 0) || (rc != RC_OK && rc != RC_INVALID && rc != RC_TOO_LARGE))
        abort();
    if (rc == RC_OK) {
        if (depth_of(j) > JS_DEPTH_MAX || js_write(j, &a) != RC_OK || js_parse(buf_data(&a), buf_len(&a), SIZE_MAX, &again, &e) != RC_OK ||
            js_write(again, &b) != RC_OK || buf_len(&a) != buf_len(&b) || memcmp(buf_data(&a), buf_data(&b), buf_len(&a)) != 0 || !json_equal(j, again))
            abort();
        (void)js_str(j, "a.0.b");
        json_decref(again);
        json_decref(j);
    }
    buf_clear(&a);
    again = NULL;
    if (js_write_string(&a, (const char *)in, n) != RC_OK || js_parse(buf_data(&a), buf_len(&a), SIZE_MAX, &again, &e) != RC_OK || !json_is_string(again))
        abort();
    json_decref(again);
    buf_done(&a);
    buf_done(&b);
    return 0;
}
