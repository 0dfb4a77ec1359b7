/* server/mcp/guard.h - which servers may be called, and how they are reached (architecture section 5, tunnels.md 4.3 and 11): hosts of our own tunnels
 * through the edge, public hosts by the allow-list at an address that was checked, and what the operator names may also be private.
 * The pure parts are for whoever else dials what a client names (token endpoints of vaults). */
#pragma once

#include <sys/socket.h>

#include "base/attr.h"
#include "base/err.h"
#include "ev/ev.h"
#include "ev/jobs.h"
#include "http/url.h"
#include "store/store.h"

/* ---- pure ---- */
/* A unicast address of the public Internet. Else *ret_why (static text) says which kind it is: "loopback", "private", "link-local", ... Addresses that
 * carry an IPv4 address inside (mapped, 6to4, NAT64, Teredo) count as what they carry, or not at all. */
bool guard_address_public(const struct sockaddr *a, const char **ret_why);
/* "mcp.example.com" exactly, "*.example.com" everything below, "*" everything. Case does not count. */
bool guard_host_matches(const char *const *list, size_t n, const char *host);
/* Whether "host:port" of the URL is in the list. */
bool guard_is_private_ok(const char *const *list, size_t n, const struct http_url *u);
enum guard_kind { GUARD_PUBLIC, GUARD_PRIVATE, GUARD_TUNNEL };
struct guard_rules {
    const char *tunnel_domain;                                /* or NULL */
    const char *const *allow; size_t n_allow;
    const char *const *private_ok; size_t n_private_ok;
};
/* What the URL alone says. RC_DENIED: refused, with the setting that would allow it; RC_INVALID: no usable URL. For GUARD_TUNNEL *ret_domain (points into
 * `u`) is the tunnel's own domain. */
MUST_CHECK int guard_classify(const struct guard_rules *r, const char *url, struct http_url *u, enum guard_kind *ret, const char **ret_domain, struct err *e);

/* ---- looking up; ev thread ---- */
#define GUARD_ADDRESS_MAX 48
#define GUARD_ADDRESSES_MAX 4
#define GUARD_THREADS 4                  /* name look-ups at once */
struct guard;
struct guard_conf { struct ev *ev; struct store *store; const char *workspace_id; struct guard_rules rules; bool proxied; /* a proxy looks names up */ };
MUST_CHECK int guard_new(const struct guard_conf *c, struct guard **ret, struct err *e);     /* strings are borrowed */
void guard_free(struct guard *g);

struct guard_route {
    enum guard_kind kind;
    char addresses[GUARD_ADDRESSES_MAX][GUARD_ADDRESS_MAX]; size_t n_addresses;      /* to dial, in turn; none for a tunnel or through a proxy */
    const char *ca_pem; size_t ca_n;     /* tunnel: its authorities now */
};
struct guard_check;
/* One callback, never inside the call. rc RC_OK; RC_DENIED or RC_INVALID: refused before any dial; RC_NOT_FOUND: the name does not exist; others: cannot
 * be said now. The tunnel's rows are read anew each time, so that an archived certificate acts on the next dial. */
struct guard_check *guard_start(struct guard *g, const char *url, void (*cb)(void *ctx, int rc, const struct guard_route *r, const struct err *e), void *ctx);
void guard_cancel(struct guard_check *c);        /* NULL is fine */
