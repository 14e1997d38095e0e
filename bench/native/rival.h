/* What the rivals in C and C++ have in common: the command line, the handlers of messages, and the
 * line that says that the server is ready. The counterpart of rivals/common. */

#ifndef RIVAL_H
#define RIVAL_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The read buffer that each rival uses, and the length of every listen queue. */
enum { RIVAL_BUFFER = 8192, RIVAL_BACKLOG = 4096 };

enum rival_service { RIVAL_ECHO, RIVAL_BLOCK, RIVAL_WORK };

struct rival_options {
    char host[64];
    unsigned short port;
    int threads;
    enum rival_service service;
    size_t size;
};

static inline void rival_usage(const char *problem) {
    fprintf(stderr, "%s\nusage: --tcp ADDR --threads N --service echo|block|work [--size BYTES] | "
                    "--describe\n", problem);
    exit(2);
}

/* Reads the command line; answers --describe with the version. Addresses are IPv4. */
static inline struct rival_options rival_parse(int argc, char **argv, const char *version) {
    struct rival_options options = {"127.0.0.1", 0, 1, RIVAL_ECHO, 64};
    for (int i = 1; i < argc; i += 2) {
        if (strcmp(argv[i], "--describe") == 0) {
            printf("{\"version\":\"%s\",\"services\":[\"echo\",\"block\",\"work\"]}\n", version);
            exit(0);
        }
        if (i + 1 == argc) rival_usage("an option needs a value");
        const char *value = argv[i + 1];
        char *end = NULL;
        errno = 0;
        if (strcmp(argv[i], "--tcp") == 0) {
            const char *colon = strrchr(value, ':');
            size_t length = colon ? (size_t)(colon - value) : 0;
            if (length == 0 || length >= sizeof options.host) rival_usage("--tcp: not an address");
            memcpy(options.host, value, length);
            options.host[length] = 0;
            long port = strtol(colon + 1, &end, 10);
            if (*end || port < 0 || port > 65535) rival_usage("--tcp: not an address");
            options.port = (unsigned short)port;
        } else if (strcmp(argv[i], "--threads") == 0) {
            long threads = strtol(value, &end, 10);
            if (*end || threads < 1 || threads > 1024) rival_usage("--threads: not a number");
            options.threads = (int)threads;
        } else if (strcmp(argv[i], "--size") == 0) {
            long size = strtol(value, &end, 10);
            if (*end || size < 1 || errno) rival_usage("--size: not a number");
            options.size = (size_t)size;
        } else if (strcmp(argv[i], "--service") == 0 && strcmp(value, "echo") == 0) {
            options.service = RIVAL_ECHO;
        } else if (strcmp(argv[i], "--service") == 0 && strcmp(value, "block") == 0) {
            options.service = RIVAL_BLOCK;
        } else if (strcmp(argv[i], "--service") == 0 && strcmp(value, "work") == 0) {
            options.service = RIVAL_WORK;
        } else {
            rival_usage("unknown option");
        }
    }
    return options;
}

/* Tells whoever started this server that it takes connections. */
static inline void rival_ready(const char *host, unsigned short port) {
    printf("listening tcp %s:%u\n", host, port);
    fflush(stdout);
}

static inline int64_t rival_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* What is done with a message before it is sent back. */
static inline void rival_handle(enum rival_service service, const unsigned char *message,
                                size_t size) {
    if (service == RIVAL_BLOCK && message[0] != 0) {
        struct timespec time = {0, message[0] * 1000000L};
        while (nanosleep(&time, &time) == -1 && errno == EINTR) {
        }
    }
    if (service == RIVAL_WORK) {
        int64_t time = (message[0] + (size > 1 ? message[1] * 256 : 0)) * 1000;
        if (time > 0) {
            int64_t end = rival_clock(CLOCK_THREAD_CPUTIME_ID) + time;
            while (rival_clock(CLOCK_THREAD_CPUTIME_ID) < end) {
            }
        }
    }
}

#endif
