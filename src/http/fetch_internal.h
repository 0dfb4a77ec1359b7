/* http/fetch_internal.h - shared by the files of fetch: fetch.c (life of a call, handing over, loop), fetch_note.c (libcurl's callbacks),
 * fetch_setup.c (options and headers of a request). */
#pragma once

#include "base/list.h"
#include "http/fetch.h"
#include "http/fetch_curl.h"

#define FETCH_BODY_MAX (32 * MIB)               /* a buffered answer, unless the caller says */
#define FETCH_REQUEST_ID_MAX 128
#define FETCH_RETRY_AFTER_MAX_MS ((int64_t)24 * 3600 * 1000)

struct fetch {
    struct ev *ev;
    const struct fetch_curl *curl;
    CURLM *multi;
    struct ev_timer timer;
    struct list calls, ready, socks;        /* ready: has data or an end to hand over */
    size_t conns_max;
    char *ca_file, *proxy, *user_agent;
};

enum phase { PHASE_CONNECT, PHASE_FIRST_BYTE, PHASE_STREAM };

struct fetch_call {
    struct fetch *f;
    CURL *easy;
    struct curl_slist *headers;
    struct list link, ready;
    struct fetch_request req;               /* method, url, headers and secret are not kept */
    struct ev_timer timer;
    enum phase phase;
    int64_t started_ms, connected_ms, last_byte_ms;
    int status;
    int64_t retry_after_ms, retry_after_exact_ms;
    char request_id[FETCH_REQUEST_ID_MAX];
    struct buf head, body, pending;         /* header lines for on_head; buffered answer; streamed bytes not yet handed over */
    int end_rc;                             /* set by `ended` */
    struct err err;
    bool added, ended, paused, in_callback, cancelled, body_begun, head_whole, head_told, held, proxied;
    bool exact, ruled;                      /* the server's certificate is under rules of ours; they were put on a context of this call */
    int proxy_status;
    char proxy_note[FETCH_REQUEST_ID_MAX], proxy_note_name[64];
    struct curl_slist *connect_to;
    char curl_text[CURL_ERROR_SIZE];
};

/* fetch.c: something is to be handed over; the call has ended (the first word counts). */
void fetch_ready(struct fetch_call *c);
void fetch_end(struct fetch_call *c, int rc);
/* fetch_note.c: what libcurl calls, and what its result codes mean. */
void fetch_note_install(struct fetch_call *c);
void fetch_note_result(struct fetch_call *c, CURLcode code);
/* fetch_setup.c: makes c->easy and c->headers; on failure c->err says why. */
MUST_CHECK int fetch_setup(struct fetch_call *c, const struct fetch_request *r);
void fetch_wipe_headers(struct fetch_call *c);
