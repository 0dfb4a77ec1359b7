/* compact.c - what a summarising request says and which part of the conversation it replaces (service.md 4.4). */
#include <string.h>

#include "base/str.h"
#include "server/loop/prompt.h"

#define SUMMARY_MAX (1 * MIB)

const char compact_instructions[] =
    "Write a summary of the conversation so far. It will replace the conversation: whoever continues sees only the summary and the last few messages. "
    "Do not call any tool and do not continue the task; write text only.\n"
    "Recall comes first. Include: what the user asked for, word for word where wording matters, and every later correction; decisions made and why; "
    "what was done, with the names of files, functions, commands, identifiers and numbers that are still needed; what failed and what was learnt from "
    "it; the current state of the work; running background processes or handles; open questions; and the exact next step. "
    "Leave out what no longer matters, such as output that was read and used up.";
const char compact_ask[] =
    "The conversation has grown too long for the context window. ";

size_t compact_cut(const struct compact_item *items, size_t n, size_t keep_bytes)
{
    size_t last = n;
    for (size_t i = 0; i < n; i++)
        if (items[i].assistant)
            last = i;
    if (last == n)
        return 0;                                        /* no response yet: there is no history */
    /* The results of the last response's calls, and inputs it has not seen, are to be answered: they stay. */
    size_t cut = items[last].has_calls ? last : last + 1, size = 0, turns = cut == last;
    for (size_t i = cut; i < n; i++)
        size += items[i].size;
    while (cut > 0 && turns < COMPACT_KEEP_TURNS && size + items[cut - 1].size <= keep_bytes) {
        cut--;
        size += items[cut].size;
        turns += items[cut].assistant;
    }
    bool gone = false;
    for (size_t i = 0; i < cut; i++)
        gone |= items[i].assistant;
    if (!gone)                                           /* all would be kept: then keep only what must be */
        cut = items[last].has_calls ? last : last + 1;
    return cut;
}

json_t *compact_summary_content(const char *summary)
{
    char *text = str_printf("The earlier part of this conversation was replaced by this summary:\n\n<summary>\n%s\n</summary>\n\n"
                            "Continue from where it ends, without mentioning the summary.", summary);
    json_t *b = json_object(), *a = json_array();
    js_set_str(b, "type", "text");
    js_set_str(b, "text", text);
    js_push(a, b);
    free(text);
    return a;
}

char *compact_summary_of(const json_t *content)
{
    struct buf b;
    buf_init(&b, SUMMARY_MAX);
    size_t i;
    json_t *bl;
    json_array_foreach(content, i, bl)
        if (str_eq(js_str(bl, "type"), "text"))
            (void)buf_puts(&b, js_str(bl, "text"));
    bool any = buf_len(&b) > 0 && strspn(buf_data(&b), " \t\r\n") < buf_len(&b);
    char *ret = any ? buf_take(&b, NULL) : NULL;
    buf_done(&b);
    return ret;
}
