/* server/loop/prompt.h - rebuilds a Messages API request from the log (service.md 4). Pure and deterministic: equal logs give equal bytes, so
 * that the provider's prefix cache hits. */
#pragma once

#include "base/buf.h"
#include "server/loop/reduce.h"
#include "server/loop/snapshot.h"
#include "server/model/model.h"

#define PROMPT_MAX (64 * MIB)            /* a request body */
#define PROMPT_BETA_MAX 160
#define COMPACT_KEEP_TURNS 3             /* responses kept verbatim behind a summary, if they are small enough */
#define COMPACT_OUTPUT_TOKENS 16000
#define COMPACT_CLIP_BYTES 2000          /* of each tool result, when the first summarising request failed */
#define COMPACT_TRIGGER_MIN 50000        /* the primitive takes no lower one */

struct prompt_in {
    const struct snapshot *snap;
    const struct model_caps *caps;
    const struct turn_state *st;
    const struct store_event *rows; size_t n_rows;       /* everything after st->base_seq */
    int64_t compact_at;
    bool compact;                        /* the summarising request */
    int64_t attempt;                     /* of the summarising request, from 1 */
};
struct prompt_out {
    struct buf body;                     /* initialised by prompt_build(); the caller ends it with buf_done() */
    char beta[PROMPT_BETA_MAX];
    int64_t cut_seq;                     /* compact: what stands before this position is summarised */
    bool kept;                           /* compact: a response stays behind the cut */
};
/* RC_INVALID: damaged log; RC_TOO_LARGE: over PROMPT_MAX; RC_LIMIT: compact, but nothing can be taken away. */
MUST_CHECK int prompt_build(const struct prompt_in *in, struct prompt_out *ret, struct err *e);

/* compact.c: which items a summary replaces. `size` in bytes and `assistant` per item; the first `ret` of `n` items go. 0: none can. */
struct compact_item { size_t size; bool assistant, has_calls; };
size_t compact_cut(const struct compact_item *items, size_t n, size_t keep_bytes);
extern const char compact_instructions[], compact_ask[];
json_t *compact_summary_content(const char *summary);            /* new content array of the user message that stands for what was cut */
char *compact_summary_of(const json_t *content);                 /* malloc'd text of a response; NULL when there is none */
