/* What curl_client.c uses of libcurl's ABI, for machines that have the library without its headers. Not for users. */
#ifndef TESTS_CURL_H
#define TESTS_CURL_H

#define CURL_ERROR_SIZE 256
#define CURL_GLOBAL_DEFAULT 3L

typedef void CURL;
struct curl_slist;
typedef enum { CURLE_OK = 0 } CURLcode;
typedef enum {
    CURLOPT_WRITEDATA = 10001,
    CURLOPT_URL = 10002,
    CURLOPT_ERRORBUFFER = 10010,
    CURLOPT_POSTFIELDS = 10015,
    CURLOPT_HTTPHEADER = 10023,
    CURLOPT_UNIX_SOCKET_PATH = 10231,
    CURLOPT_WRITEFUNCTION = 20011
} CURLoption;
typedef enum { CURLINFO_RESPONSE_CODE = 0x200002 } CURLINFO;

CURLcode curl_global_init(long flags);
void curl_global_cleanup(void);
CURL *curl_easy_init(void);
CURLcode curl_easy_setopt(CURL *curl, CURLoption option, ...);
CURLcode curl_easy_perform(CURL *curl);
CURLcode curl_easy_getinfo(CURL *curl, CURLINFO info, ...);
void curl_easy_cleanup(CURL *curl);
const char *curl_easy_strerror(CURLcode code);
struct curl_slist *curl_slist_append(struct curl_slist *list, const char *text);
void curl_slist_free_all(struct curl_slist *list);

#endif
