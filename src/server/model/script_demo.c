/* script_demo.c - the built-in script: an agent that writes, builds, runs and checks a small C program, is refused a file
 * outside its workspace, goes on without it and sums up; and one that asks two MCP servers and writes down what they said. Every step looks at what the
 * tools really answered. */
#include "server/model/provider.h"

const char model_script_demo[] =
"{\"models\":[\"script-1\"],\"chunk_ms\":2,"
"\"default\":\"Nothing more is scripted for this message. Say \\\"demo\\\" to run the demonstration again.\","
"\"scenarios\":["
"{\"name\":\"tunnel\",\"when\":{\"user\":\"tunnel\"},\"turns\":["
"{\"text\":\"I ask the inventory how many there are.\",\"tool_use\":[{\"name\":\"mcp__inventory__stock\",\"input\":{\"item\":\"widget\"}}]},"
"[{\"when\":{\"result_error\":true},\"text\":\"The inventory did not answer: ${result}\"},"
" {\"text\":\"Enough for two. I reserve them in the ledger, and note the stock in the workspace.\",\"tool_use\":["
"{\"name\":\"mcp__ledger__reserve\",\"input\":{\"item\":\"widget\",\"count\":2}},"
"{\"name\":\"write\",\"input\":{\"file_path\":\"stock.txt\",\"content\":\"${result}\\n\"}}]}],"
"[{\"when\":{\"result_error\":true},\"text\":\"One of them failed: ${result}\"},"
" {\"text\":\"Both done. I read back what I noted.\",\"tool_use\":[{\"name\":\"read\",\"input\":{\"file_path\":\"stock.txt\"}}]}],"
"[{\"when\":{\"result\":\"7 in stock\"},\"text\":\"Done: two widgets are reserved, and the workspace holds what the inventory said.\"},"
" {\"text\":\"The note does not hold what the inventory said: ${result}\"}]"
"]},"
"{\"name\":\"demonstration\",\"turns\":["
/* 1: write the program */
"{\"thinking\":\"A small C program with a known answer shows whether files, compiler and shell work.\","
" \"text\":\"I will write a small C program, build it and check what it prints.\","
" \"tool_use\":[{\"name\":\"write\",\"input\":{\"file_path\":\"primes.c\",\"content\":"
"\"#include <stdio.h>\\n\\nint main(void)\\n{\\n    int n = 0;\\n    for (int i = 2; i < 100; i++) {\\n        int prime = 1;\\n"
"        for (int k = 2; k * k <= i; k++)\\n            if (i % k == 0)\\n                prime = 0;\\n        if (prime) {\\n"
"            printf(\\\"%d\\\\n\\\", i);\\n            n++;\\n        }\\n    }\\n    printf(\\\"count %d\\\\n\\\", n);\\n    return 0;\\n}\\n\"}}]},"
/* 2: build */
"[{\"when\":{\"result_error\":true},\"text\":\"The file could not be written, so I stop here. The tool said: ${result}\"},"
" {\"text\":\"Written. Now I compile it.\",\"tool_use\":[{\"name\":\"bash\",\"input\":{\"command\":\"cc -O2 -Wall -o primes primes.c && echo built\"}}]}],"
/* 3: run, and look at the source, in parallel */
"[{\"when\":{\"result_error\":true},\"text\":\"The build failed, so I stop here. The compiler said: ${result}\"},"
" {\"text\":\"It builds. I run it, keep its output, and list the sources at the same time.\",\"tool_use\":["
"{\"name\":\"bash\",\"input\":{\"command\":\"./primes | tee primes.txt | tail -n 1\"}},"
"{\"name\":\"glob\",\"input\":{\"pattern\":\"*.c\"}}]}],"
/* 4: check */
"[{\"when\":{\"result_error\":true},\"text\":\"The program did not run, so I stop here: ${result}\"},"
" {\"text\":\"There are 25 primes below 100; I check that the file says so.\",\"tool_use\":["
"{\"name\":\"grep\",\"input\":{\"pattern\":\"^count 25$\",\"path\":\"primes.txt\"}}]}],"
/* 5: something that the workspace does not contain */
"[{\"when\":{\"result\":\"count 25\"},\"text\":\"Correct. As a last step I try to read a file outside the workspace.\",\"tool_use\":["
"{\"name\":\"read\",\"input\":{\"file_path\":\"../../../../etc/shadow\"}}]},"
" {\"text\":\"The count is not what I expected: ${result}\"}],"
/* 6: the refusal is an answer */
"[{\"when\":{\"result_error\":true},\"text\":\"That was refused, as it should be. I record the outcome inside the workspace instead.\",\"tool_use\":["
"{\"name\":\"bash\",\"input\":{\"command\":\"printf 'primes below 100: 25\\\\nfile outside the workspace: refused\\\\n' > report.txt && cat report.txt\"}}]},"
" {\"text\":\"The file outside the workspace was readable, which should not be possible. I stop here.\"}],"
/* 7 */
"[{\"when\":{\"result_error\":true},\"text\":\"The report could not be written: ${result}\"},"
" {\"text\":\"Done. The program was written, compiled and run; its output was checked (25 primes below 100); reading outside the workspace "
"was refused and nothing depended on it. The report says:\\n\\n${result}\"}]"
"]}]}";
