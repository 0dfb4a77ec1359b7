/* worker/ctx.h - what all parts of one worker process share. Private to worker/. Loop thread only. */
#pragma once

#include "audit/audit.h"
#include "base/list.h"
#include "base/secret.h"
#include "ev/ev.h"
#include "http/client.h"
#include "worker/api.h"
#include "worker/sandbox/sandbox.h"
#include "worker/settings.h"
#include "worker/tools/tools.h"

/* Exit statuses, as --help tells them. */
enum { EXIT_OK = 0, EXIT_FAIL = 1, EXIT_USAGE = 2, EXIT_REFUSED = 3, EXIT_SANDBOX = 4 };

struct poller;
struct onwork;
struct record;
struct status;

struct worker {
    struct ev *ev;
    struct worker_settings set;
    struct tool_limits tool_limits;
    struct http_client *http;
    struct api api;
    struct secret *env_key;              /* NULL: `run` with only the item's secret */
    struct sbx_host *sbx;                /* NULL with --on-work */
    struct record *record;
    struct status *status;
    struct poller *poller;               /* NULL in `run` */
    struct onwork *onwork;               /* NULL unless --on-work */
    struct list items;                   /* struct item.link */
    size_t n_items;
    bool stopping;
    int exit_status;
    struct ev_timer stop_deadline, sweep;
};

/* Ends the whole worker: polling stops, items are released, then the loop ends with `exit_status`. Repeating it only raises the status. */
void worker_stop(struct worker *w, int exit_status, const char *why);
enum item_outcome { ITEM_DONE, ITEM_FAILED, ITEM_NOT_CLAIMED };
void worker_item_gone(struct worker *w, enum item_outcome o);     /* an item has left w->items */
