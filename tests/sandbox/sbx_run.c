/* sbx-run: one command in one sandbox, for looking around by hand and for shell tests.
 *   sbx-run [--as root|user] [--warm N] [--session ID] [--net host] [--memory MIB] [--disk MIB] [--pids N] [--ro PATH] [--put HOSTFILE=/workspace/name] COMMAND
 * Prints what the command printed; exit status is the command's, 125 when the sandbox failed. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "drive.h"

static void on_death(void *ctx, const char *why)
{
    (void)ctx;
    (void)fprintf(stderr, "sandbox died: %s\n", why);
}

static int put_host_file(struct drive *d, struct sbx *s, char *spec)
{
    char *eq = strchr(spec, '='), *data = NULL;
    size_t n = 0;
    struct err e = { 0 };
    if (!eq)
        return RC_INVALID;
    *eq = 0;
    if (fd_read_file(AT_FDCWD, spec, 32 * MIB, &data, &n, &e) < 0) {
        (void)fprintf(stderr, "%s\n", e.msg);
        return e.rc;
    }
    int rc = drive_put(d, s, eq + 1, data, n, 0755);
    free(data);
    return rc;
}

int main(int argc, char **argv)
{
    const char *as = "", *session = "sesn_run", *ro[8];
    char *put = NULL;
    int64_t warm = 0, memory = 0, disk = 0, pids = 0;
    size_t n_ro = 0;
    bool net = false;
    int i = 1;
    for (; i + 1 < argc && str_prefix(argv[i], "--"); i += 2) {
        const char *k = argv[i] + 2;
        char *v = argv[i + 1];
        if (str_eq(k, "as"))
            as = v;
        else if (str_eq(k, "session"))
            session = v;
        else if (str_eq(k, "net"))
            net = str_eq(v, "host");
        else if (str_eq(k, "put"))
            put = v;
        else if (str_eq(k, "ro") && n_ro < COUNT_OF(ro))
            ro[n_ro++] = v;
        else if (!((str_eq(k, "warm") && str_to_i64(v, 0, 64, &warm) == 0) || (str_eq(k, "memory") && str_to_i64(v, 1, 1 << 20, &memory) == 0) ||
                   (str_eq(k, "disk") && str_to_i64(v, 1, 1 << 20, &disk) == 0) || (str_eq(k, "pids") && str_to_i64(v, 1, 1 << 20, &pids) == 0)))
            return (void)fprintf(stderr, "unknown: %s %s\n", argv[i], v), 2;
    }
    if (i >= argc)
        return (void)fprintf(stderr, "usage: sbx-run [options] COMMAND\n"), 2;
    drive_become(as);
    struct drive d;
    drive_init(&d);
    struct err e = { 0 };
    struct sbx *s = NULL;
    d.policy.net = net ? SBX_NET_HOST : SBX_NET_NONE;
    d.policy.ro_paths = ro;
    d.policy.n_ro_paths = n_ro;
    if (memory)
        d.policy.limits.memory_bytes = (uint64_t)memory * MIB;
    if (disk)
        d.policy.limits.disk_bytes = (uint64_t)disk * MIB;
    if (pids)
        d.policy.limits.pids = (uint32_t)pids;
    int status = 125;
    if (drive_start(&d, (size_t)warm, NULL, &e) < 0 || drive_claim(&d, session, &s, &e) < 0) {
        (void)fprintf(stderr, "sandbox: %s\n", e.msg);
    } else if (sbx_on_death(s, on_death, NULL), !put || put_host_file(&d, s, put) == RC_OK) {
        struct drive_answer a;
        drive_bash(&d, s, argv[i], 60000, &a);
        if (a.rc == RC_OK)
            (void)fwrite(a.body, 1, a.n, stdout);
        else
            (void)fprintf(stderr, "call: %s\n", a.e.msg);
        status = a.rc == RC_OK ? a.h.exit_status & 0xff : 125;
        drive_answer_done(&a);
    }
    drive_stop(&d);
    return status;
}
