/* An answer that a JSON schema accepts, by submitting and polling:  schema BUNDLE */
#include <megrez.h>
#include <stdio.h>

static const char messages[] = "[{\"role\": \"user\", \"content\": \"Invent a person.\"}]";
static const char request[] =
    "{\"max_tokens\": 200, \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"person\","
    " \"schema\": {\"type\": \"object\", \"additionalProperties\": false, \"required\": [\"name\", \"age\"],"
    " \"properties\": {\"name\": {\"type\": \"string\", \"maxLength\": 12}, \"age\": {\"type\": \"integer\","
    " \"minimum\": 0, \"maximum\": 120}}}}}}";

static int fail(void) {
    fprintf(stderr, "error %d: %s\n", (int)megrez_last_error(), megrez_last_error_message());
    return 1;
}

int main(int argc, char **argv) {
    megrez_model *model;
    megrez_request *handle;
    megrez_piece *piece;
    megrez_usage usage = {sizeof usage, 0, 0, 0};
    megrez_status status;
    if (argc != 2) {
        fprintf(stderr, "usage: %s BUNDLE\n", argv[0]);
        return 2;
    }
    if (megrez_open(argv[1], NULL, &model) != MEGREZ_OK) return fail();
    if (megrez_submit_chat(model, messages, request, &handle) != MEGREZ_OK) return fail();
    while ((status = megrez_poll(handle, 1000, &piece)) == MEGREZ_OK || status == MEGREZ_TIMEOUT) {
        if (status == MEGREZ_TIMEOUT) continue; /* time for other work */
        fwrite(piece->text, 1, piece->text_size, stdout);
        megrez_free(piece);
    }
    if (status != MEGREZ_END || megrez_request_usage(handle, &usage) != MEGREZ_OK) return fail();
    printf("\n");
    fprintf(stderr, "%d prompt tokens, %d output tokens\n", (int)usage.prompt_tokens, (int)usage.output_tokens);
    megrez_request_free(handle);
    megrez_close(model);
    return 0;
}
