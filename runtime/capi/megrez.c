/* The functions of megrez.h: each checks its pointers, calls its namesake in host.py and hands out what that returned.
 *
 * host.call(name, arguments) returns (status, value) and raises nothing; value is the message of an error.
 */
#define _GNU_SOURCE 1
#include "include/megrez.h"
#include "python.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOST "megrez.runtime.capi.host"
/* Handles are numbers in the form of pointers. */
#define NUMBER(handle) ((unsigned long long)(uintptr_t)(handle))

static _Thread_local megrez_status last_status;
static _Thread_local char last_message[MEGREZ_MESSAGE_SIZE];

static megrez_status fail(megrez_status status, const char *message) {
    size_t length = strlen(message);
    if (length >= sizeof last_message) {
        length = sizeof last_message - 1;
        while (length && ((unsigned char)message[length] & 0xC0) == 0x80) length--; /* no part of a character */
    }
    memmove(last_message, message, length);
    last_message[length] = 0;
    return last_status = status;
}

static megrez_status fail_null(const char *function, const char *argument) {
    char message[256];
    snprintf(message, sizeof message, "%s was given NULL for %s: give a pointer", function, argument);
    return fail(MEGREZ_ERROR_USAGE, message);
}

static megrez_status fail_memory(void) {
    return fail(MEGREZ_ERROR_SYSTEM, "out of memory: close a model, or free pieces");
}

static megrez_status fail_count(void) {
    return fail(MEGREZ_ERROR_USAGE, "count is larger than memory: give fewer elements");
}

uint32_t megrez_abi_version(void) { return MEGREZ_ABI_VERSION; }
const char *megrez_version(void) { return MEGREZ_PACKAGE_VERSION; }
megrez_status megrez_last_error(void) { return last_status; }
const char *megrez_last_error_message(void) { return last_message; }
void megrez_free(void *memory) { free(memory); }

/* --- Calls into Python --- */

typedef struct {
    PyGILState_STATE gil;
    PyObject *answer; /* (status, value) */
    PyObject *value;  /* borrowed from it */
} call;

static void release_error(PyObject *type, PyObject *error, PyObject *trace) {
    if (type) megrez_py.Py_DecRef(type);
    if (error) megrez_py.Py_DecRef(error);
    if (trace) megrez_py.Py_DecRef(trace);
}

/* The error that is set, as a failure of ours. */
static megrez_status fail_python(megrez_status status, const char *what) {
    char message[MEGREZ_MESSAGE_SIZE];
    PyObject *type = NULL, *error = NULL, *trace = NULL;
    megrez_py.PyErr_Fetch(&type, &error, &trace);
    megrez_py.PyErr_NormalizeException(&type, &error, &trace);
    PyObject *shown = error ? megrez_py.PyObject_Str(error) : NULL;
    const char *text = shown ? megrez_py.PyUnicode_AsUTF8AndSize(shown, NULL) : NULL;
    snprintf(message, sizeof message, "%s (%s)", what, text ? text : "no message");
    message[strcspn(message, "\n")] = 0;
    megrez_py.PyErr_Clear();
    if (shown) megrez_py.Py_DecRef(shown);
    release_error(type, error, trace);
    return fail(status, message);
}

static megrez_status enter(call *made, bool start) {
    char message[MEGREZ_MESSAGE_SIZE];
    switch (megrez_python_ready(start, message)) {
    case MEGREZ_PYTHON_RUNS:
        made->gil = megrez_py.PyGILState_Ensure();
        made->answer = made->value = NULL;
        return MEGREZ_OK;
    case MEGREZ_PYTHON_FORKED:
        return fail(MEGREZ_ERROR_FORKED, "this process was forked from one that uses libmegrez: use it in one of the "
                                         "two only, and open models after the fork");
    case MEGREZ_PYTHON_NOT_STARTED:
        return fail(MEGREZ_ERROR_HANDLE, "the handle is not open, and no other is: open a model first");
    default:
        return fail(MEGREZ_ERROR_PYTHON, message);
    }
}

/* Ends the call: its value is invalid then. */
static megrez_status leave(call *made, megrez_status status) {
    if (made->answer) megrez_py.Py_DecRef(made->answer);
    megrez_py.PyGILState_Release(made->gil);
    return status;
}

static PyObject *import_host(void) {
    PyObject *host = megrez_py.PyImport_ImportModule(HOST);
    if (host || !megrez_python_is_ours()) return host;
    PyObject *type = NULL, *error = NULL, *trace = NULL;
    megrez_py.PyErr_Fetch(&type, &error, &trace);
    if (!megrez_python_add_own_packages()) {
        megrez_py.PyErr_Restore(type, error, trace);
        return NULL;
    }
    release_error(type, error, trace);
    return megrez_py.PyImport_ImportModule(HOST);
}

/* Within enter and leave. format: of Py_BuildValue, for a tuple. */
static megrez_status ask(call *made, const char *name, const char *format, ...) {
    PyObject *host = import_host();
    PyObject *function = host ? megrez_py.PyObject_GetAttrString(host, name) : NULL;
    if (host) megrez_py.Py_DecRef(host);
    if (!function) {
        return fail_python(MEGREZ_ERROR_PYTHON, "Python runs and has no working megrez-compile: run  pip install "
                                                "megrez-compile  for it");
    }
    va_list arguments;
    va_start(arguments, format);
    PyObject *given = megrez_py.Py_VaBuildValue(format, arguments);
    va_end(arguments);
    made->answer = given ? megrez_py.PyObject_CallObject(function, given) : NULL;
    megrez_py.Py_DecRef(function);
    if (given) megrez_py.Py_DecRef(given);
    if (!made->answer) return fail_python(MEGREZ_ERROR_INTERNAL, "libmegrez could not call Python");
    megrez_status status = (megrez_status)megrez_py.PyLong_AsLongLong(megrez_py.PyTuple_GetItem(made->answer, 0));
    made->value = megrez_py.PyTuple_GetItem(made->answer, 1);
    if (status >= 0) return status;
    char *message = NULL;
    if (megrez_py.PyBytes_AsStringAndSize(made->value, &message, NULL) != 0) megrez_py.PyErr_Clear();
    if (status == MEGREZ_ERROR_INTERRUPTED) megrez_py.PyErr_SetInterrupt(); /* for who called us */
    return fail(status, message ? message : "an error without a message");
}

static long long integer_at(PyObject *tuple, Py_ssize_t at) {
    return megrez_py.PyLong_AsLongLong(megrez_py.PyTuple_GetItem(tuple, at));
}

static PyObject *new_bytes(const void *data, size_t size) {
    return megrez_py.PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
}

/* A copy of a bytes object with a NUL byte behind it, to be freed; NULL without memory. */
static void *copy_bytes(PyObject *bytes, size_t *size) {
    char *data = NULL;
    Py_ssize_t length = 0;
    if (megrez_py.PyBytes_AsStringAndSize(bytes, &data, &length) != 0) {
        megrez_py.PyErr_Clear();
        return NULL;
    }
    char *copy = malloc((size_t)length + 1);
    if (!copy) return NULL;
    memcpy(copy, data, (size_t)length);
    copy[length] = 0;
    if (size) *size = (size_t)length;
    return copy;
}

/* A call that returns nothing. */
#define CALL_PLAIN(name, start, format, ...)                                                                           \
    do {                                                                                                               \
        call made;                                                                                                     \
        megrez_status status = enter(&made, start);                                                                    \
        if (status != MEGREZ_OK) return status;                                                                        \
        return leave(&made, ask(&made, name, format, __VA_ARGS__));                                                    \
    } while (0)

/* A call that returns bytes. */
#define CALL_BYTES(out, size, name, start, format, ...)                                                                \
    do {                                                                                                               \
        call made;                                                                                                     \
        megrez_status status = enter(&made, start);                                                                    \
        if (status != MEGREZ_OK) return status;                                                                        \
        status = ask(&made, name, format, __VA_ARGS__);                                                                \
        if (status == MEGREZ_OK && !(*(out) = copy_bytes(made.value, size))) status = fail_memory();                   \
        return leave(&made, status);                                                                                   \
    } while (0)

/* A call that returns the number of a handle. */
#define CALL_HANDLE(out, name, start, format, ...)                                                                     \
    do {                                                                                                               \
        call made;                                                                                                     \
        megrez_status status = enter(&made, start);                                                                    \
        if (status != MEGREZ_OK) return status;                                                                        \
        status = ask(&made, name, format, __VA_ARGS__);                                                                \
        if (status == MEGREZ_OK) *(out) = (void *)(uintptr_t)megrez_py.PyLong_AsLongLong(made.value);                  \
        return leave(&made, status);                                                                                   \
    } while (0)

/* A call that returns a tuple of integers, for the int64_t behind the caller's `size`. */
static megrez_status ask_counts(const char *name, const void *handle, void *out, size_t fields) {
    call made;
    size_t size, room;
    memcpy(&size, out, sizeof size);
    if (size < sizeof size + sizeof(int64_t)) {
        return fail(MEGREZ_ERROR_USAGE, "the struct's size is not set: set it to sizeof of the struct before the call");
    }
    room = (size - sizeof size) / sizeof(int64_t);
    megrez_status status = enter(&made, false);
    if (status != MEGREZ_OK) return status;
    status = ask(&made, name, "(K)", NUMBER(handle));
    for (size_t at = 0; status == MEGREZ_OK && at < fields && at < room; at++) {
        int64_t value = integer_at(made.value, (Py_ssize_t)at);
        memcpy((char *)out + sizeof size + at * sizeof value, &value, sizeof value);
    }
    return leave(&made, status);
}

/* --- Models --- */

static void shut_down(void) {
    char message[MEGREZ_MESSAGE_SIZE];
    call made;
    if (megrez_python_ready(false, message) != MEGREZ_PYTHON_RUNS || !megrez_py.Py_IsInitialized()) return;
    if (enter(&made, false) == MEGREZ_OK) leave(&made, ask(&made, "shut_down", "()"));
}

/* Whether a model was opened since the last poll. */
static int opened;

/* At exit, engines must have stopped before the destructors of their libraries' static objects run: those of objects
 * that exist by now come later. Whoever runs Python ends it, and host.py hears of that. */
static void shut_down_at_exit(void) {
    if (megrez_python_is_ours()) atexit(shut_down);
}

megrez_status megrez_options_create(megrez_options **options) {
    if (!options) return fail_null(__func__, "options");
    *options = NULL;
    CALL_HANDLE(options, "options_create", true, "()", 0);
}

megrez_status megrez_options_set(megrez_options *options, const char *name, const char *value) {
    if (!name) return fail_null(__func__, "name");
    if (!value) return fail_null(__func__, "value");
    CALL_PLAIN("options_set", false, "(Kyy)", NUMBER(options), name, value);
}

megrez_status megrez_options_free(megrez_options *options) {
    CALL_PLAIN("options_free", false, "(K)", NUMBER(options));
}

static megrez_status open_model(const char *bundle, const megrez_options *options, megrez_model **model) {
    CALL_HANDLE(model, "open_model", true, "(yK)", bundle, NUMBER(options));
}

megrez_status megrez_open(const char *bundle, const megrez_options *options, megrez_model **model) {
    if (!model) return fail_null(__func__, "model");
    *model = NULL;
    if (!bundle) return fail_null(__func__, "bundle");
    megrez_status status = open_model(bundle, options, model);
    if (status != MEGREZ_OK) return status;
    shut_down_at_exit();
    __atomic_store_n(&opened, 1, __ATOMIC_SEQ_CST);
    return status;
}

megrez_status megrez_close(megrez_model *model) { CALL_PLAIN("close_model", false, "(K)", NUMBER(model)); }

megrez_status megrez_model_info(megrez_model *model, char **json) {
    if (!json) return fail_null(__func__, "json");
    *json = NULL;
    CALL_BYTES(json, NULL, "model_info", false, "(K)", NUMBER(model));
}

megrez_status megrez_model_stats(megrez_model *model, megrez_stats *stats) {
    if (!stats) return fail_null(__func__, "stats");
    return ask_counts("model_stats", model, stats, (sizeof *stats - sizeof stats->size) / sizeof(int64_t));
}

/* --- Text --- */

megrez_status megrez_tokenize(megrez_model *model, const char *text, int32_t **tokens, size_t *count) {
    if (!tokens) return fail_null(__func__, "tokens");
    *tokens = NULL;
    if (!count) return fail_null(__func__, "count");
    *count = 0;
    if (!text) return fail_null(__func__, "text");
    call made;
    megrez_status status = enter(&made, false);
    if (status != MEGREZ_OK) return status;
    status = ask(&made, "tokenize", "(Ky)", NUMBER(model), text);
    if (status == MEGREZ_OK && !(*tokens = copy_bytes(made.value, count))) status = fail_memory();
    *count /= sizeof **tokens;
    return leave(&made, status);
}

megrez_status megrez_detokenize(megrez_model *model, const int32_t *tokens, size_t count, char **text, size_t *size) {
    if (!text) return fail_null(__func__, "text");
    *text = NULL;
    if (size) *size = 0;
    if (!tokens && count) return fail_null(__func__, "tokens");
    if (count > PTRDIFF_MAX / sizeof *tokens) return fail_count();
    CALL_BYTES(text, size, "detokenize", false, "(KN)", NUMBER(model), new_bytes(tokens, count * sizeof *tokens));
}

megrez_status megrez_render_chat(megrez_model *model, const char *messages, const char *request, char **prompt) {
    if (!prompt) return fail_null(__func__, "prompt");
    *prompt = NULL;
    CALL_BYTES(prompt, NULL, "render_chat", false, "(Kyy)", NUMBER(model), messages, request);
}

megrez_status megrez_json_quote(const char *text, char **json) {
    if (!json) return fail_null(__func__, "json");
    *json = NULL;
    if (!text) return fail_null(__func__, "text");
    CALL_BYTES(json, NULL, "json_quote", true, "(y)", text);
}

/* --- Requests --- */

megrez_status megrez_submit(megrez_model *model, const char *prompt, const char *request, megrez_request **handle) {
    if (!handle) return fail_null(__func__, "handle");
    *handle = NULL;
    CALL_HANDLE(handle, "submit", false, "(Kyy)", NUMBER(model), prompt, request);
}

megrez_status megrez_submit_chat(
    megrez_model *model, const char *messages, const char *request, megrez_request **handle
) {
    if (!handle) return fail_null(__func__, "handle");
    *handle = NULL;
    CALL_HANDLE(handle, "submit_chat", false, "(Kyy)", NUMBER(model), messages, request);
}

megrez_status megrez_cancel(megrez_request *handle) { CALL_PLAIN("cancel", false, "(K)", NUMBER(handle)); }

megrez_status megrez_request_free(megrez_request *handle) { CALL_PLAIN("request_free", false, "(K)", NUMBER(handle)); }

megrez_status megrez_request_usage(megrez_request *handle, megrez_usage *usage) {
    if (!usage) return fail_null(__func__, "usage");
    return ask_counts("request_usage", handle, usage, (sizeof *usage - sizeof usage->size) / sizeof(int64_t));
}

/* From (text, tokens, logprobs, kind, index, finish_reason, call, seconds), in one block of memory. */
static megrez_piece *new_piece(PyObject *value) {
    char *data[3] = {NULL};
    Py_ssize_t sizes[3] = {0};
    for (Py_ssize_t at = 0; at < 3; at++)
        if (megrez_py.PyBytes_AsStringAndSize(megrez_py.PyTuple_GetItem(value, at), &data[at], &sizes[at]) != 0) {
            megrez_py.PyErr_Clear();
            return NULL;
        }
    /* The tokens come first: the struct's end is aligned for them. */
    megrez_piece *piece = malloc(sizeof *piece + (size_t)sizes[1] + (size_t)sizes[0] + 1 + (size_t)sizes[2] + 1);
    if (!piece) return NULL;
    char *tokens = (char *)(piece + 1), *text = tokens + sizes[1], *logprobs = text + sizes[0] + 1;
    memcpy(tokens, data[1], (size_t)sizes[1]);
    memcpy(text, data[0], (size_t)sizes[0] + 1);
    memcpy(logprobs, data[2], (size_t)sizes[2] + 1);
    *piece = (megrez_piece){
        .size = sizeof *piece,
        .text = text,
        .text_size = (size_t)sizes[0],
        .tokens = (const int32_t *)(void *)tokens,
        .token_count = (size_t)sizes[1] / sizeof(int32_t),
        .kind = (int32_t)integer_at(value, 3),
        .index = (int32_t)integer_at(value, 4),
        .finish_reason = (int32_t)integer_at(value, 5),
        .call = (int32_t)integer_at(value, 6),
        .seconds = megrez_py.PyFloat_AsDouble(megrez_py.PyTuple_GetItem(value, 7)),
        .logprobs = sizes[2] ? logprobs : NULL,
    };
    return piece;
}

megrez_status megrez_poll(megrez_request *handle, int64_t timeout_ms, megrez_piece **piece) {
    if (!piece) return fail_null(__func__, "piece");
    *piece = NULL;
    call made;
    megrez_status status = enter(&made, false);
    if (status != MEGREZ_OK) return status;
    status = ask(&made, "poll", "(KL)", NUMBER(handle), (long long)timeout_ms);
    /* Again: an engine may make static objects in its first step. */
    if (status == MEGREZ_OK && __atomic_exchange_n(&opened, 0, __ATOMIC_SEQ_CST)) shut_down_at_exit();
    if (status == MEGREZ_OK && !(*piece = new_piece(made.value))) status = fail_memory();
    return leave(&made, status);
}

megrez_status megrez_wait(megrez_request *const *handles, size_t count, int64_t timeout_ms, size_t *ready) {
    if (!ready) return fail_null(__func__, "ready");
    *ready = 0;
    if (!handles) return fail_null(__func__, "handles");
    if (count > PTRDIFF_MAX / sizeof *handles) return fail_count();
    call made;
    megrez_status status = enter(&made, false);
    if (status != MEGREZ_OK) return status;
    status = ask(&made, "wait", "(NL)", new_bytes(handles, count * sizeof *handles), (long long)timeout_ms);
    if (status == MEGREZ_OK) *ready = (size_t)megrez_py.PyLong_AsLongLong(made.value);
    return leave(&made, status);
}

typedef struct {
    char *data;
    size_t size;
} growing;

static bool grow(growing *text, const char *more, size_t size) {
    char *data = realloc(text->data, text->size + size + 1);
    if (!data) return false;
    memcpy(data + text->size, more, size);
    text->data = data;
    text->size += size;
    data[text->size] = 0;
    return true;
}

/* Takes the request's pieces until it ends, and frees it. */
static megrez_status follow(megrez_request *handle, megrez_callback callback, void *user_data, char **text) {
    growing whole = {NULL, 0};
    megrez_status status = text && !grow(&whole, "", 0) ? fail_memory() : MEGREZ_OK;
    while (status == MEGREZ_OK) {
        megrez_piece *piece = NULL;
        status = megrez_poll(handle, -1, &piece);
        if (status != MEGREZ_OK) break;
        bool shown = text && piece->index == 0 && piece->kind == MEGREZ_PIECE_TEXT;
        if (shown && !grow(&whole, piece->text, piece->text_size)) status = fail_memory();
        if (status == MEGREZ_OK && callback && callback(piece, user_data) != 0) status = MEGREZ_CANCELLED;
        free(piece);
    }
    if (status == MEGREZ_END) status = MEGREZ_OK;
    /* The callback may have closed the model, and with it the request: the error that counts is the one above. */
    megrez_status kept_status = last_status;
    char kept_message[MEGREZ_MESSAGE_SIZE];
    memcpy(kept_message, last_message, sizeof kept_message);
    if (megrez_request_free(handle) < 0) {
        last_status = kept_status;
        memcpy(last_message, kept_message, sizeof last_message);
    }
    if (text && status >= 0) *text = whole.data;
    else free(whole.data);
    return status;
}

megrez_status megrez_generate(
    megrez_model *model, const char *prompt, const char *request, megrez_callback callback, void *user_data, char **text
) {
    megrez_request *handle = NULL;
    if (text) *text = NULL;
    megrez_status status = megrez_submit(model, prompt, request, &handle);
    return status == MEGREZ_OK ? follow(handle, callback, user_data, text) : status;
}

megrez_status megrez_chat(
    megrez_model *model, const char *messages, const char *request, megrez_callback callback, void *user_data,
    char **text
) {
    megrez_request *handle = NULL;
    if (text) *text = NULL;
    megrez_status status = megrez_submit_chat(model, messages, request, &handle);
    return status == MEGREZ_OK ? follow(handle, callback, user_data, text) : status;
}
