/* `outwork completion bash|zsh`: prints a script for the shell. The words come from the commands' own --help, so that they cannot drift. */
#include <stdio.h>

#include "base/str.h"
#include "cli/cmd.h"
#include "cli/commands.h"

static void print_words(void)
{
    for (size_t i = 0; i < n_commands; i++)
        printf("%s%s", i ? " " : "", commands[i].name);
}

static void print_bash(void)
{
    printf("_outwork() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd=${COMP_WORDS[1]}\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
           "        COMPREPLY=($(compgen -W \"");
    print_words();
    printf("\" -- \"$cur\"))\n"
           "        return\n"
           "    fi\n"
           "    case \"$cur\" in\n"
           "    -*) COMPREPLY=($(compgen -W \"$(outwork \"$cmd\" --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]*')\" -- \"$cur\")) ;;\n"
           "    *) case \"$prev\" in --*) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n"
           "       *) case \"$cmd\" in\n"
           "          key|environment-key|edge-key) COMPREPLY=($(compgen -W 'create list revoke' -- \"$cur\")) ;;\n"
           "          tunnel) if [ \"$prev\" = certificate ]; then COMPREPLY=($(compgen -W 'add list archive' -f -- \"$cur\"));\n"
           "              else COMPREPLY=($(compgen -W 'create list get archive reveal-token rotate-token connectors certificate' -f -- \"$cur\")); fi ;;\n"
           "          audit) COMPREPLY=($(compgen -W 'verify head' -f -- \"$cur\")) ;;\n"
           "          completion) COMPREPLY=($(compgen -W 'bash zsh' -- \"$cur\")) ;;\n"
           "          worker) COMPREPLY=($(compgen -W 'run' -- \"$cur\")) ;;\n"
           "          esac ;;\n"
           "       esac ;;\n"
           "    esac\n"
           "}\n"
           "complete -o default -F _outwork outwork\n");
}

int cmd_completion(int argc, char **argv)
{
    if (argc == 2 && str_eq(argv[1], "bash")) {
        print_bash();
        return 0;
    }
    if (argc == 2 && str_eq(argv[1], "zsh")) {
        printf("autoload -U +X bashcompinit && bashcompinit\n");
        print_bash();
        return 0;
    }
    bool help = argc == 2 && (str_eq(argv[1], "--help") || str_eq(argv[1], "-h"));
    fprintf(help ? stdout : stderr,
            "Usage: outwork completion bash|zsh\n\n"
            "Prints a completion script. To use it now:        source <(outwork completion bash)\n"
            "For all users:  outwork completion bash > /etc/bash_completion.d/outwork\n");
    return help ? 0 : 2;
}
