#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/secret.h"
#include "base/str.h"

#define SECRET_FILE_MAX (64 * KIB)

struct secret { size_t n; char text[]; };

void wipe(void *p, size_t n) { explicit_bzero(p, n); }

struct secret *secret_new(const char *bytes, size_t n)
{
    struct secret *s = xcalloc(1, sizeof *s + n + 1);
    s->n = n;
    if (n)
        memcpy(s->text, bytes, n);
    return s;
}

struct secret *secret_from_str(char *s)
{
    if (!s)
        return NULL;
    size_t n = strlen(s);
    struct secret *x = secret_new(s, n);
    wipe(s, n);
    return x;
}

void secret_free(struct secret *s)
{
    if (!s)
        return;
    wipe(s, sizeof *s + s->n);
    free(s);
}

struct secret *secret_dup(const struct secret *s) { return s ? secret_new(s->text, s->n) : NULL; }
const char *secret_text(const struct secret *s) { return s ? s->text : NULL; }
size_t secret_len(const struct secret *s) { return s ? s->n : 0; }

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static int read_file(const char *path, mode_t refused, struct secret **ret, struct err *e)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    struct stat st;
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? RC_NOT_FOUND : errno == EACCES ? RC_DENIED : RC_IO, errno, "open secret file %s", path);
    if (fstat(fd, &st) < 0)
        return err_sys(e, RC_IO, errno, "secret file %s", path);
    if (S_ISDIR(st.st_mode))
        return err_set(e, RC_INVALID, "secret file %s is a directory", path);
    if (st.st_mode & refused)
        return err_set(e, RC_DENIED, "secret file %s may be %s by every user (mode %04o); run: chmod %s %s", path, refused & 0004 ? "read or written" : "written",
                       (unsigned)(st.st_mode & 07777), refused & 0004 ? "o-rwx" : "o-w", path);
    char *text = xcalloc(1, SECRET_FILE_MAX + 1);
    size_t n = 0;
    int rc = RC_OK;
    while (n <= SECRET_FILE_MAX) {
        ssize_t got = read(fd, text + n, SECRET_FILE_MAX + 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            rc = err_sys(e, RC_IO, errno, "read secret file %s", path);
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    size_t from = 0, end = n;
    while (from < end && is_space(text[from]))
        from++;
    while (end > from && is_space(text[end - 1]))
        end--;
    if (rc == RC_OK && n > SECRET_FILE_MAX)
        rc = err_set(e, RC_TOO_LARGE, "secret file %s is larger than %zu bytes", path, SECRET_FILE_MAX);
    else if (rc == RC_OK && from == end)
        rc = err_set(e, RC_INVALID, "secret file %s is empty", path);
    else if (rc == RC_OK && memchr(text + from, '\0', end - from))
        rc = err_set(e, RC_INVALID, "secret file %s holds a NUL byte", path);
    if (rc == RC_OK)
        *ret = secret_new(text + from, end - from);
    wipe(text, SECRET_FILE_MAX + 1);
    free(text);
    return rc;
}

int secret_read_file(const char *path, struct secret **ret, struct err *e) { return read_file(path, 0006, ret, e); }
int secret_read_projected(const char *path, struct secret **ret, struct err *e) { return read_file(path, 0002, ret, e); }

struct secret *secret_take_env(const char *name)
{
    size_t k = strlen(name);
    struct secret *s = NULL;
    bool found = false;
    for (char **p = environ; p && *p; p++) {
        if (strncmp(*p, name, k) != 0 || (*p)[k] != '=')
            continue;
        char *value = *p + k + 1;
        size_t n = strlen(value);
        if (!s && n)
            s = secret_new(value, n);
        wipe(value, n);
        found = true;
    }
    if (found)
        (void)unsetenv(name);
    return s;
}
