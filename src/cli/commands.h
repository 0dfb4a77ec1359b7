/* cli/commands.h - the table of commands: main() dispatches by it, help and shell completion are made from it. */
#pragma once

#include <stddef.h>

enum command_group { COMMAND_ROLE, COMMAND_OPERATE };
struct command {
    const char *name;
    enum command_group group;
    int (*run)(int argc, char **argv);
    const char *summary;
};
extern const struct command commands[];
extern const size_t n_commands;
