/* A member of a process group of corosync that is told on standard input what to measure, a line each:
 *
 *     lat SIZE COUNT      one message at a time; answers COUNT times from submission to own delivery, in us
 *     thr SIZE SECONDS    as many as corosync takes; answers "MESSAGES SECONDS", own deliveries
 *
 * It delivers whatever comes, and ends with its standard input. vsync.bench.corosync_load compiles and runs it.
 * Declares what it needs of libcpg, so that its headers need not be installed.
 */
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define OK 1
#define TRY_AGAIN 6
#define DISPATCH_ALL 2
#define AGREED 2

struct name { uint32_t length; char value[128]; };
struct callbacks {
    void (*deliver)(uint64_t, const struct name *, uint32_t, uint32_t, void *, size_t);
    void (*changed)(void);
};

int cpg_initialize(uint64_t *handle, struct callbacks *callbacks);
int cpg_join(uint64_t handle, const struct name *group);
int cpg_local_get(uint64_t handle, unsigned *node);
int cpg_fd_get(uint64_t handle, int *fd);
int cpg_dispatch(uint64_t handle, int how);
int cpg_mcast_joined(uint64_t handle, int guarantee, const struct iovec *parts, unsigned count);

static uint64_t handle;
static unsigned node;
static uint32_t pid;
static long own;

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void deliver(uint64_t h, const struct name *group, uint32_t from, uint32_t process, void *data, size_t size)
{
    (void)h, (void)group, (void)data, (void)size;
    if (from == node && process == pid)
        own++;
}

static void wait_and_dispatch(int ms)
{
    struct pollfd door;
    cpg_fd_get(handle, &door.fd);
    door.events = POLLIN;
    poll(&door, 1, ms);
    if (cpg_dispatch(handle, DISPATCH_ALL) != OK)
        exit(1);
}

static int submit(char *data, int size)
{
    struct iovec part = {data, size};
    int result = cpg_mcast_joined(handle, AGREED, &part, 1);
    if (result != OK && result != TRY_AGAIN)
        exit(1);
    return result == OK;
}

static void latency(char *data, int size, int count)
{
    for (int i = 0; i < count; i++) {
        long wanted = own + 1;
        double began = now_us();
        while (!submit(data, size))
            ;
        while (own < wanted)
            wait_and_dispatch(1000);
        printf("%.1f ", now_us() - began);
    }
    printf("\n");
}

static void throughput(char *data, int size, double seconds)
{
    double began = now_us(), end = began + seconds * 1e6;
    long before = own, sent = own;
    while (now_us() < end) {
        int some = 0;
        while (some < 64 && submit(data, size))
            some++;
        sent += some;
        if (cpg_dispatch(handle, DISPATCH_ALL) != OK)
            exit(1);
        if (some == 0)
            wait_and_dispatch(1);
    }
    double spent = now_us() - began;
    printf("%ld %.6f\n", own - before, spent / 1e6);
    while (own < sent)
        wait_and_dispatch(100);
}

int main(void)
{
    struct callbacks callbacks = {deliver, NULL};
    struct name group = {10, "vsync-load"};
    char line[128], what[8];
    int size;
    double much;

    pid = getpid();
    while (cpg_initialize(&handle, &callbacks) != OK || cpg_join(handle, &group) != OK)
        usleep(10000);
    cpg_local_get(handle, &node);
    setvbuf(stdin, NULL, _IONBF, 0);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct pollfd doors[2] = {{0, POLLIN, 0}, {0, POLLIN, 0}};
        cpg_fd_get(handle, &doors[1].fd);
        poll(doors, 2, -1);
        if (doors[1].revents && cpg_dispatch(handle, DISPATCH_ALL) != OK)
            return 1;
        if (!doors[0].revents)
            continue;
        if (!fgets(line, sizeof line, stdin) || sscanf(line, "%7s %d %lf", what, &size, &much) != 3 || size < 1)
            return 0;
        char *data = calloc(1, size);
        if (!data)
            return 1;
        if (!strcmp(what, "lat"))
            latency(data, size, (int)much);
        else
            throughput(data, size, much);
        free(data);
        fflush(stdout);
    }
}
