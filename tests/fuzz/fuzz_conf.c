/* Settings that are accepted keep their bounds and survive being printed and read again; durations and sizes likewise. */
#include <string.h>

#include "base/clock.h"
#include "base/dur.h"
#include "base/str.h"
#include "conf/conf.h"

struct settings { char *url, *text; int64_t jobs, wait; uint64_t room; bool on; int mode; struct conf_list hosts; struct conf_tree *tree; };
#define F(f) offsetof(struct settings, f)
static const struct conf_key keys[] = {
    { .name = "model.url", .type = CONF_STR, .field = F(url), .dflt = "x" }, { .name = "text", .type = CONF_STR, .field = F(text) },
    { .name = "jobs", .type = CONF_INT, .field = F(jobs), .dflt = "4", .min = "1", .max = "64" },
    { .name = "model.wait", .type = CONF_DUR, .field = F(wait), .dflt = "30s", .min = "1s", .max = "1h" },
    { .name = "room", .type = CONF_SIZE, .field = F(room), .dflt = "1MiB", .max = "1GiB" }, { .name = "on", .type = CONF_BOOL, .field = F(on) },
    { .name = "mode", .type = CONF_ENUM, .field = F(mode), .dflt = "none", .choices = "none|host" }, { .name = "host", .type = CONF_LIST, .field = F(hosts) },
    { .name = "tree", .type = CONF_TREE, .field = F(tree) },
};
static const struct conf_program program = { .command = "fuzz", .keys = keys, .n_keys = COUNT_OF(keys) };

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void scalars(const char *s)
{
    int64_t ms, back_ms;
    uint64_t size, back_size;
    char text[24], time[RFC3339_MAX];
    if (dur_parse(s, &ms) == RC_OK) {
        dur_format(ms, text);
        check(ms >= 0 && dur_parse(text, &back_ms) == RC_OK && back_ms == ms);
    }
    if (size_parse(s, &size) == RC_OK) {
        size_format(size, text);
        check(size_parse(text, &back_size) == RC_OK && back_size == size);
    }
    if (rfc3339_parse(s, &ms) == RC_OK && ms >= -62167219200000 && ms <= 253402300799999) {      /* an offset may lead out of the years 0 to 9999 */
        rfc3339_format(ms, time);
        check(rfc3339_parse(time, &back_ms) == RC_OK && back_ms == ms);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    AUTO_FREE char *text = str_ndup((const char *)in, n);
    scalars(text);
    struct settings s = { 0 }, t = { 0 };
    struct err e = { 0 };
    struct buf a, b;
    buf_init(&a, SIZE_MAX);
    buf_init(&b, SIZE_MAX);
    int rc = conf_load_text(&program, (const char *)in, n, &s, &e);
    check((rc == RC_OK) == (e.msg[0] == 0));
    if (rc == RC_OK) {
        check(s.jobs >= 1 && s.jobs <= 64 && s.wait >= 1000 && s.wait <= 3600000 && s.room <= GIB && (s.mode == 0 || s.mode == 1) && s.hosts.n <= CONF_ITEMS_MAX);
        check(conf_write_effective(&program, &s, &a) == RC_OK);
        if (conf_load_text(&program, buf_data(&a), buf_len(&a), &t, &e) < 0)
            abort();
        check(conf_write_effective(&program, &t, &b) == RC_OK && buf_len(&a) == buf_len(&b) && memcmp(buf_data(&a), buf_data(&b), buf_len(&a)) == 0);
        conf_free(&program, &t);
    }
    conf_free(&program, &s);
    buf_done(&a);
    buf_done(&b);
    return 0;
}
