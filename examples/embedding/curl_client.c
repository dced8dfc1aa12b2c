/* Asks `megrez serve BUNDLE --uds FILE` over its socket file with libcurl; prints the answer's events as they come.
 *
 * cc curl_client.c -o curl_client $(curl-config --cflags --libs)
 * curl_client FILE "Question?"
 *
 * A larger program takes choices[0].delta.content of each event with a JSON library. */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The body of the request, to be freed. UTF-8 may stand in JSON as it is. */
static char *request_for(const char *question) {
    static const char before[] = "{\"stream\": true, \"max_tokens\": 128, \"messages\": [{\"role\": \"user\", \"content\": \"";
    static const char after[] = "\"}]}";
    char *body = malloc(sizeof before + 6 * strlen(question) + sizeof after), *end = body;
    if (body == NULL) return NULL;
    end += sprintf(end, "%s", before);
    for (; *question; question++) {
        unsigned char byte = (unsigned char)*question;
        if (byte == '"' || byte == '\\') end += sprintf(end, "\\%c", byte);
        else if (byte < 0x20) end += sprintf(end, "\\u%04x", byte);
        else *end++ = (char)byte;
    }
    strcpy(end, after);
    return body;
}

/* Another value than size * count would end the request: the server stops then. */
static size_t show(char *data, size_t size, size_t count, void *out) {
    size_t shown = fwrite(data, size, count, out);
    fflush(out);
    return shown * size;
}

int main(int argc, char **argv) {
    char *body, error[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers;
    long status = 0;
    CURL *curl;
    CURLcode code;
    if (argc != 3) {
        fprintf(stderr, "usage: %s FILE QUESTION\n", argv[0]);
        return 2;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    curl = curl_easy_init();
    headers = curl_slist_append(NULL, "Content-Type: application/json");
    body = request_for(argv[2]);
    if (curl == NULL || headers == NULL || body == NULL) return 1;
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, argv[1]);
    curl_easy_setopt(curl, CURLOPT_URL, "http://localhost/v1/chat/completions");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, show);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, stdout);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error);
    code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (code != CURLE_OK) fprintf(stderr, "%s: %s\n", argv[1], error[0] ? error : curl_easy_strerror(code));
    free(body);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    curl_global_cleanup();
    return code == CURLE_OK && status == 200 ? 0 : 1;
}
