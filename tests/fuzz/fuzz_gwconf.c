/* The gateway's settings: whatever is accepted makes a table of routes, each found under its own name, and the same text makes the same routes again; whatever is
 * refused says why in one line. (The reader never touches the network; files that it names are read, so the corpus names none.) */
#include <string.h>

#include "base/str.h"
#include "gateway/reload.h"

static struct ev *ev;

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t n)
{
    static const char frame[] = "tunnel_domain: d.example\ntls: {cert_file: c, key_file: k}\nroutes:\n";
    struct err e = { 0 };
    struct setup s, t;
    if (!ev && ev_new(&ev, &e) < 0)
        abort();
    if (n > 64 * KIB || memmem(in, n, "file", 4) || memmem(in, n, "stdio", 5))
        return 0;
    AUTO_FREE char *text = xcalloc(1, sizeof frame + n);
    bool framed = n && in[0] == ' ';     /* " name: url" lines, or a whole file */
    size_t at = framed ? sizeof frame - 1 : 0;
    memcpy(text, frame, at);
    memcpy(text + at, in, n);
    int rc = setup_text(ev, text, at + n, true, &s, &e);
    check((rc == RC_OK) == (e.msg[0] == 0));
    if (rc < 0)
        return 0;
    check(route_table_count(s.routes) > 0 && setup_text(ev, text, at + n, true, &t, &e) == RC_OK && route_table_count(s.routes) == route_table_count(t.routes));
    for (size_t i = 0; i < route_table_count(s.routes); i++) {
        const struct route *r = route_table_at(s.routes, i);
        check(r->ops && r->upstream && r->leads_to && route_table_find(s.routes, r->name) == r);
        check(str_eq(r->text, route_table_at(t.routes, i)->text));
    }
    setup_done(&s);
    setup_done(&t);
    return 0;
}
