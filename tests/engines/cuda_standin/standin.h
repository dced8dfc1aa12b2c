// A stand-in for the part of CUDA's runtime that megrez calls, for tests without a GPU: memory, streams and graphs by
// the runtime's documented rules, checked and counted. No kernel runs here, and only one thread may call.
#pragma once

#include <stdbool.h>
#include <stddef.h>

// Of cudaError_t.
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    MEMORY_ALLOCATION = 2,
    INVALID_PITCH = 12,
    INVALID_MEMCPY_DIRECTION = 21,
    INVALID_DEVICE = 101,
    INVALID_RESOURCE_HANDLE = 400,
    ILLEGAL_STATE = 401,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_IMPLICIT = 906,
};

// Of cudaMemcpyKind.
enum { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE };

typedef void (*HostFunction)(void *);

// A copy, or a call where `call` is set. Addresses are looked up when it runs, as late as a stream may leave it.
typedef struct {
    HostFunction call;
    void *data;
    char *to;
    const char *from;
    size_t width, height, to_pitch, from_pitch;  // rows of bytes; one, unless asked for in two dimensions
    int kind;
    char *staged;  // of pageable memory, read when the copy was asked for
} Operation;

typedef struct {
    Operation *items;
    size_t count, room;
} Operations;

typedef enum { STREAM, GRAPH, EXECUTABLE } Kind;

typedef struct Handle {
    struct Handle *next;
    Kind kind;
    Operations operations;  // a stream's are queued
    Operations captured;
    bool capturing, invalidated;
} Handle;

// settings.c: what was set, asked and done wrong. `enter` is each function's first line: a status to return, or 0.
int enter(const char *function);
int lose_device(void);
void note_misuse(const char *function, const void *what);
void say(const char *format, ...);

// memory.c
void reset_memory(size_t total, size_t occupied);
int check_copy(const Operation *copy);
int run_copy(const Operation *copy);
bool is_pinned(const void *address);
size_t span(const Operation *copy, size_t pitch);
void list_memory(void);

// streams.c
Handle *find_handle(const void *pointer, Kind kind);
Handle *new_handle(Kind kind);
void delete_handle(Handle *handle);
void append(Operations *operations, Operation operation);
void append_all(Operations *operations, const Operations *others);
int submit(Handle *stream, Operation operation);
int finish_all(void);
bool is_capturing(void);
int invalidate_captures(int status);
void list_handles(void);
void reset_handles(void);
