/* A program that takes more than it may, run inside a sandbox. Says how far it came. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define STEP (4u << 20)
static char page[1 << 16];

static int hog(int mib, int flags)
{
    for (int done = 0; done < mib; done += 4) {
        char *p = mmap(NULL, STEP, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            return printf("refused at %d MiB\n", done), 3;
        memset(p, 1, STEP);
    }
    printf("took %d MiB\n", mib);
    fflush(stdout);
    sleep(4);
    return 0;
}

static int write_mib(int fd, int mib)
{
    for (long i = 0; i < (long)mib * 16; i++)
        if (write(fd, page, sizeof page) != (ssize_t)sizeof page)
            return printf("refused at %ld MiB: %s\n", i / 16, strerror(errno)), 3;
    printf("wrote %d MiB\n", mib);
    fflush(stdout);
    return 0;
}

static int fill(const char *dir, int mib)
{
    for (int i = 0; i < mib / 8; i++) {
        char path[200];
        snprintf(path, sizeof path, "%s/f%d", dir, i);
        int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
        if (fd < 0 || write_mib(fd, 8) != 0)
            return 3;
        close(fd);
    }
    sleep(8);
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int n = argc > 2 ? atoi(argv[2]) : 0, k = argc > 3 ? atoi(argv[3]) : 1;
    memset(page, 'x', sizeof page);
    if (strcmp(what, "hog") == 0)
        return hog(n, MAP_PRIVATE);
    if (strcmp(what, "shared") == 0)
        return hog(n, MAP_SHARED);
    if (strcmp(what, "hogs") == 0) {
        for (int i = 0; i < k; i++)
            if (fork() == 0)
                _exit(hog(n, MAP_PRIVATE));
        while (wait(NULL) > 0)
            ;
        return 0;
    }
    if (strcmp(what, "memfd") == 0) {
        int r = write_mib(memfd_create("x", 0), n);
        sleep(4);
        return r;
    }
    if (strcmp(what, "big") == 0) {
        signal(SIGXFSZ, SIG_IGN);
        int fd = open("/workspace/big", O_CREAT | O_WRONLY | O_TRUNC, 0600);
        if (ftruncate(fd, (off_t)n << 20) < 0)
            return printf("refused: %s\n", strerror(errno)), 3;
        return 0;
    }
    if (strcmp(what, "hidden") == 0) {
        int fd = open("/workspace/h", O_CREAT | O_WRONLY | O_TRUNC, 0600), fd2 = open("/workspace/h2", O_CREAT | O_WRONLY | O_TRUNC, 0600);
        unlink("/workspace/h");
        unlink("/workspace/h2");
        (void)write_mib(fd, n / 2);
        (void)write_mib(fd2, n / 2);
        sleep(8);
        return 0;
    }
    if (strcmp(what, "dirs") == 0) {        /* a tree that its owner cannot read, and a deep one */
        for (int i = 0; i < n; i++)
            if (mkdir("d", 0700) < 0 || chdir("d") < 0)
                break;
        int fd = open("f", O_CREAT | O_WRONLY, 0000);
        (void)fd;
        (void)chmod(".", 0000);
        return 0;
    }
    if (strcmp(what, "fill") == 0)
        return fill("/workspace", n);
    if (strcmp(what, "tmp") == 0)
        return fill(argc > 3 ? argv[3] : "/tmp", n);
    if (strcmp(what, "fork") == 0) {
        int c = 0;
        while (c < n) {
            pid_t p = fork();
            if (p < 0)
                break;
            if (p == 0) {
                pause();
                _exit(0);
            }
            c++;
        }
        printf("%d children\n", c);
        fflush(stdout);
        sleep(1);
        kill(0, SIGKILL);
    }
    return 2;
}
