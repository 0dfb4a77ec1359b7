/* worker/skills.h - the skills of a session's agent, fetched and placed in its sandbox before the first call, taken away after the last
 * (worker.md 6.1). A skill that cannot be had costs a warning, never the session. Loop thread only. */
#pragma once

#include "base/attr.h"
#include "json/js.h"
#include "worker/box.h"
#include "worker/ctx.h"

#define SKILLS_MAX 64                    /* of one agent that are looked at */
#define SKILL_ARCHIVE_MAX (64 * MIB)     /* one download */

struct skills;
struct skills_conf {
    struct worker *w;
    struct box *box;                     /* borrowed; nothing else uses it meanwhile */
    const char *session_id;              /* borrowed */
    const struct secret *cred, *fallback;/* borrowed; `fallback` (or NULL) is tried when `cred` gets 401 or 403 */
    void (*done)(void *ctx);             /* in a turn of its own */
    void *ctx;
};
/* `list` is session.agent.skills. NULL when there is nothing to do. */
struct skills *skills_start(const struct skills_conf *c, const json_t *list);
void skills_remove(struct skills *s, void (*done)(void *ctx), void *ctx);    /* what was placed; `done` in a later turn */
void skills_free(struct skills *s);                                          /* NULL is fine */

/* Pure pieces. */
bool skill_version_exact(const char *v);                                     /* all digits */
int  skill_version_cmp(const char *a, const char *b);                        /* as numbers of any length */
void skill_dir_name(const char *name, const char *id, char *out, size_t cap);/* last component of the trimmed name; the id when that is no name */
