/* One prompt, one answer:  single BUNDLE "Question?" ['{"temperature": 0.7, "seed": 1}'] */
#include <megrez.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* [{"role": "user", "content": question}] */
static char *conversation(const char *question) {
    static const char before[] = "[{\"role\": \"user\", \"content\": ", after[] = "}]";
    char *quoted, *messages;
    if (megrez_json_quote(question, &quoted) != MEGREZ_OK) return NULL;
    messages = malloc(sizeof before + strlen(quoted) + sizeof after);
    if (messages) sprintf(messages, "%s%s%s", before, quoted, after);
    megrez_free(quoted);
    return messages;
}

static int fail(void) {
    fprintf(stderr, "error %d: %s\n", (int)megrez_last_error(), megrez_last_error_message());
    return 1;
}

int main(int argc, char **argv) {
    megrez_options *options;
    megrez_model *model;
    char *messages, *text;
    if (argc < 3) {
        fprintf(stderr, "usage: %s BUNDLE QUESTION [REQUEST]\n", argv[0]);
        return 2;
    }
    if (megrez_options_create(&options) != MEGREZ_OK) return fail();
    if (megrez_options_set(options, "slots", "1") != MEGREZ_OK) return fail();
    if (megrez_open(argv[1], options, &model) != MEGREZ_OK) return fail();
    megrez_options_free(options);
    if ((messages = conversation(argv[2])) == NULL) return fail();
    if (megrez_chat(model, messages, argc > 3 ? argv[3] : NULL, NULL, NULL, &text) != MEGREZ_OK) return fail();
    puts(text);
    megrez_free(text);
    free(messages);
    megrez_close(model);
    return 0;
}
