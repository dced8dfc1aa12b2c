/* What it costs a C program to answer through libmegrez, phase by phase.
 *
 * cc -O2 benchmarks/embedding.c -o embedding $(megrez capi --cflags --libs) -ldl
 * ./embedding BUNDLE TOKENS [LIBRARY]     LIBRARY: libonnxruntime.so.*, loaded first, to see what it costs alone */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <megrez.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static double wall, cpu;

static double now(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return (double)at.tv_sec * 1e3 + (double)at.tv_nsec / 1e6;
}

static void told(const char *phase) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1) exit(1);
    fclose(file);
    printf("%-28s %8.0f ms %8.0f ms of CPU %8.1f MiB\n", phase, now(CLOCK_MONOTONIC) - wall,
           now(CLOCK_PROCESS_CPUTIME_ID) - cpu, (double)(pages * sysconf(_SC_PAGESIZE)) / (1 << 20));
    wall = now(CLOCK_MONOTONIC);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
}

static int32_t first(const megrez_piece *piece, void *seen) {
    (void)piece;
    if (!(*(int *)seen)++) told("first token");
    return 0;
}

static int fail(void) {
    fprintf(stderr, "error: %s\n", megrez_last_error_message());
    return 1;
}

int main(int argc, char **argv) {
    char request[128];
    int seen = 0;
    megrez_options *options;
    megrez_model *model;
    if (argc < 3) return 2;
    wall = now(CLOCK_MONOTONIC);
    told("a C program");
    if (argc > 3) {
        if (!dlopen(argv[3], RTLD_NOW)) return fprintf(stderr, "%s\n", dlerror()), 1;
        told("ONNX Runtime loaded");
    }
    if (megrez_options_create(&options) != MEGREZ_OK) return fail();
    told("Python and its packages");
    if (megrez_options_set(options, "slots", "1") || megrez_options_set(options, "threads", "1")) return fail();
    if (megrez_open(argv[1], options, &model) != MEGREZ_OK) return fail();
    told("bundle opened");
    snprintf(request, sizeof request, "{\"max_tokens\": %d, \"ignore_eos\": true}", atoi(argv[2]));
    if (megrez_generate(model, "Once upon a time", request, first, &seen, NULL) != MEGREZ_OK) return fail();
    snprintf(request, sizeof request, "%d tokens after it", seen - 1);
    told(request);
    megrez_close(model);
    told("closed");
    return 0;
}
