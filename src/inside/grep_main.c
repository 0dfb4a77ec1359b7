/* inside/grep_main.c - "inside_grep <pattern> <shown path> <output bytes>": searches what descriptor 0 (a directory or a file) holds, in the order of
 * names, and prints to descriptor 1. A separate program, so that PID 1 holds no regular expression engine. */
#include "inside/dir.h"
#include "inside/grep.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define CPU_SECONDS 20
#define MEMORY_BYTES (1024ull * 1024 * 1024)
#define SMALL_BYTES (64u * 1024)        /* read in one go without asking for the size */
#define DIR_BYTES 32768

static struct grep g;
static char path[PATH_MAX];
static char *text;                      /* GREP_FILE_MAX + 1 bytes of address space */
static size_t entries;
static bool stopped;

static void limit(int what, rlim_t value)
{
    struct rlimit r;
    if (getrlimit(what, &r) == 0 && (r.rlim_max == RLIM_INFINITY || r.rlim_max > value)) {
        r.rlim_cur = r.rlim_max = value;
        (void)setrlimit(what, &r);
    }
}

static int finish(int code, const char *s, size_t n)
{
    while (n > 0) {
        ssize_t put = write(1, s, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            break;
        s += put;
        n -= (size_t)put;
    }
    return code;
}

static void search_file(int fd)
{
    size_t n = 0, want = SMALL_BYTES;
    for (;;) {
        ssize_t got = read(fd, text + n, want - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        n += (size_t)got;
        if (n == SMALL_BYTES) {
            struct stat st;
            if (memchr(text, 0, GREP_BINARY_BYTES) || fstat(fd, &st) < 0 || st.st_size > GREP_FILE_MAX)
                return;
            want = GREP_FILE_MAX + 1;
        } else if (n < SMALL_BYTES) {
            break;              /* a regular file gives less only at its end */
        }
        if (n == want)
            return;             /* it grew over the limit */
    }
    if (n == 0 || memchr(text, 0, n < GREP_BINARY_BYTES ? n : GREP_BINARY_BYTES))
        return;
    grep_text(&g, path, text, n);
}

struct name { char *s; unsigned char type; };

static int by_name(const void *a, const void *b)
{
    const struct name *x = a, *y = b;
    return strcmp(x->s, y->s);
}

static bool is_skipped(const char *name) { return strcmp(name, ".git") == 0 || strcmp(name, "node_modules") == 0; }

/* The names of a directory, sorted; one block with the texts behind the table. NULL when there are none. */
static struct name *read_names(int fd, size_t *ret_n)
{
    static char room[DIR_BYTES] __attribute__((aligned(8)));
    struct dir d = { .fd = fd, .buf = room, .cap = sizeof room };
    struct name *v = NULL;
    size_t n = 0, cap = 0;
    const struct dirent64 *e;
    while ((e = dir_next(&d))) {
        if (++entries > GREP_ENTRIES_MAX) {
            stopped = true;
            break;
        }
        if (e->d_type == DT_DIR ? is_skipped(e->d_name) : e->d_type != DT_REG && e->d_type != DT_UNKNOWN)
            continue;
        if (n == cap) {
            cap = cap ? 2 * cap : 64;
            v = reallocarray(v, cap, sizeof *v);
            if (!v)
                _exit(GREP_EXIT_ERROR);
        }
        v[n].s = strdup(e->d_name);
        if (!v[n].s)
            _exit(GREP_EXIT_ERROR);
        v[n++].type = e->d_type;
    }
    if (n)
        qsort(v, n, sizeof *v, by_name);
    *ret_n = n;
    return v;
}

static void search_dir(int fd, size_t path_n, int depth);

/* `name` in directory `fd`; `path` ends with it already. */
static void search_entry(int fd, const struct name *e, size_t path_n, int depth)
{
    int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    int sub = openat(fd, e->s, flags);
    struct stat st;
    if (sub < 0)
        return;
    unsigned char type = e->type;
    if (type == DT_UNKNOWN && fstat(sub, &st) == 0)
        type = S_ISREG(st.st_mode) ? DT_REG : S_ISDIR(st.st_mode) && !is_skipped(e->s) ? DT_DIR : DT_UNKNOWN;
    if (type == DT_REG)
        search_file(sub);
    else if (type == DT_DIR && depth < GREP_DEPTH_MAX)
        search_dir(sub, path_n, depth + 1);
    close(sub);
}

static void search_dir(int fd, size_t path_n, int depth)
{
    size_t n = 0;
    struct name *v = read_names(fd, &n);
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(v[i].s);
        if (!g.full && path_n + 1 + len < sizeof path) {
            size_t at = path_n;
            if (at == 0 || path[at - 1] != '/')
                path[at++] = '/';
            memcpy(path + at, v[i].s, len + 1);
            search_entry(fd, &v[i], at + len, depth);
            path[path_n] = 0;
        }
        free(v[i].s);
    }
    free(v);
}

static int finish_matches(size_t asked)
{
    char note[128];
    int n = 0;
    (void)finish(0, g.out, g.out_n);
    if (g.full && g.costly <= GREP_COSTLY_MAX)
        n = snprintf(note, sizeof note, "%s[output truncated at %zu bytes]", g.out_n ? "\n" : "", asked);
    else if (g.costly)
        n = snprintf(note, sizeof note, "%s[%s%zu lines passed over: the pattern needs too many steps on them]", g.out_n ? "\n" : "",
                     g.full ? "search given up: " : "", g.costly);
    else if (stopped)
        n = snprintf(note, sizeof note, "%s[stopped after %d entries]", g.out_n ? "\n" : "", GREP_ENTRIES_MAX);
    return finish(g.out_n || n ? GREP_EXIT_MATCH : GREP_EXIT_NONE, note, (size_t)n);
}

int main(int argc, char **argv)
{
    char why[256];
    struct stat st;
    limit(RLIMIT_CPU, CPU_SECONDS);
    limit(RLIMIT_AS, MEMORY_BYTES);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_FSIZE, 0);
    if (argc != 4 || fstat(0, &st) < 0 || strlen(argv[2]) >= sizeof path)
        return GREP_EXIT_ERROR;
    g.out_max = strtoul(argv[3], NULL, 10);
    g.out = malloc(g.out_max + 1);
    text = mmap(NULL, GREP_FILE_MAX + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!g.out || text == MAP_FAILED)
        return GREP_EXIT_ERROR;
    if (!grep_compile(&g, argv[1], why, sizeof why))
        return finish(GREP_EXIT_PATTERN, why, strlen(why));
    size_t n = strlen(argv[2]);
    memcpy(path, argv[2], n + 1);
    if (S_ISDIR(st.st_mode))
        search_dir(0, n == 1 && path[0] == '/' ? 0 : n, 1);
    else
        search_file(0);
    return finish_matches(g.out_max);
}
