/* A host that watches what the library does to it: loads it with dlopen, and checks after each step. Not an example.
 *
 * probe LIBRARY BUNDLE STEP..., where each STEP names a function below. Prints what failed, and "ok" at the end. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <locale.h>
#include <megrez.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(holds)                                                                                                   \
    do {                                                                                                               \
        if (!(holds)) printf("line %d: %s; last error: %s\n", __LINE__, #holds, last_error_message()), exit(1);        \
    } while (0)
#define LONG_REQUEST "{\"max_tokens\": 900, \"ignore_eos\": true}"

int __cxa_atexit(void (*destructor)(void *), void *object, void *image);

static __typeof__(&megrez_last_error_message) last_error_message;
static __typeof__(&megrez_open) open_model;
static __typeof__(&megrez_close) close_model;
static __typeof__(&megrez_tokenize) tokenize;
static __typeof__(&megrez_generate) generate;
static __typeof__(&megrez_submit) submit;
static __typeof__(&megrez_poll) poll_request;
static __typeof__(&megrez_free) release;
static void *library;
static const char *bundle;
static volatile sig_atomic_t interrupts;

static bool counts_destructors;
static int foreign_destructors;

/* Every destructor of a static object goes through here on its way to the C library, and every atexit. */
int __cxa_atexit(void (*destructor)(void *), void *object, void *image) {
    static int (*next)(void (*)(void *), void *, void *);
    Dl_info of;
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "__cxa_atexit");
    if (counts_destructors && dladdr(image, &of) && !strstr(of.dli_fname, "libmegrez")) foreign_destructors++;
    return next(destructor, object, image);
}

static void on_interrupt(int number) { interrupts += number == SIGINT; }

static void load(const char *path) {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) printf("%s\n", dlerror()), exit(1);
    *(void **)&last_error_message = dlsym(library, "megrez_last_error_message");
    *(void **)&open_model = dlsym(library, "megrez_open");
    *(void **)&close_model = dlsym(library, "megrez_close");
    *(void **)&tokenize = dlsym(library, "megrez_tokenize");
    *(void **)&generate = dlsym(library, "megrez_generate");
    *(void **)&submit = dlsym(library, "megrez_submit");
    *(void **)&poll_request = dlsym(library, "megrez_poll");
    *(void **)&release = dlsym(library, "megrez_free");
}

static void answer(megrez_model *model) {
    char *text;
    CHECK(generate(model, "hello", "{\"max_tokens\": 5}", NULL, NULL, &text) == MEGREZ_OK);
    release(text);
}

/* Signals, locale, environment, streams and the working directory are as they were. */
static void leaves_the_host_alone(megrez_model *opened) {
    struct sigaction before[NSIG], after;
    extern char **environ;
    char *variables[1024], locale[256], folder[4096], later[4096];
    size_t count = 0;
    int flags[3];
    megrez_model *model;
    (void)opened;
    signal(SIGINT, on_interrupt);
    for (int at = 1; at < NSIG; at++) sigaction(at, NULL, &before[at]);
    strcpy(locale, setlocale(LC_ALL, NULL));
    for (; environ[count] && count < 1024; count++) variables[count] = strdup(environ[count]);
    for (int at = 0; at < 3; at++) flags[at] = fcntl(at, F_GETFL);
    CHECK(getcwd(folder, sizeof folder));
    CHECK(open_model(bundle, NULL, &model) == MEGREZ_OK);
    answer(model);
    CHECK(close_model(model) == MEGREZ_OK);
    for (int at = 1; at < NSIG; at++) {
        if (sigaction(at, NULL, &after) != 0) continue; /* those of the C library itself */
        CHECK(before[at].sa_handler == after.sa_handler && before[at].sa_flags == after.sa_flags);
    }
    CHECK(strcmp(locale, setlocale(LC_ALL, NULL)) == 0);
    for (size_t at = 0; at < count; at++) CHECK(environ[at] && strcmp(environ[at], variables[at]) == 0);
    /* The one variable that docs/embedding.md names. */
    if (environ[count] && strcmp(environ[count], "ORT_DISABLE_TELEMETRY=1") == 0) count++;
    CHECK(!environ[count]);
    for (int at = 0; at < 3; at++) CHECK(flags[at] == fcntl(at, F_GETFL));
    CHECK(getcwd(later, sizeof later) && strcmp(folder, later) == 0);
}

static void *interrupt(void *unused) {
    usleep(30000);
    kill(getpid(), SIGINT);
    return unused;
}

/* The host's handler runs while the library waits, and the answer is whole. */
static void keeps_sigint(megrez_model *model) {
    pthread_t thread;
    char *text;
    signal(SIGINT, on_interrupt);
    pthread_create(&thread, NULL, interrupt, NULL);
    CHECK(generate(model, "hello", "{\"max_tokens\": 300, \"ignore_eos\": true}", NULL, NULL, &text) == MEGREZ_OK);
    pthread_join(thread, NULL);
    CHECK(interrupts == 1);
    release(text);
}

/* A child gets an error, ends as ever, and the parent goes on. */
static void refuses_a_forked_child(megrez_model *model) {
    int status;
    answer(model);
    fflush(stdout);
    if (fork() == 0) {
        int32_t *tokens;
        size_t count;
        megrez_model *another;
        CHECK(tokenize(model, "hello", &tokens, &count) == MEGREZ_ERROR_FORKED);
        CHECK(open_model(bundle, NULL, &another) == MEGREZ_ERROR_FORKED);
        CHECK(strstr(last_error_message(), "forked"));
        exit(7);
    }
    CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    answer(model);
}

static void survives_dlclose(megrez_model *model) {
    answer(model);
    CHECK(dlclose(library) == 0);
    answer(model);
}

/* The engine runs, and another thread waits for it. */
static void *wait_for_all(void *handle) {
    megrez_piece *piece;
    while (poll_request(handle, -1, &piece) == MEGREZ_OK) release(piece);
    return NULL;
}

static void exits_without_close(megrez_model *model) {
    megrez_request *handle;
    megrez_piece *piece;
    pthread_t thread;
    CHECK(submit(model, "hello", LONG_REQUEST, &handle) == MEGREZ_OK);
    CHECK(poll_request(handle, -1, &piece) == MEGREZ_OK);
    pthread_create(&thread, NULL, wait_for_all, handle);
}

/* The engine is before, in or after its first step: MEGREZ_PROBE_US says how many microseconds after the submission. */
static void exits_before_a_piece_is_taken(megrez_model *model) {
    megrez_request *handle;
    const char *delay = getenv("MEGREZ_PROBE_US");
    CHECK(submit(model, "hello", LONG_REQUEST, &handle) == MEGREZ_OK);
    usleep(delay ? (useconds_t)atoi(delay) : 0);
}

/* Destructors run at exit in reverse: those of objects that an engine makes as it runs would come before it is stopped. */
static void registers_destructors_only_as_it_opens(megrez_model *model) {
    foreign_destructors = 0;
    counts_destructors = true;
    answer(model);
    counts_destructors = false;
    CHECK(foreign_destructors == 0);
}

static int32_t leave(const megrez_piece *piece, void *unused) {
    (void)piece;
    (void)unused;
    printf("ok\n");
    exit(0);
}

static void exits_within_a_callback(megrez_model *model) {
    generate(model, "hello", LONG_REQUEST, leave, NULL, NULL);
    CHECK(!"exit");
}

static void *open_and_close(void *unused) {
    megrez_model *model;
    CHECK(open_model(bundle, NULL, &model) == MEGREZ_OK);
    answer(model);
    CHECK(close_model(model) == MEGREZ_OK);
    return unused;
}

/* The first calls of the process come at once. */
static void starts_in_many_threads(megrez_model *unused) {
    pthread_t threads[8];
    for (int at = 0; at < 8; at++) pthread_create(&threads[at], NULL, open_and_close, unused);
    for (int at = 0; at < 8; at++) pthread_join(threads[at], NULL);
}

/* Prints the error, one line. */
static void fails_to_open(megrez_model *unused) {
    megrez_model *model;
    for (int at = 0; at < 2; at++) CHECK(open_model(bundle, NULL, &model) == MEGREZ_ERROR_PYTHON && !model && !unused);
    printf("%s\n", last_error_message());
}

typedef struct {
    const char *name;
    void (*run)(megrez_model *model);
    int opens;
} step;

static void run_step(const char *name, megrez_model **model) {
    static const step steps[] = {
        {"leaves_the_host_alone", leaves_the_host_alone, 0},
        {"keeps_sigint", keeps_sigint, 1},
        {"refuses_a_forked_child", refuses_a_forked_child, 1},
        {"survives_dlclose", survives_dlclose, 1},
        {"exits_without_close", exits_without_close, 1},
        {"exits_before_a_piece_is_taken", exits_before_a_piece_is_taken, 1},
        {"registers_destructors_only_as_it_opens", registers_destructors_only_as_it_opens, 1},
        {"exits_within_a_callback", exits_within_a_callback, 1},
        {"starts_in_many_threads", starts_in_many_threads, 0},
        {"fails_to_open", fails_to_open, 0},
    };
    for (size_t at = 0; at < sizeof steps / sizeof *steps; at++) {
        if (strcmp(name, steps[at].name) != 0) continue;
        if (steps[at].opens && !*model) CHECK(open_model(bundle, NULL, model) == MEGREZ_OK);
        steps[at].run(*model);
        return;
    }
    exit(2);
}

int main(int argc, char **argv) {
    megrez_model *model = NULL;
    if (argc < 4) return 2;
    load(argv[1]);
    bundle = argv[2];
    for (int at = 3; at < argc; at++) run_step(argv[at], &model);
    printf("ok\n");
    return 0;
}
