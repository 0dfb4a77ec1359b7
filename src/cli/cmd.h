/* cli/cmd.h - the sub-commands of the one binary. Each takes the arguments from its own name on and returns the exit status:
 * 0 done, 1 failed, 2 wrong usage, 3 credential refused, 4 the sandbox policy cannot be enforced. */
#pragma once

int cmd_key(int argc, char **argv);
int cmd_environment_key(int argc, char **argv);
int cmd_edge_key(int argc, char **argv);
int cmd_tunnel(int argc, char **argv);
int cmd_environment(int argc, char **argv);
int cmd_vault(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_audit(int argc, char **argv);
int cmd_dev(int argc, char **argv);
int cmd_completion(int argc, char **argv);
