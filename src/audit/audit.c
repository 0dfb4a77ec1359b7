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
#define ZERO_HASH "0000000000000000000000000000000000000000000000000000000000000000"

struct audit {
    int      fd;
    uint64_t seq;                        /* of the next line */
    char     head[SHA256_HEX];           /* hash of the last line */
    bool     dirty;
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

int audit_open(const char *path, struct audit **ret, struct err *e)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_sys(e, RC_IO, errno, "open the audit log '%s'", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(e, RC_CONFLICT, "another process writes the audit log '%s'; give each worker a log of its own (--audit-log, --state-dir)", path);
    struct scan s;
    int rc = scan_file(fd, &s, e);
    if (rc < 0)
        return err_wrap(e, rc, "the audit log '%s' does not verify, so it is not continued (move it away to start a new one)", path);
    if (s.torn && ftruncate(fd, s.good) < 0)
        return err_sys(e, RC_IO, errno, "cut the torn last line off '%s'", path);
    struct audit *a = xcalloc(1, sizeof *a);
    a->seq = s.lines;
    memcpy(a->head, s.head, sizeof a->head);
    a->fd = TAKE_FD(fd);
    buf_init(&a->line, AUDIT_LINE_MAX);
    if (s.torn) {
        json_t *f = json_object();
        js_set_str(f, "what", "the last line was torn by a crash and was cut off");
        if ((rc = audit_add(a, "log.recovered", f, e)) < 0) {
            audit_close(a);
            return rc;
        }
    }
    *ret = a;
    return RC_OK;
}

int audit_add(struct audit *a, const char *kind, json_t *take_fields, struct err *e)
{
    json_t *j = json_object();
    js_set_int(j, "seq", (int64_t)a->seq);
    js_set_time(j, "time", clock_now_ms());
    js_set_str(j, "prev", a->head);
    js_set_str(j, "kind", kind);
    const char *key;
    json_t *value;
    json_object_foreach(take_fields, key, value)
        js_set(j, key, json_incref(value));
    json_decref(take_fields);
    buf_clear(&a->line);
    int rc = js_write(j, &a->line);
    json_decref(j);
    if (rc == RC_OK)
        rc = buf_putc(&a->line, '\n');
    if (rc < 0)
        return err_set(e, rc, "an audit record of kind %s is larger than %zu bytes", kind, (size_t)AUDIT_LINE_MAX);
    char head[SHA256_HEX];
    sha256_hex(buf_data(&a->line), buf_len(&a->line) - 1, head);
    TRY(fd_write_all(a->fd, buf_data(&a->line), buf_len(&a->line), e));
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
