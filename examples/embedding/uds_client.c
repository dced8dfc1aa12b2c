/* Asks `megrez serve BUNDLE --uds FILE` over its socket file, with nothing but the C library:
 *
 * uds_client FILE "Question?"  prints the response's JSON. A larger program would take libcurl, which has
 * CURLOPT_UNIX_SOCKET_PATH, and a JSON library. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what) {
    perror(what);
    return 1;
}

static int connect_to(const char *path) {
    struct sockaddr_un address;
    int connection = socket(AF_UNIX, SOCK_STREAM, 0);
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (connection >= 0 && connect(connection, (struct sockaddr *)&address, sizeof address) == 0) return connection;
    return -1;
}

/* Text as a JSON string without its quotes: UTF-8 may stand as it is. */
static void quote(FILE *out, const char *text) {
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\') fprintf(out, "\\%c", byte);
        else if (byte < 0x20) fprintf(out, "\\u%04x", byte);
        else fputc(byte, out);
    }
}

int main(int argc, char **argv) {
    char *body = NULL, line[1024];
    size_t size = 0;
    int connection, status = 0, in_body = 0;
    FILE *stream;
    if (argc != 3) {
        fprintf(stderr, "usage: %s FILE QUESTION\n", argv[0]);
        return 2;
    }
    if ((stream = open_memstream(&body, &size)) == NULL) return fail("memory");
    fputs("{\"max_tokens\": 128, \"messages\": [{\"role\": \"user\", \"content\": \"", stream);
    quote(stream, argv[2]);
    fputs("\"}]}", stream);
    if (fclose(stream) != 0) return fail("memory");

    if ((connection = connect_to(argv[1])) < 0) return fail(argv[1]);
    if ((stream = fdopen(connection, "r+")) == NULL) return fail(argv[1]);
    fprintf(stream, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                    "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", size, body);
    if (fflush(stream) != 0) return fail(argv[1]);
    free(body);

    while (fgets(line, sizeof line, stream)) {
        if (!status && sscanf(line, "HTTP/1.1 %d", &status) != 1) return fail("not HTTP");
        if (in_body) fputs(line, stdout);
        if (strcmp(line, "\r\n") == 0) in_body = 1;
    }
    printf("\n");
    fclose(stream);
    return status == 200 ? 0 : 1;
}
