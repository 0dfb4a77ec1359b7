#include "base/attr.h"
#include "base/rc.h"

struct rc_row { int value, http; bool retry; const char *name, *text; };

static const struct rc_row rows[] = {
#define X(name, value, http, retry, text) { value, http, retry, #name, text },
    RC_LIST(X)
#undef X
};

static const struct rc_row *find(int rc)
{
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (rows[i].value == rc)
            return &rows[i];
    return NULL;
}

const char *rc_name(int rc) { const struct rc_row *r = find(rc); return r ? r->name : "UNKNOWN"; }
const char *rc_text(int rc) { const struct rc_row *r = find(rc); return r ? r->text : "unknown result code"; }
int rc_http(int rc) { const struct rc_row *r = find(rc); return r ? r->http : 500; }
bool rc_retry(int rc) { const struct rc_row *r = find(rc); return r && r->retry; }
