/* `outwork completion bash|zsh`: prints a script for the shell. The words come from the commands' own --help, so that they cannot drift. */
#include <stdio.h>
#include <stdlib.h>

#include "base/str.h"
#include "cli/cmd.h"
#include "cli/commands.h"

static void print_words(void)
{
    for (size_t i = 0; i < n_commands; i++)
        printf("%s%s", i ? " " : "", commands[i].name);
}

static void print_case(const char *pattern, const char *words)
{
    printf("%s) COMPREPLY=($(compgen -W \"%s\" -- \"$cur\")) ;;\n", pattern, words);
}

/* What follows a command's name. Where no word fits, the shell offers files. */
static void print_verbs(void)
{
    for (size_t i = 0; i < n_commands; i++) {
        const struct command *c = &commands[i];
        if (!c->verbs)
            continue;
        char *noun = c->noun ? str_printf("        %s:%s", c->name, c->noun) : NULL, *own = str_printf("        %s:%s", c->name, c->name);
        if (noun)
            print_case(noun, c->noun_verbs);
        print_case(own, c->verbs);
        free(noun);
        free(own);
    }
    printf("        help:help) COMPREPLY=($(compgen -W \"");
    print_words();
    printf("\" -- \"$cur\")) ;;\n");
}

static void print_bash(void)
{
    printf("_outwork() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd=${COMP_WORDS[1]} verb=${COMP_WORDS[2]}\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
           "        COMPREPLY=($(compgen -W \"");
    print_words();
    printf("\" -- \"$cur\"))\n"
           "        return\n"
           "    fi\n"
           "    case \"$verb\" in -*) verb= ;; esac\n"
           "    case \"$cur\" in\n"
           "    -*) COMPREPLY=($(compgen -W \"$(outwork \"$cmd\" $verb --help 2>/dev/null | grep -oE -- '--[a-z][a-z-]*')\" -- \"$cur\")) ;;\n"
           "    *) case \"$prev\" in --*) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n"
           "       *) case \"$cmd:$prev\" in\n");
    print_verbs();
    printf("          esac ;;\n"
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
    bool help = argc > 1 && (str_eq(argv[argc - 1], "--help") || str_eq(argv[argc - 1], "-h"));
    fprintf(help ? stdout : stderr,
            "Usage: outwork completion bash|zsh\n\n"
            "Prints a completion script. To use it now:        source <(outwork completion bash)\n"
            "For all users:  outwork completion bash > /etc/bash_completion.d/outwork\n");
    return help ? 0 : 2;
}
