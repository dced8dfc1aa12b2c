/* Many threads, requests and cancels at random, in several rounds of opening and closing. Not an example.
 *
 * stress BUNDLE THREADS REQUESTS ROUNDS prints the resident memory in KiB after each round, and fails on the first
 * answer that differs from the one that was given alone. Also built with sanitizers: see the Makefile. */
#define _GNU_SOURCE
#include <megrez.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(holds)                                                                                                   \
    do {                                                                                                               \
        if (!(holds)) printf("line %d: %s; last error: %s\n", __LINE__, #holds, megrez_last_error_message()), _exit(1);  \
    } while (0)

enum { PROMPTS = 5, MOST_THREADS = 64 };
static const char *const prompts[PROMPTS] = {"hello", "Once upon a time", "The sea is", "One, two,", "A long walk home"};
static const char request[] = "{\"max_tokens\": 24, \"temperature\": 0.8, \"seed\": 5}";

typedef struct {
    megrez_model *model;
    int requests;
    unsigned seed;
} client;

typedef struct {
    char text[4096];
    size_t size;
    int left; /* pieces until it stops */
} collected;

static char *alone[PROMPTS];

static int32_t collect(const megrez_piece *piece, void *data) {
    collected *found = data;
    CHECK(found->size + piece->text_size < sizeof found->text);
    memcpy(found->text + found->size, piece->text, piece->text_size);
    found->size += piece->text_size;
    return --found->left == 0;
}

/* Takes pieces up to `left` and cancels. */
static void poll_some(megrez_request *handle, collected *found) {
    megrez_piece *piece;
    while (megrez_poll(handle, -1, &piece) == MEGREZ_OK) {
        int32_t stop = collect(piece, found);
        megrez_free(piece);
        if (stop) CHECK(megrez_cancel(handle) == MEGREZ_OK);
    }
}

static void *run(void *data) {
    client *own = data;
    for (int at = 0; at < own->requests; at++) {
        int prompt = rand_r(&own->seed) % PROMPTS, way = rand_r(&own->seed) % 5;
        collected found = {.left = way < 2 ? -1 : rand_r(&own->seed) % 12 + 1};
        megrez_request *handle;
        megrez_stats stats = {.size = sizeof stats};
        if (way % 2 == 0) {
            megrez_status status = megrez_generate(own->model, prompts[prompt], request, collect, &found, NULL);
            CHECK(status == MEGREZ_OK || (way >= 2 && status == MEGREZ_CANCELLED));
        } else {
            CHECK(megrez_submit(own->model, prompts[prompt], request, &handle) == MEGREZ_OK);
            if (way == 3 && found.left > 8) found.left = 0; /* freed before it says anything */
            else poll_some(handle, &found);
            CHECK(megrez_request_free(handle) == MEGREZ_OK);
            CHECK(megrez_poll(handle, 0, &(megrez_piece *){NULL}) == MEGREZ_ERROR_HANDLE);
        }
        CHECK(megrez_model_stats(own->model, &stats) == MEGREZ_OK);
        /* Whole where nothing stopped it, and else its beginning. */
        if (way < 2) CHECK(found.size == strlen(alone[prompt]));
        CHECK(found.size <= strlen(alone[prompt]) && memcmp(found.text, alone[prompt], found.size) == 0);
    }
    return NULL;
}

static long resident_kib(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    CHECK(file && fscanf(file, "%*d %ld", &pages) == 1);
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void round_of(const char *bundle, int threads, int requests, unsigned seed) {
    megrez_options *options;
    megrez_model *model;
    pthread_t started[MOST_THREADS];
    client clients[MOST_THREADS];
    megrez_stats stats = {.size = sizeof stats};
    CHECK(megrez_options_create(&options) == MEGREZ_OK && megrez_options_set(options, "slots", "4") == MEGREZ_OK);
    CHECK(megrez_options_set(options, "context", "128") == MEGREZ_OK);
    CHECK(megrez_open(bundle, options, &model) == MEGREZ_OK && megrez_options_free(options) == MEGREZ_OK);
    for (int at = 0; at < PROMPTS; at++) {
        char *text;
        CHECK(megrez_generate(model, prompts[at], request, NULL, NULL, &text) == MEGREZ_OK);
        if (alone[at]) CHECK(strcmp(text, alone[at]) == 0);
        megrez_free(alone[at]);
        alone[at] = text;
    }
    for (int at = 0; at < threads; at++) {
        clients[at] = (client){model, requests, seed + (unsigned)at};
        CHECK(pthread_create(&started[at], NULL, run, &clients[at]) == 0);
    }
    for (int at = 0; at < threads; at++) pthread_join(started[at], NULL);
    do CHECK(megrez_model_stats(model, &stats) == MEGREZ_OK);
    while (stats.running || stats.waiting); /* cancels take effect with the next step */
    CHECK(stats.requests == PROMPTS + threads * requests);
    CHECK(megrez_close(model) == MEGREZ_OK);
}

int main(int argc, char **argv) {
    if (argc != 5 || atoi(argv[2]) > MOST_THREADS) return 2;
    for (int at = 0; at < atoi(argv[4]); at++) {
        round_of(argv[1], atoi(argv[2]), atoi(argv[3]), (unsigned)at * 1000);
        printf("%ld\n", resident_kib());
        fflush(stdout);
    }
    for (int at = 0; at < PROMPTS; at++) megrez_free(alone[at]);
    return 0;
}
