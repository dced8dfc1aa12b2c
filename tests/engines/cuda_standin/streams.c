// Streams: what is queued runs in order, and no sooner than someone waits for it.
#include <stdlib.h>
#include <string.h>

#include "standin.h"

static Handle *handles;

Handle *find_handle(const void *pointer, Kind kind) {
    for (Handle *handle = handles; handle != NULL; handle = handle->next)
        if (handle == pointer && handle->kind == kind) return handle;
    return NULL;
}

Handle *new_handle(Kind kind) {
    Handle *handle = calloc(1, sizeof *handle);
    handle->kind = kind, handle->next = handles;
    return handles = handle;
}

void delete_handle(Handle *handle) {
    Handle **link = &handles;
    while (*link != handle) link = &(*link)->next;
    *link = handle->next;
    free(handle->operations.items);
    free(handle->captured.items);
    free(handle);
}

void append(Operations *operations, Operation operation) {
    if (operations->count == operations->room) {
        operations->room = 2 * operations->room + 8;
        operations->items = realloc(operations->items, operations->room * sizeof operation);
    }
    operations->items[operations->count++] = operation;
}

void append_all(Operations *operations, const Operations *others) {
    for (size_t i = 0; i < others->count; i++) append(operations, others->items[i]);
}

void reset_handles(void) {
    while (handles != NULL) delete_handle(handles);
}

static int finish(Handle *stream) {
    Operations queued = stream->operations;
    stream->operations = (Operations){0};
    int status = SUCCESS;
    for (size_t i = 0; i < queued.count; i++) {
        Operation *operation = &queued.items[i];
        if (status == SUCCESS && operation->call != NULL) operation->call(operation->data);
        if (status == SUCCESS && operation->call == NULL) status = run_copy(operation);
        free(operation->staged);
    }
    free(queued.items);
    return status;
}

int finish_all(void) {
    int status = SUCCESS;
    for (Handle *handle = handles; handle != NULL && status == SUCCESS; handle = handle->next)
        if (handle->kind == STREAM) status = finish(handle);
    return status;
}

bool is_capturing(void) {
    for (Handle *handle = handles; handle != NULL; handle = handle->next)
        if (handle->capturing) return true;
    return false;
}

int invalidate_captures(int status) {
    for (Handle *handle = handles; handle != NULL; handle = handle->next) handle->invalidated |= handle->capturing;
    return status;
}

// Queue it, or record it where the stream is captured.
int submit(Handle *stream, Operation operation) {
    if (stream->invalidated) return CAPTURE_INVALIDATED;
    if (stream->capturing) {
        append(&stream->captured, operation);
        return SUCCESS;
    }
    bool pageable_source = operation.call == NULL && operation.kind == HOST_TO_DEVICE && !is_pinned(operation.from);
    if (pageable_source) {
        size_t size = span(&operation, operation.from_pitch);
        operation.staged = memcpy(malloc(size), operation.from, size);
    }
    append(&stream->operations, operation);
    bool pageable_target = operation.call == NULL && operation.kind == DEVICE_TO_HOST && !is_pinned(operation.to);
    return pageable_target ? finish(stream) : SUCCESS;
}

void list_handles(void) {
    static const char *const names[] = {"stream", "graph", "executable graph"};
    for (Handle *handle = handles; handle != NULL; handle = handle->next) say("%s\n", names[handle->kind]);
}

int cudaStreamCreate(void **stream) {
    int status = enter("cudaStreamCreate");
    if (status) return status;
    *stream = new_handle(STREAM);
    return SUCCESS;
}

int cudaStreamDestroy(void *stream) {
    int status = enter("cudaStreamDestroy");
    if (status) return status;
    Handle *found = find_handle(stream, STREAM);
    if (found == NULL) {
        note_misuse("cudaStreamDestroy", stream);
        return INVALID_RESOURCE_HANDLE;
    }
    status = finish(found);
    delete_handle(found);
    return status;
}

int cudaStreamSynchronize(void *stream) {
    int status = enter("cudaStreamSynchronize");
    if (status) return status;
    Handle *found = find_handle(stream, STREAM);
    if (found == NULL) return INVALID_RESOURCE_HANDLE;
    if (found->capturing) return invalidate_captures(CAPTURE_UNSUPPORTED);
    return finish(found);
}

static int submit_copy(void *stream, Operation copy) {
    Handle *found = find_handle(stream, STREAM);
    if (found == NULL) return INVALID_RESOURCE_HANDLE;
    if (copy.width == 0 || copy.height == 0) return SUCCESS;
    int status = check_copy(&copy);
    return status ? status : submit(found, copy);
}

int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    int status = enter("cudaMemcpyAsync");
    return status ? status : submit_copy(stream, (Operation){NULL, NULL, to, from, size, 1, size, size, kind, NULL});
}

int cudaMemcpy2DAsync(
    void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, int kind, void *stream
) {
    int status = enter("cudaMemcpy2DAsync");
    if (status) return status;
    return submit_copy(stream, (Operation){NULL, NULL, to, from, width, height, to_pitch, from_pitch, kind, NULL});
}

int cudaLaunchHostFunc(void *stream, HostFunction function, void *data) {
    int status = enter("cudaLaunchHostFunc");
    if (status) return status;
    Handle *found = find_handle(stream, STREAM);
    if (found == NULL) return INVALID_RESOURCE_HANDLE;
    if (function == NULL) return INVALID_VALUE;
    return submit(found, (Operation){.call = function, .data = data});
}
