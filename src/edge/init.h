/* edge/init.h - `outwork edge init`: makes the keys of the outer connections. */
#pragma once

int edge_init_main(int argc, char **argv);       /* argv[0] is "init"; returns the exit status */
