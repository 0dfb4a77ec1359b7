/* gateway/init.h - `outwork gateway init` and `outwork gateway renew` (tunnels.md 3.3). argv[0] is the verb; the results are exit statuses: 0 done, 1 failed,
 * 2 wrong usage, 3 the service refused the credential. */
#pragma once

int gateway_init_main(int argc, char **argv);
int gateway_renew_main(int argc, char **argv);
