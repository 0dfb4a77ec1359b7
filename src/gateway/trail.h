/* gateway/trail.h - the audit line of each request that passes (tunnels.md 11 f): who asked what of which route, how it ended, how many bytes; never
 * arguments, never tokens. Loop thread only. */
#pragma once

#include "ev/ev.h"
#include "gateway/mcp.h"

#define TRAIL_SYNC_QUIET_MS 200          /* lines reach the disk after a pause of this length, ... */
#define TRAIL_SYNC_MAX_MS 1000           /* ... at the latest this long after they were written */
#define TRAIL_SESSION_HEX 17             /* first 64 bits of the SHA-256 of a session id, in hex with NUL */

struct trail;
MUST_CHECK int trail_open(struct ev *ev, const char *path, struct trail **ret, struct err *e);
void trail_close(struct trail *t);
/* A line could not be written: from then on no request passes (the caller answers 503). */
bool trail_broken(const struct trail *t);

struct trail_line {
    const char *route, *http_method, *version, *session, *client;      /* session: hashed; texts may be "" */
    const struct mcp_call *call;         /* NULL: no JSON-RPC message (GET, DELETE), or unparsed */
    const char *unparsed;                /* why the body was not read, or NULL */
    const char *refused;                 /* the policy's reason, or NULL */
    size_t batch;                        /* messages in the batch; 0: no batch */
    bool header_mismatch;                /* Mcp-Method or Mcp-Name say something else than the body */
    int status;                          /* 0: the client left first */
    uint64_t bytes_in, bytes_out;
    int64_t duration_us;
};
void trail_add(struct trail *t, const struct trail_line *l);
void trail_session_hash(const char *id, size_t n, char out[TRAIL_SESSION_HEX]);
