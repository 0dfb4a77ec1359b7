/* audit.c - the hash-chained log: one line an event, each naming the hash of the line before it. */
#include "audit/audit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/str.h"
#include "crypto/crypto.h"

#define AUDIT_LINE_MAX (256 * KIB)       /* longest line that is written or read */
#define TAIL_MAX (3 * (off_t)(AUDIT_LINE_MAX + 1))      /* holds two whole lines and a torn one */
#define ZERO_HASH "0000000000000000000000000000000000000000000000000000000000000000"

struct audit {
    int      fd;
    uint64_t seq;                        /* of the next line */
    off_t    size;                       /* of what is whole */
    char     head[SHA256_HEX];           /* hash of the last line */
    bool     dirty, broken;
    struct buf line;
};

/* Checks one line (without newline) against what came before and moves `seq` and `head` on. */
static int line_check(const char *p, size_t n, uint64_t *seq, char head[SHA256_HEX], struct err *e)
{
    AUTO_JS j = NULL;
    struct err pe = { 0 };
    if (js_parse(p, n, AUDIT_LINE_MAX, &j, &pe) < 0 || !json_is_object(j))
        return err_set(e, RC_INVALID, "line %llu is no record: %s", (unsigned long long)*seq + 1, pe.rc ? pe.msg : "not an object");
    const char *prev = js_str(j, "prev");
    if (js_int(j, "seq", -1) != (int64_t)*seq)
        return err_set(e, RC_INVALID, "line %llu: sequence number %lld where %llu belongs: lines were dropped, added or moved", (unsigned long long)*seq + 1,
                       (long long)js_int(j, "seq", -1), (unsigned long long)*seq);
    int64_t time;
    if (!js_str(j, "kind") || rfc3339_parse(js_str(j, "time"), &time) < 0)
        return err_set(e, RC_INVALID, "line %llu has no kind or no time", (unsigned long long)*seq + 1);
    if (!str_eq(prev, head))
        return err_set(e, RC_INVALID, "line %llu does not continue the line before it: one of the two was altered", (unsigned long long)*seq + 1);
    sha256_hex(p, n, head);
    (*seq)++;
    return RC_OK;
}

struct scan { uint64_t lines; char head[SHA256_HEX]; off_t good; bool torn; };

/* Reads the whole log. A last line without its newline is `torn` and not counted; `good` is where the whole lines end. */
static int scan_file(int fd, struct scan *s, struct err *e)
{
    char chunk[16 * 1024];
    struct buf b;
    int rc = RC_OK;
    off_t at = 0;
    ssize_t n = 0;
    *s = (struct scan){ .lines = 0 };
    memcpy(s->head, ZERO_HASH, sizeof s->head);
    buf_init(&b, AUDIT_LINE_MAX + sizeof chunk);
    while (rc == RC_OK && (n = pread(fd, chunk, sizeof chunk, at)) > 0) {
        char *nl;
        at += n;
        if ((rc = buf_put(&b, chunk, (size_t)n)) < 0)
            rc = err_set(e, RC_INVALID, "line %llu is longer than any that is written", (unsigned long long)s->lines + 1);
        while (rc == RC_OK && buf_len(&b) && (nl = memchr(buf_data(&b), '\n', buf_len(&b)))) {
            size_t len = (size_t)(nl - buf_data(&b));
            rc = line_check(buf_data(&b), len, &s->lines, s->head, e);
            if (rc == RC_OK)
                s->good += (off_t)len + 1;
            buf_consume(&b, len + 1);
        }
    }
    if (n < 0)
        rc = err_sys(e, RC_IO, errno, "read the audit log");
    s->torn = buf_len(&b) > 0;
    buf_done(&b);
    return rc;
}

/* The end of a log, found without reading all of it: the last whole line and, if there is one, the line before it. */
struct tail { char *mem; size_t prev, prev_n, last, last_n, torn_n; off_t whole; bool empty; };

static int read_tail(int fd, struct tail *t, struct err *e)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(e, RC_IO, errno, "read the audit log");
    off_t from = st.st_size > TAIL_MAX ? st.st_size - TAIL_MAX : 0;
    size_t n = (size_t)(st.st_size - from), got = 0;
    *t = (struct tail){ .mem = xcalloc(1, n + 1) };
    while (got < n) {
        ssize_t k = pread(fd, t->mem + got, n - got, from + (off_t)got);
        if (k <= 0 && !(k < 0 && errno == EINTR))
            return err_sys(e, RC_IO, k < 0 ? errno : EIO, "read the audit log");
        got += k > 0 ? (size_t)k : 0;
    }
    const char *end = n ? memrchr(t->mem, '\n', n) : NULL;
    t->torn_n = end ? n - (size_t)(end + 1 - t->mem) : n;
    t->whole = st.st_size - (off_t)t->torn_n;
    if (t->torn_n > AUDIT_LINE_MAX)
        return err_set(e, RC_INVALID, "it ends with more than any line that is written");
    t->empty = t->whole == 0;
    if (t->empty)
        return RC_OK;
    const char *before = memrchr(t->mem, '\n', (size_t)(end - t->mem));
    if (!before && from)
        return err_set(e, RC_INVALID, "its last line is longer than any that is written");
    t->last = before ? (size_t)(before + 1 - t->mem) : 0;
    t->last_n = (size_t)(end - t->mem) - t->last;
    if (!before)
        return RC_OK;
    const char *start = memrchr(t->mem, '\n', (size_t)(before - t->mem));
    if (!start && from)
        return err_set(e, RC_INVALID, "its last line but one is longer than any that is written");
    t->prev = start ? (size_t)(start + 1 - t->mem) : 0;
    t->prev_n = (size_t)(before - t->mem) - t->prev;
    return t->prev_n ? RC_OK : err_set(e, RC_INVALID, "its last line but one is empty");
}

/* Where to go on: the last line must be a record that continues the line before it. */
static int resume(const struct tail *t, uint64_t *ret_seq, char head[SHA256_HEX], struct err *e)
{
    AUTO_JS j = NULL;
    int64_t seq = -1;
    memcpy(head, ZERO_HASH, SHA256_HEX);
    if (t->prev_n)
        sha256_hex(t->mem + t->prev, t->prev_n, head);
    if (js_parse(t->mem + t->last, t->last_n, AUDIT_LINE_MAX, &j, e) == RC_OK)
        seq = js_int(j, "seq", -1);
    if (seq < 0 || (seq == 0) != (t->prev_n == 0))
        return err_set(e, RC_INVALID, "its last line is no record of this log");
    *ret_seq = (uint64_t)seq;
    return line_check(t->mem + t->last, t->last_n, ret_seq, head, e);
}

static int check_file(int fd, struct err *e)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(e, RC_IO, errno, "stat");
    if (!S_ISREG(st.st_mode))
        return err_set(e, RC_INVALID, "it is no regular file");
    if (st.st_mode & 0022)
        return err_set(e, RC_DENIED, "other users may write it (mode %04o)", (unsigned)(st.st_mode & 07777));
    return flock(fd, LOCK_EX | LOCK_NB) == 0 ? RC_OK
           : errno == EWOULDBLOCK ? err_set(e, RC_CONFLICT, "another process writes it; give each worker a log of its own (--audit-log, --state-dir)")
                                  : err_sys(e, RC_IO, errno, "lock");
}

/* A new file's name must be as lasting as its lines. */
static void sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    AUTO_FREE char *parent = !slash ? str_dup(".") : str_ndup(path, slash == path ? 1 : (size_t)(slash - path));
    AUTO_CLOSE int dir = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0)
        (void)fsync(dir);
}

static int go_on(struct audit *a, struct err *e)
{
    struct tail t = { 0 };
    int rc = read_tail(a->fd, &t, e);
    if (rc == RC_OK && !t.empty)
        rc = resume(&t, &a->seq, a->head, e);
    a->size = t.whole;
    size_t torn = t.torn_n;
    free(t.mem);
    if (rc < 0)
        return err_wrap(e, rc, "it is not continued (move it away to start a new one)");
    if (torn == 0)
        return RC_OK;
    if (ftruncate(a->fd, a->size) < 0)
        return err_sys(e, RC_IO, errno, "cut the torn last line off");
    json_t *f = json_object();
    js_set_str(f, "what", "the last line was torn by a crash and was cut off");
    js_set_int(f, "bytes", (int64_t)torn);
    return audit_add(a, "log.recovered", f, e);
}

int audit_open(const char *path, struct audit **ret, struct err *e)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "open the audit log '%s'", path);
    int rc = check_file(fd, e);
    if (rc < 0)
        return err_wrap(e, rc, "the audit log '%s'", path);
    struct audit *a = xcalloc(1, sizeof *a);
    a->fd = TAKE_FD(fd);
    memcpy(a->head, ZERO_HASH, sizeof a->head);
    buf_init(&a->line, AUDIT_LINE_MAX);
    rc = go_on(a, e);
    if (rc < 0) {
        audit_close(a);
        return err_wrap(e, rc, "the audit log '%s'", path);
    }
    if (a->size == 0)
        sync_directory(path);
    *ret = a;
    return RC_OK;
}

/* The line in a->line, without its newline. The chain's own fields cannot be set by the caller. */
static int make_line(struct audit *a, const char *kind, json_t *fields, struct err *e)
{
    static const char *const own[] = { "seq", "time", "prev", "kind" };
    for (size_t i = 0; i < COUNT_OF(own); i++)
        if (json_object_get(fields, own[i]))
            return err_set(e, RC_INVALID, "an audit record of kind %s brings a field '%s' of its own", kind, own[i]);
    AUTO_JS j = json_object();
    js_set_int(j, "seq", (int64_t)a->seq);
    js_set_time(j, "time", clock_now_ms());
    js_set_str(j, "prev", a->head);
    js_set_str(j, "kind", kind);
    const char *key;
    json_t *value;
    json_object_foreach(fields, key, value)
        js_set(j, key, json_incref(value));
    buf_clear(&a->line);
    int rc = js_write(j, &a->line);
    if (rc == RC_OK && buf_room(&a->line) == 0)
        rc = RC_LIMIT;
    return rc < 0 ? err_set(e, rc, "an audit record of kind %s is larger than %zu bytes", kind, (size_t)AUDIT_LINE_MAX) : RC_OK;
}

int audit_add(struct audit *a, const char *kind, json_t *take_fields, struct err *e)
{
    AUTO_JS fields = take_fields;
    char head[SHA256_HEX];
    if (a->broken)
        return err_set(e, RC_IO, "the audit log has an unfinished line that could not be taken back");
    TRY(make_line(a, kind, fields, e));
    sha256_hex(buf_data(&a->line), buf_len(&a->line), head);
    (void)buf_putc(&a->line, '\n');
    int rc = fd_write_all(a->fd, buf_data(&a->line), buf_len(&a->line), e);
    if (rc < 0) {                        /* a full disk: take the piece back, or nothing after it could be verified */
        a->broken = ftruncate(a->fd, a->size) < 0;
        return err_wrap(e, rc, "audit log");
    }
    a->size += (off_t)buf_len(&a->line);
    memcpy(a->head, head, sizeof head);
    a->seq++;
    a->dirty = true;
    return RC_OK;
}

int audit_sync(struct audit *a, struct err *e)
{
    if (a->dirty && fdatasync(a->fd) < 0)
        return err_sys(e, RC_IO, errno, "sync the audit log");
    a->dirty = false;
    return RC_OK;
}

void audit_close(struct audit *a)
{
    if (!a)
        return;
    int rc = audit_sync(a, NULL);      /* nothing more can be done about a failure here */
    (void)rc;
    close(a->fd);
    buf_done(&a->line);
    free(a);
}

int audit_verify(const char *path, const char *head, uint64_t *ret_lines, char ret_head[65], struct err *e)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "open");
    struct scan s;
    TRY(scan_file(fd, &s, e));
    if (s.torn)
        return err_set(e, RC_INVALID, "line %llu is torn: it has no end", (unsigned long long)s.lines + 1);
    if (head && !str_eq(head, s.head))
        return err_set(e, RC_INVALID, "the log ends with %s after %llu lines, not with the line that was named: lines were dropped from or added to its end", s.head,
                       (unsigned long long)s.lines);
    *ret_lines = s.lines;
    memcpy(ret_head, s.head, SHA256_HEX);
    return RC_OK;
}
