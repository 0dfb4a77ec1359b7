/* `outwork audit verify|head FILE`: proves that nothing in an audit log was altered or dropped. */
#include <inttypes.h>
#include <stdio.h>

#include "audit/audit.h"
#include "base/str.h"
#include "cli/cmd.h"
#include "conf/conf.h"

struct settings { char *head; };

static const struct conf_key keys[] = {
    { .name = "head", .type = CONF_STR, .field = offsetof(struct settings, head), .arg = "HEX",
      .help = "Expect the log to end with the line of this hash (as `outwork audit head` printed it earlier on another machine)." },
};
static const struct conf_program program = {
    .command = "outwork audit", .summary = "Verify a hash-chained audit log.", .usage = "verify|head [options] FILE",
    .epilog = "Examples:\n"
              "  outwork audit verify /var/lib/outwork/worker/audit.jsonl\n"
              "      reads every line, checks its sequence number and the hash of the line before it\n"
              "  outwork audit head audit.jsonl\n"
              "      prints the hash of the last line: keep it elsewhere, then\n"
              "  outwork audit verify --head HEX audit.jsonl\n"
              "      proves as well that nothing was cut off the end since (the log must end there)\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

int cmd_audit(int argc, char **argv)
{
    struct settings s = { 0 };
    struct conf_list pos = { 0 };
    struct err e = { 0 };
    bool help = false;
    int rc = conf_load(&program, argc, argv, &s, &pos, &help, &e), status = 0;
    bool head_only = pos.n == 2 && str_eq(pos.item[0], "head");
    if (rc < 0) {
        fprintf(stderr, "outwork audit: %s\n", e.msg);
        status = 2;
    } else if (help) {
        status = 0;
    } else if (pos.n != 2 || (!head_only && !str_eq(pos.item[0], "verify"))) {
        fprintf(stderr, "outwork audit: expected `verify FILE` or `head FILE`; see `outwork audit --help`\n");
        status = 2;
    } else {
        uint64_t lines = 0;
        char head[65] = "";
        rc = audit_verify(pos.item[1], s.head, &lines, head, &e);
        if (rc < 0) {
            fprintf(stderr, "outwork audit: %s: %s\n", pos.item[1], e.msg);
            status = 1;
        } else if (head_only) {
            printf("%s\n", head);
        } else {
            printf("ok: %" PRIu64 " lines, chain unbroken, head %s\n", lines, head);
        }
    }
    free(pos.item);
    conf_free(&program, &s);
    return status;
}
