/* Text as it comes, and the token ids behind it:  stream BUNDLE "Once upon a time" [REQUEST] */
#include <megrez.h>
#include <stdio.h>

enum { MOST = 4096 };

typedef struct {
    int32_t tokens[MOST];
    size_t count;
} answer;

/* Called in the thread that called megrez_generate; another value than 0 would stop it. */
static int32_t show(const megrez_piece *piece, void *user_data) {
    answer *found = user_data;
    size_t at;
    fwrite(piece->text, 1, piece->text_size, stdout);
    fflush(stdout);
    for (at = 0; at < piece->token_count && found->count < MOST; at++) found->tokens[found->count++] = piece->tokens[at];
    return ferror(stdout);
}

static int fail(void) {
    fprintf(stderr, "error %d: %s\n", (int)megrez_last_error(), megrez_last_error_message());
    return 1;
}

int main(int argc, char **argv) {
    static answer found;
    megrez_model *model;
    size_t at;
    if (argc < 3) {
        fprintf(stderr, "usage: %s BUNDLE PROMPT [REQUEST]\n", argv[0]);
        return 2;
    }
    if (megrez_open(argv[1], NULL, &model) != MEGREZ_OK) return fail();
    if (megrez_generate(model, argv[2], argc > 3 ? argv[3] : NULL, show, &found, NULL) < 0) return fail();
    printf("\n");
    for (at = 0; at < found.count; at++) printf("%d ", (int)found.tokens[at]);
    printf("\n");
    megrez_close(model);
    return 0;
}
