/* worker/keys.h - where the worker's credentials come from, and how the zygote is kept from having a copy of them. */
#pragma once

#include "worker/ctx.h"

/* Secrets of the environment, in memory that a fork does not copy. */
struct keys;

/* Takes ANTHROPIC_ENVIRONMENT_KEY, ANTHROPIC_WORK_SECRET and what other tools leave there (ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN) out of the
 * environment. Before the sandboxes' zygote is forked. `keep_others`: the latter stay (--on-work hands the environment on). */
MUST_CHECK int keys_take(bool keep_others, struct keys **ret, struct err *e);
/* After the fork: the environment key (file first), or NULL when there is none; and the item's own token for `run`. Frees `k`. */
MUST_CHECK int keys_load(struct keys *k, const struct worker_settings *s, bool run, struct secret **ret_env_key, struct secret **ret_token, struct err *e);
