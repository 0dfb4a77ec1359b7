/* tools.c - from the API's input of a tool call to a request for the sandbox. */
#include "worker/tools/tools.h"

#include <string.h>

#include "base/str.h"

#define TOOL_TEXT_MAX (INSIDE_REQ_MAX - 64 * KIB)     /* content of a write, strings of an edit */
#define OUTPUT_BYTES 102400

const struct tool_limits tool_limits_default = {
    .text_file_bytes = 256 * KIB, .image_bytes = 5 * MIB, .pdf_bytes = 20 * MIB, .bash_default_ms = 120000, .bash_max_ms = 600000,
};

struct in { const char *tool; const json_t *input; const struct tool_limits *l; struct inside_req *req; struct buf *body; struct err *e; };

/* A string of the input. NUL cannot occur: js_parse() refuses it. */
static int text_of(const struct in *in, const char *key, bool required, const char **ret, size_t *ret_n)
{
    const json_t *v = json_object_get(in->input, key);
    *ret = NULL;
    *ret_n = 0;
    if (!v || json_is_null(v))
        return required ? err_set(in->e, RC_INVALID, "%s: %s is required", in->tool, key) : RC_OK;
    if (!json_is_string(v))
        return err_set(in->e, RC_INVALID, "%s: %s must be a string", in->tool, key);
    *ret = json_string_value(v);
    *ret_n = json_string_length(v);
    if (*ret_n > TOOL_TEXT_MAX)
        return err_set(in->e, RC_INVALID, "%s: %s is larger than %zu bytes", in->tool, key, (size_t)TOOL_TEXT_MAX);
    return RC_OK;
}

static int path_of(const struct in *in, const char *key, bool required)
{
    const char *p;
    size_t n;
    TRY(text_of(in, key, required, &p, &n));
    if (required && n == 0)
        return err_set(in->e, RC_INVALID, "%s: %s is required", in->tool, key);
    return buf_put(in->body, p ? p : "", n + 1);
}

static int make_bash(const struct in *in)
{
    const char *command;
    size_t n;
    const json_t *t = json_object_get(in->input, "timeout_ms");
    TRY(text_of(in, "command", false, &command, &n));
    bool restart = js_bool(in->input, "restart", false);
    if (!restart && n == 0)
        return err_set(in->e, RC_INVALID, "bash: command is required");
    if (t && !json_is_null(t) && (!json_is_integer(t) || json_integer_value(t) < 0))
        return err_set(in->e, RC_INVALID, "bash: timeout_ms must be a number of milliseconds");
    int64_t ms = json_is_integer(t) && json_integer_value(t) > 0 ? json_integer_value(t) : in->l->bash_default_ms;
    in->req->op = INSIDE_BASH;
    in->req->flags = restart ? INSIDE_RESTART : 0;
    in->req->timeout_ms = (uint32_t)(ms > in->l->bash_max_ms ? in->l->bash_max_ms : ms);
    in->req->limit0 = OUTPUT_BYTES;
    return buf_put(in->body, command ? command : "", n + 1);
}

static int make_read(const struct in *in)
{
    const json_t *r = json_object_get(in->input, "view_range");
    in->req->op = INSIDE_READ;
    in->req->limit0 = in->l->text_file_bytes;
    in->req->limit1 = in->l->pdf_bytes;
    if (r && !json_is_null(r)) {
        if (json_array_size(r) != 2 || !json_is_integer(json_array_get(r, 0)) || !json_is_integer(json_array_get(r, 1)))
            return err_set(in->e, RC_INVALID, "read: view_range must be [start_line, end_line]");
        in->req->flags = INSIDE_VIEW;
        in->req->arg0 = json_integer_value(json_array_get(r, 0));
        in->req->arg1 = json_integer_value(json_array_get(r, 1));
    }
    return path_of(in, "file_path", true);
}

static int make_write(const struct in *in)
{
    const char *content;
    size_t n;
    in->req->op = INSIDE_WRITE;
    TRY(path_of(in, "file_path", true));
    TRY(text_of(in, "content", true, &content, &n));
    return buf_put(in->body, content, n);
}

static int make_edit(const struct in *in)
{
    const char *old, *new;
    size_t old_n, new_n;
    in->req->op = INSIDE_EDIT;
    in->req->limit0 = in->l->text_file_bytes;
    TRY(path_of(in, "file_path", true));
    TRY(text_of(in, "old_string", true, &old, &old_n));
    TRY(text_of(in, "new_string", true, &new, &new_n));
    in->req->flags = js_bool(in->input, "replace_all", false) ? INSIDE_ALL : 0;
    in->req->arg0 = (int64_t)old_n;
    TRY(buf_put(in->body, old, old_n));
    return buf_put(in->body, new, new_n);
}

static int make_search(const struct in *in, enum inside_op op)
{
    in->req->op = op;
    in->req->limit0 = OUTPUT_BYTES;
    TRY(path_of(in, "pattern", true));
    return path_of(in, "path", false);
}

static int make_glob(const struct in *in) { return make_search(in, INSIDE_GLOB); }
static int make_grep(const struct in *in) { return make_search(in, INSIDE_GREP); }

static const struct { const char *name; int (*make)(const struct in *in); } tools[] = {
    { "bash", make_bash }, { "read", make_read }, { "write", make_write }, { "edit", make_edit }, { "glob", make_glob }, { "grep", make_grep },
};

bool tool_known(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(tools); i++)
        if (str_eq(tools[i].name, name))
            return true;
    return false;
}

int tool_request(const char *name, const json_t *input, const struct tool_limits *l, struct inside_req *ret_req, struct buf *body, struct err *e)
{
    struct inside_req req = { .magic = INSIDE_MAGIC };
    struct in in = { .tool = name, .input = input, .l = l, .req = &req, .body = body, .e = e };
    if (!json_is_object(input))
        return err_set(e, RC_INVALID, "%s: the input must be an object", name);
    for (size_t i = 0; i < COUNT_OF(tools); i++) {
        if (!str_eq(tools[i].name, name))
            continue;
        TRY(tools[i].make(&in));
        if (!buf_ok(body))
            return err_set(e, RC_INVALID, "%s: the input is too large", name);
        req.body_bytes = buf_len(body);
        *ret_req = req;
        return RC_OK;
    }
    return err_set(e, RC_INVALID, "%s: no such tool", name);
}
