// A stream's work recorded into a graph, and executables of it that queue it again.
#include "standin.h"

enum { LAST_CAPTURE_MODE = 2 };

int cudaStreamBeginCapture(void *stream, int mode) {
    int status = enter("cudaStreamBeginCapture");
    if (status) return status;
    if (stream == NULL) return CAPTURE_UNSUPPORTED;
    Handle *found = find_handle(stream, STREAM);
    if (found == NULL) return INVALID_RESOURCE_HANDLE;
    if (mode < 0 || mode > LAST_CAPTURE_MODE) return INVALID_VALUE;
    if (found->capturing) return ILLEGAL_STATE;
    found->capturing = true;
    return SUCCESS;
}

// The capture ends whatever is returned.
int cudaStreamEndCapture(void *stream, void **graph) {
    Handle *found = find_handle(stream, STREAM);
    *graph = NULL;
    if (found == NULL) return INVALID_RESOURCE_HANDLE;
    if (!found->capturing) return ILLEGAL_STATE;
    Operations captured = found->captured;
    bool invalidated = found->invalidated;
    found->captured = (Operations){0};
    found->capturing = found->invalidated = false;
    int status = enter("cudaStreamEndCapture");
    if (status) return status;
    if (invalidated) return CAPTURE_INVALIDATED;
    Handle *made = new_handle(GRAPH);
    made->operations = captured;
    *graph = made;
    return SUCCESS;
}

int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
    int status = enter("cudaGraphInstantiate");
    if (status) return status;
    Handle *found = find_handle(graph, GRAPH);
    if (found == NULL || flags > 15) return INVALID_VALUE;
    Handle *made = new_handle(EXECUTABLE);
    append_all(&made->operations, &found->operations);
    *executable = made;
    return SUCCESS;
}

int cudaGraphLaunch(void *executable, void *stream) {
    int status = enter("cudaGraphLaunch");
    if (status) return status;
    Handle *found = find_handle(executable, EXECUTABLE), *target = find_handle(stream, STREAM);
    if (found == NULL) return INVALID_VALUE;
    if (target == NULL) return INVALID_RESOURCE_HANDLE;
    if (target->capturing) return invalidate_captures(CAPTURE_UNSUPPORTED);
    append_all(&target->operations, &found->operations);
    return SUCCESS;
}

static int destroy(const char *function, void *pointer, Kind kind) {
    int status = enter(function);
    if (status) return status;
    Handle *found = find_handle(pointer, kind);
    if (found == NULL) {
        note_misuse(function, pointer);
        return INVALID_VALUE;
    }
    delete_handle(found);
    return SUCCESS;
}

int cudaGraphDestroy(void *graph) {
    return destroy("cudaGraphDestroy", graph, GRAPH);
}

int cudaGraphExecDestroy(void *executable) {
    return destroy("cudaGraphExecDestroy", executable, EXECUTABLE);
}
