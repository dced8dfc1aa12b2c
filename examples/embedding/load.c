/* Loads libmegrez when it runs, as Go's and Rust's services and plug-ins do: nothing is linked.
 *
 * load "$(megrez capi --library)" BUNDLE "Once upon a time" */
#include <dlfcn.h>
#include <megrez.h>
#include <stdio.h>
#include <string.h>

typedef uint32_t (*abi_version)(void);
typedef const char *(*last_error_message)(void);
typedef megrez_status (*open_model)(const char *, const megrez_options *, megrez_model **);
typedef megrez_status (*close_model)(megrez_model *);
typedef megrez_status (*generate)(megrez_model *, const char *, const char *, megrez_callback, void *, char **);
typedef void (*release)(void *);

/* ISO C has no conversion from void * to a function. */
static int find(void *library, const char *name, void *function) {
    void *found = dlsym(library, name);
    if (found == NULL) fprintf(stderr, "%s\n", dlerror());
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

int main(int argc, char **argv) {
    abi_version version;
    last_error_message message;
    open_model open_it;
    close_model close_it;
    generate generate_it;
    release release_it;
    megrez_model *model;
    char *text;
    void *library;
    if (argc != 4) {
        fprintf(stderr, "usage: %s LIBRARY BUNDLE PROMPT\n", argv[0]);
        return 2;
    }
    if ((library = dlopen(argv[1], RTLD_NOW)) == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    if (!find(library, "megrez_abi_version", &version) || !find(library, "megrez_last_error_message", &message) ||
        !find(library, "megrez_open", &open_it) || !find(library, "megrez_close", &close_it) ||
        !find(library, "megrez_generate", &generate_it) || !find(library, "megrez_free", &release_it))
        return 1;
    if (version() < MEGREZ_ABI_VERSION) {
        fprintf(stderr, "the library is older than the header\n");
        return 1;
    }
    if (open_it(argv[2], NULL, &model) != MEGREZ_OK ||
        generate_it(model, argv[3], "{\"max_tokens\": 32}", NULL, NULL, &text) != MEGREZ_OK) {
        fprintf(stderr, "error: %s\n", message());
        return 1;
    }
    puts(text);
    release_it(text);
    close_it(model);
    return 0;
}
