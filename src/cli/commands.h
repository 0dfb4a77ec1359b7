/* cli/commands.h - the table of commands: main() dispatches by it, help and shell completion are made from it, and a test
 * holds the man page against it (tests/e2e/test_cli.py). */
#pragma once

#include <stddef.h>

enum command_group { COMMAND_ROLE, COMMAND_OPERATE };
struct command {
    const char *name;
    enum command_group group;
    int (*run)(int argc, char **argv);
    const char *summary;
    const char *verbs;           /* what may follow the name, with spaces between; NULL: only options */
    const char *noun, *noun_verbs;       /* one of them that is followed by a verb of its own, as `tunnel certificate add` */
};
extern const struct command commands[];
extern const size_t n_commands;
