/* start.c - the two entries that need the program of src/inside; apart, so that tests can link the rest with a program of their own. */
#include "inside/blob.h"
#include "worker/sandbox/internal.h"

int sbx_host_start(struct ev *ev, const struct sbx_policy *p, size_t warm, struct sbx_host **ret, struct err *e)
{
    const struct sbx_payload inside = { .bytes = inside_blob, .n = inside_blob_size };
    return sbx_host_start_with(ev, p, warm, &inside, ret, e);
}

int sbx_probe(const struct sbx_policy *p, json_t **ret_report, struct err *e)
{
    const struct sbx_payload inside = { .bytes = inside_blob, .n = inside_blob_size };
    return sbx_probe_with(p, &inside, ret_report, e);
}
