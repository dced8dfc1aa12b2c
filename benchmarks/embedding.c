/* What it costs a C program to answer through libmegrez, phase by phase; embedding.py compares that with megrez run.
 *
 * cc -O2 benchmarks/embedding.c -o embedding $(megrez capi --cflags --libs) -ldl
 * ./embedding BUNDLE THREADS REQUEST [LIBRARY]
 *
 * REQUEST: the JSON of megrez_generate, its prompt included. LIBRARY: libonnxruntime.so.*, loaded first, to see what it
 * costs alone. At the end come the ids and the text. */
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
    printf("%-28s %10.2f ms %10.2f ms of CPU %8.1f MiB\n", phase, now(CLOCK_MONOTONIC) - wall,
           now(CLOCK_PROCESS_CPUTIME_ID) - cpu, (double)(pages * sysconf(_SC_PAGESIZE)) / (1 << 20));
    wall = now(CLOCK_MONOTONIC);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
}

enum { MOST = 8192 };
static int32_t tokens[MOST];
static size_t count;

static int32_t take(const megrez_piece *piece, void *unused) {
    (void)unused;
    if (count == 0) told("first token");
    for (size_t at = 0; at < piece->token_count && count < MOST; at++) tokens[count++] = piece->tokens[at];
    return 0;
}

static int fail(void) {
    fprintf(stderr, "error: %s\n", megrez_last_error_message());
    return 1;
}

int main(int argc, char **argv) {
    char phase[64], *text;
    megrez_options *options;
    megrez_model *model;
    if (argc < 4) return 2;
    wall = now(CLOCK_MONOTONIC);
    told("a C program");
    if (argc > 4) {
        if (!dlopen(argv[4], RTLD_NOW)) return fprintf(stderr, "%s\n", dlerror()), 1;
        told("ONNX Runtime loaded");
    }
    if (megrez_options_create(&options) != MEGREZ_OK) return fail();
    told("Python and its packages");
    if (megrez_options_set(options, "slots", "1") || megrez_options_set(options, "threads", argv[2])) return fail();
    if (megrez_options_set(options, "speculate", "off")) return fail();
    if (megrez_open(argv[1], options, &model) != MEGREZ_OK) return fail();
    told("bundle opened");
    if (megrez_generate(model, NULL, argv[3], take, NULL, &text) != MEGREZ_OK) return fail();
    snprintf(phase, sizeof phase, "%d tokens after it", (int)count - 1);
    told(phase);
    megrez_close(model);
    told("closed");
    printf("ids:");
    for (size_t at = 0; at < count; at++) printf(" %d", (int)tokens[at]);
    printf("\n%s", text);
    megrez_free(text);
    return 0;
}
