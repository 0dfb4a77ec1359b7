/* The simulation's program. Usage: sim [--trace] [FIRST [COUNT]]: runs the seeds FIRST (default 1) and following (default: one). Each is a run of its own
 * on a fresh store; the first of several is run twice, and must be the same twice. Ends with status 1 at the first seed that breaks a rule. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "log/log.h"
#include "sim.h"

static char dir[PATH_MAX] = "/dev/shm/outwork-sim-XXXXXX", template_db[PATH_MAX + 16], db[PATH_MAX + 16];

static void die(const char *what, const char *why)
{
    (void)fprintf(stderr, "sim: %s: %s\n", what, why);
    exit(2);
}

static void forget_dir(void)
{
    struct err e;
    (void)!fd_remove_tree(AT_FDCWD, dir, &e);
}

/* A store in memory: a file on a file system that is memory, where there is one. */
static void make_dir(void)
{
    struct err e = { 0 };
    struct store *st = NULL;
    if (!mkdtemp(dir)) {
        (void)str_copy(dir, sizeof dir, "/tmp/outwork-sim-XXXXXX");
        if (!mkdtemp(dir))
            die(dir, strerror(errno));
    }
    (void)atexit(forget_dir);
    (void)snprintf(template_db, sizeof template_db, "%s/template.db", dir);
    (void)snprintf(db, sizeof db, "%s/sim.db", dir);
    if (store_open(template_db, true, &st, &e) < 0)
        die("store", e.msg);
    store_close(st);
}

static void copy_db(void)
{
    static char block[1 << 16];
    const char *const more[] = { "-wal", "-shm" };
    for (size_t i = 0; i < COUNT_OF(more); i++) {
        char path[PATH_MAX + 32];
        (void)snprintf(path, sizeof path, "%s%s", db, more[i]);
        (void)unlink(path);
    }
    AUTO_CLOSE int from = open(template_db, O_RDONLY | O_CLOEXEC), to = open(db, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (from < 0 || to < 0)
        die(db, strerror(errno));
    for (ssize_t n; (n = read(from, block, sizeof block)) != 0;)
        if (n < 0 || write(to, block, (size_t)n) != n)
            die(db, strerror(errno));
}

static uint64_t run(int64_t seed, bool trace)
{
    struct sim_conf c = { .seed = (uint64_t)seed, .trace = trace, .db = db };
    copy_db();
    return sim_run(&c);
}

int main(int argc, char **argv)
{
    bool trace = argc > 1 && str_eq(argv[1], "--trace");
    int64_t first = 1, count = 1;
    int at = 1 + trace;
    if ((argc > at && str_to_i64(argv[at], 0, INT64_MAX / 4, &first) < 0) || (argc > at + 1 && str_to_i64(argv[at + 1], 1, 1000000000, &count) < 0) || argc > at + 2) {
        (void)fprintf(stderr, "usage: sim [--trace] [FIRST [COUNT]]\n");
        return 2;
    }
    log_setup(trace ? LOG_INFO : LOG_LEVEL_MAX_, LOG_TEXT, "sim");
    make_dir();
    for (int64_t i = first; i < first + count; i++) {
        uint64_t hash = run(i, trace);
        if (i == first && count > 1 && run(i, false) != hash) {
            (void)fprintf(stderr, "seed %lld went two ways: something in it is left to chance\n", (long long)i);
            return 1;
        }
    }
    printf("%lld seeds from %lld: every rule held\n", (long long)count, (long long)first);
    return 0;
}
