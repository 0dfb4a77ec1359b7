/* worker/unpack.c - see unpack.h. Runs once and exits, so nothing here frees what the exit frees. */
#include "worker/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/str.h"

#define MEMORY_MAX (768 * MIB)           /* xz asks for its whole dictionary */
#define NOBODY 65534
#define BLOCK (64 * KIB)

/* libarchive by name, so that the worker itself does not carry it and its dozen libraries. */
#define ARCHIVE_FUNCTIONS(X) \
    X(archive_read_new) X(archive_read_support_filter_gzip) X(archive_read_support_filter_bzip2) X(archive_read_support_filter_xz) \
    X(archive_read_support_format_zip) X(archive_read_support_format_tar) X(archive_read_open_fd) X(archive_read_next_header) \
    X(archive_read_data) X(archive_error_string) X(archive_entry_pathname) X(archive_entry_filetype) X(archive_entry_perm) \
    X(archive_entry_hardlink) X(archive_read_free)
static struct {
#define X(f) __typeof__(f) *f;
    ARCHIVE_FUNCTIONS(X)
#undef X
} la;

bool unpack_name_ok(const char *name, size_t n)
{
    if (n == 0 || n > UNPACK_NAME_MAX || name[n - 1] == '/')
        return false;
    for (size_t i = 0, from = 0; i <= n; i++) {
        if (i < n && ((unsigned char)name[i] < ' ' || name[i] == 127))
            return false;
        if (i < n && name[i] != '/')
            continue;
        size_t len = i - from;
        if (len == 0 || (len == 1 && name[from] == '.') || (len == 2 && name[from] == '.' && name[from + 1] == '.'))
            return false;
        from = i + 1;
    }
    return true;
}

bool unpack_clean_name(char *name)
{
    if (name[0] == '/')
        return false;
    char *out = name;
    for (const char *p = name; *p;) {
        size_t n = strcspn(p, "/");
        if (n == 2 && p[0] == '.' && p[1] == '.')
            return false;
        if (n && !(n == 1 && p[0] == '.')) {
            if (out != name)
                *out++ = '/';
            memmove(out, p, n);
            out += n;
        }
        p += n;
        p += strspn(p, "/");
    }
    *out = 0;
    return true;
}

uint32_t unpack_mode(uint32_t mode)
{
    return mode & 0111 ? 0755 : 0644;
}

static void put(const void *p, size_t n)
{
    struct err e;
    if (n && fd_write_all(STDOUT_FILENO, p, n, &e) < 0)
        _exit(1);                        /* the worker has gone away or does not want more */
}

static void record(enum unpack_kind kind, uint32_t mode, const char *name, uint64_t size)
{
    struct unpack_record r = { UNPACK_MAGIC, kind, mode, (uint32_t)strlen(name), size };
    put(&r, sizeof r);
    put(name, r.name_n);
}

static _Noreturn void fail(const char *what, const char *why)
{
    char text[UNPACK_NAME_MAX];
    (void)snprintf(text, sizeof text, "%s: %.400s", what, why ? why : "no reason given");
    record(UNPACK_ERROR, 0, text, 0);
    _exit(1);
}

static void limit(int what, uint64_t max)
{
    struct rlimit l = { max, max };
    if (setrlimit((__rlimit_resource_t)what, &l) < 0)
        fail("cannot limit the unpacker", strerror(errno));
}

static void load(void)
{
    void *so = dlopen("libarchive.so.13", RTLD_NOW | RTLD_LOCAL);
    if (!so)
        fail("skills need libarchive (package libarchive13)", dlerror());
#define X(f) if (!(la.f = (__typeof__(f) *)dlsym(so, #f))) fail("libarchive lacks " #f, NULL);
    ARCHIVE_FUNCTIONS(X)
#undef X
}

/* After the library is there: no privileges, no new files, no processes, bounded memory and time. */
static void confine(void)
{
#ifndef __SANITIZE_ADDRESS__             /* its shadow memory is larger than any limit */
    limit(RLIMIT_AS, MEMORY_MAX);
#endif
    limit(RLIMIT_CPU, UNPACK_SECONDS);
    limit(RLIMIT_FSIZE, 0);              /* the output is a pipe */
    limit(RLIMIT_NOFILE, 8);
    limit(RLIMIT_CORE, 0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        fail("cannot give up privileges", strerror(errno));
    if (geteuid() == 0 && (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0))
        fail("cannot become an ordinary user", strerror(errno));
    limit(RLIMIT_NPROC, 0);
}

static struct archive *begin(void)
{
    struct archive *a = la.archive_read_new();
    if (!a || lseek(STDIN_FILENO, 0, SEEK_SET) < 0)
        fail("open the archive", "no memory, or no file");
    (void)la.archive_read_support_filter_gzip(a);
    (void)la.archive_read_support_filter_bzip2(a);
    (void)la.archive_read_support_filter_xz(a);
    (void)la.archive_read_support_format_zip(a);
    (void)la.archive_read_support_format_tar(a);
    if (la.archive_read_open_fd(a, STDIN_FILENO, BLOCK) != ARCHIVE_OK)
        fail("open the archive", la.archive_error_string(a));
    return a;
}

/* The next regular file with a clean name of its own; false at the end. */
static bool next_file(struct archive *a, struct archive_entry **ret, char name[UNPACK_NAME_MAX + 1], size_t *members)
{
    for (;;) {
        int rc = la.archive_read_next_header(a, ret);
        if (rc == ARCHIVE_EOF)
            return false;
        if (rc != ARCHIVE_OK && rc != ARCHIVE_WARN)
            fail("read the archive", la.archive_error_string(a));
        if (++*members > UNPACK_MEMBERS_MAX)
            fail("read the archive", "more than 10000 members");
        const char *n = la.archive_entry_pathname(*ret);
        if (!n || !str_copy(name, UNPACK_NAME_MAX + 1, n))
            fail("read the archive", "a member has no name or too long a one");
        if (!unpack_clean_name(name))
            fail("refused a member with an absolute or climbing name", name);
        if (la.archive_entry_filetype(*ret) != AE_IFREG || la.archive_entry_hardlink(*ret))
            continue;                    /* directories come with their files; links and devices are left out */
        if (!unpack_name_ok(name, strlen(name)))
            fail("refused a member's name", name);
        return true;
    }
}

/* The one directory that holds everything, with its slash, or "". */
static void find_top(char top[UNPACK_NAME_MAX + 1])
{
    struct archive *a = begin();
    struct archive_entry *en;
    char name[UNPACK_NAME_MAX + 1];
    size_t members = 0;
    bool first = true;
    top[0] = 0;
    while (next_file(a, &en, name, &members)) {
        char *slash = strchr(name, '/');
        if (slash)
            slash[1] = 0;
        if (!slash || (!first && strcmp(top, name) != 0)) {
            top[0] = 0;
            break;
        }
        if (first)
            (void)str_copy(top, UNPACK_NAME_MAX + 1, name);
        first = false;
    }
    (void)la.archive_read_free(a);
}

/* A member's size in the archive may be missing or wrong, so the whole file is read before its record is written. */
static size_t read_file(struct archive *a, char *mem)
{
    size_t n = 0;
    for (;;) {
        ssize_t got = la.archive_read_data(a, mem + n, UNPACK_FILE_MAX + 1 - n);
        if (got < 0)
            fail("read the archive", la.archive_error_string(a));
        if (got == 0)
            return n;
        n += (size_t)got;
        if (n > UNPACK_FILE_MAX)
            fail("read the archive", "a file is over 48 MiB");
    }
}

int unpack_main(void)
{
    char top[UNPACK_NAME_MAX + 1], name[UNPACK_NAME_MAX + 1];
    load();
    confine();
    find_top(top);
    char *mem = malloc(UNPACK_FILE_MAX + 1);
    if (!mem)
        fail("read the archive", "no memory");
    struct archive *a = begin();
    struct archive_entry *en;
    size_t members = 0;
    uint64_t total = 0;
    while (next_file(a, &en, name, &members)) {
        size_t n = read_file(a, mem);
        total += n;
        if (total > UNPACK_TOTAL_MAX)
            fail("read the archive", "over 1 GiB unpacked");
        size_t skip = str_prefix(name, top) ? strlen(top) : 0;
        record(UNPACK_FILE, unpack_mode(la.archive_entry_perm(en)), name + skip, n);
        put(mem, n);
    }
    record(UNPACK_END, 0, "", 0);
    return 0;
}
