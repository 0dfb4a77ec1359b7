/* inside/walk.c - glob: the walk over a directory tree, breadth first. */
#include "inside/dir.h"
#include "inside/glob.h"
#include "inside/init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RESULTS_MAX 200
#define ENTRIES_MAX 50000
#define DEPTH_MAX 40
#define DIR_BYTES 32768

struct todo { struct todo *next; char *path; int depth; uint64_t at[]; };   /* a directory to read; path "" is the start */
struct hit { int64_t sec; uint32_t nsec; char *path; };

struct walk {
    const struct glob *g;
    int base;
    struct todo *head, **tail;
    struct hit *hits;
    size_t n_hits, cap_hits, entries;
    bool stopped, failed;
};

static int open_below(int base, const char *rel, int flags, uint64_t resolve)
{
    struct open_how how = { .flags = (uint64_t)(flags | O_CLOEXEC), .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | resolve };
    return (int)syscall(SYS_openat2, base, *rel ? rel : ".", &how, sizeof how);
}

static char *joined(const char *dir, const char *name)
{
    size_t d = strlen(dir), n = strlen(name);
    char *out = malloc(d + n + 2);
    if (!out)
        return NULL;
    memcpy(out, dir, d);
    if (d > 0)
        out[d++] = '/';
    memcpy(out + d, name, n + 1);
    return out;
}

static void add_todo(struct walk *w, char *path, int depth, const struct glob_state *s)
{
    size_t n = w->g->n_alts * sizeof s->at[0];
    struct todo *t = path ? malloc(sizeof *t + n) : NULL;
    if (!t) {
        free(path);
        w->failed = true;
        return;
    }
    *t = (struct todo){ .path = path, .depth = depth };
    memcpy(t->at, s->at, n);
    *w->tail = t;
    w->tail = &t->next;
}

/* A match counts when it is a regular file, or a link that leads to one below the start. */
static void add_hit(struct walk *w, int dirfd, const char *dir, const char *name)
{
    struct stat st;
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return;
    char *path = joined(dir, name);
    if (path && S_ISLNK(st.st_mode)) {
        int fd = open_below(w->base, path, O_PATH, 0);
        if (fd < 0 || fstat(fd, &st) < 0)
            st.st_mode = 0;
        if (fd >= 0)
            close(fd);
    }
    if (path && !S_ISREG(st.st_mode)) {
        free(path);
        return;
    }
    if (path && w->n_hits == w->cap_hits) {
        size_t cap = w->cap_hits ? 2 * w->cap_hits : 256;
        struct hit *hits = reallocarray(w->hits, cap, sizeof *hits);
        if (!hits) {
            free(path);
            path = NULL;
        } else {
            w->hits = hits;
            w->cap_hits = cap;
        }
    }
    if (!path) {
        w->failed = true;
        return;
    }
    w->hits[w->n_hits++] = (struct hit){ .sec = st.st_mtim.tv_sec, .nsec = (uint32_t)st.st_mtim.tv_nsec, .path = path };
}

static void read_dir(struct walk *w, const struct todo *t)
{
    static char room[DIR_BYTES] __attribute__((aligned(8)));
    struct glob_state from, next;
    const struct dirent64 *e;
    int fd = open_below(w->base, t->path, O_RDONLY | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    if (fd < 0)
        return;                 /* not readable, or gone meanwhile */
    memcpy(from.at, t->at, w->g->n_alts * sizeof from.at[0]);
    struct dir d = { .fd = fd, .buf = room, .cap = sizeof room };
    while (!w->failed && (e = dir_next(&d))) {
        if (++w->entries > ENTRIES_MAX) {
            w->stopped = true;
            break;
        }
        bool alive = false, match = glob_step(w->g, &from, e->d_name, strlen(e->d_name), &next, &alive);
        struct stat st;
        bool is_dir = e->d_type == DT_DIR;
        if (e->d_type == DT_UNKNOWN && (match || alive))
            is_dir = fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
        if (match && !is_dir)
            add_hit(w, fd, t->path, e->d_name);
        if (alive && is_dir && t->depth < DEPTH_MAX)
            add_todo(w, joined(t->path, e->d_name), t->depth + 1, &next);
    }
    close(fd);
}

static int newest_first(const void *x, const void *y)
{
    const struct hit *a = x, *b = y;
    if (a->sec != b->sec)
        return a->sec < b->sec ? 1 : -1;
    if (a->nsec != b->nsec)
        return a->nsec < b->nsec ? 1 : -1;
    return strcmp(a->path, b->path);
}

static void put_hit(struct answer *a, const char *base, size_t base_n, const char *path, bool later)
{
    size_t n = strlen(path);
    char *to = answer_room(a, later + base_n + 1 + n);
    if (!to)
        return;
    if (later)
        *to++ = '\n';
    memcpy(to, base, base_n);
    to += base_n;
    *to++ = '/';
    memcpy(to, path, n);
    a->n += later + base_n + 1 + n;
}

static void put_hits(struct walk *w, const char *base, struct answer *a)
{
    if (w->n_hits)
        qsort(w->hits, w->n_hits, sizeof *w->hits, newest_first);
    size_t base_n = base[1] ? strlen(base) : 0;
    for (size_t i = 0; i < w->n_hits && i < RESULTS_MAX; i++)
        put_hit(a, base, base_n, w->hits[i].path, i > 0);
    if (w->n_hits == 0)
        answer_puts(a, "no matches");
    if (w->n_hits > RESULTS_MAX)
        answer_printf(a, "\n[the newest %d of %zu matches]", RESULTS_MAX, w->n_hits);
    if (w->stopped)
        answer_printf(a, "\n[stopped after %d entries]", ENTRIES_MAX);
    if (w->stopped || w->n_hits > RESULTS_MAX)
        a->flags |= INSIDE_TRUNCATED;
}

void tool_glob(struct request *r, struct answer *a)
{
    static struct glob g;
    char base[PATH_MAX];
    struct glob_state s;
    const char *pattern = request_string(r), *path = request_string(r);
    const char *why = glob_compile(&g, pattern);
    if (why) {
        answer_error(a, 0, "glob: invalid pattern \"%s\": %s", pattern, why);
        return;
    }
    struct walk w = { .g = &g, .tail = &w.head };
    w.base = path_open(*path ? path : ".", O_PATH | O_DIRECTORY, base);
    if (w.base < 0) {
        path_error(a, "glob", path, -w.base);
        return;
    }
    glob_start(&g, &s);
    add_todo(&w, joined("", ""), 1, &s);
    for (struct todo *t; (t = w.head);) {
        if (!w.stopped && !w.failed)
            read_dir(&w, t);
        w.head = t->next;
        if (!w.head)
            w.tail = &w.head;
        free(t->path);
        free(t);
    }
    close(w.base);
    if (w.failed)
        answer_error(a, 0, "glob: out of memory");
    else
        put_hits(&w, base, a);
    for (size_t i = 0; i < w.n_hits; i++)
        free(w.hits[i].path);
    free(w.hits);
}
