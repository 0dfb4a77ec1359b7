/* cli/dev.h - private to `outwork dev`: its children, and the tunnel that --route asks for. */
#pragma once

#include "base/attr.h"
#include "base/random.h"
#include "base/secret.h"
#include "conf/conf.h"
#include "ev/ev.h"
#include "http/client.h"

#define DEV_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define DEV_ARGS_MAX 40

/* In the order in which they are stopped: each uses those behind it. */
enum dev_role { DEV_WORKER, DEV_GATEWAY, DEV_EDGE, DEV_SERVER, DEV_ROLES };

struct dev;
struct dev_child { struct dev *dev; struct ev_child child; bool up; };

struct dev_settings {
    char *data, *listen, *tunnel_domain, *provider, *model_url, *model_key_file, *script_file, *network, *log_level;
    struct conf_list routes;
    int64_t max_sessions;
};

struct dev {
    struct dev_settings s;
    struct ev *ev;
    struct http_client *http;
    struct ev_timer timer;
    struct dev_child role[DEV_ROLES];
    struct secret *api_key, *env_key, *edge_key;
    char base[128], env_id[ID_MAX], tunnel_id[ID_MAX], domain[256];      /* of the tunnel: "" without routes */
    uint16_t provider_port, gateway_port;            /* of the edge */
    int64_t deadline_ms;
    int status;
    bool stopping;
};

/* Says what, and ends everything with status 1. */
void dev_fail(struct dev *d, const char *what);
/* Starts one of our own roles; its end is the end of all. `envp` NULL: this process's. */
MUST_CHECK int dev_spawn(struct dev *d, enum dev_role role, char *const *argv, char *const *envp);
/* A call of the server's API with the administrator's key. */
void dev_call(struct dev *d, const char *method, const char *path, const char *body, void (*done)(void *, int, const struct http_response *, const struct err *));
/* What comes after edge and gateway, or at once without routes: environment and worker. */
void dev_have_tunnel(struct dev *d);
/* The key in the server's answer, kept in `file` for the next start; NULL: there is none, and dev_fail() has said so. */
struct secret *dev_new_key(struct dev *d, int rc, const struct http_response *r, const struct err *e, const char *what, const char *file);
/* "NAME=VALUE" of a secret, malloc'd; wiped by dev_env_free. */
char *dev_env(const char *name, const char *value);
void dev_env_free(char *const *envp);

/* ---- dev_tunnel.c ---- */
MUST_CHECK int dev_tunnel_check(const struct dev *d, struct err *e);       /* of the routes; RC_INVALID with words */
/* Keys and ports of the edge. Before the server starts. */
MUST_CHECK int dev_tunnel_prepare(struct dev *d, struct err *e);
/* What the server has to know of the edge: appends to `argv` strings that are malloc'd. */
void dev_tunnel_server_args(struct dev *d, char **argv, size_t *n);
/* The server is ready: starts edge and gateway, then goes on with dev_have_tunnel(). */
void dev_tunnel_start(struct dev *d);
void dev_tunnel_print(const struct dev *d);
