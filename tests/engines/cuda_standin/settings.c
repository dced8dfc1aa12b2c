// The device that is stood in for, the calls that shall fail, and the report of what is still alive.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "standin.h"

enum { MAJOR = 75, MINOR = 76, FUNCTIONS = 64 };

static int devices, major, minor, lost;
static struct {
    const char *name;
    int calls, first, last, status;
} functions[FUNCTIONS];
static char misuse[4096], report[1 << 16];
static size_t misused, reported;

// Whatever is still alive is gone.
void standin_reset(int count, int capability, size_t total, size_t occupied) {
    devices = count, major = capability / 10, minor = capability % 10, lost = SUCCESS;
    memset(functions, 0, sizeof functions);
    misused = 0, misuse[0] = 0;
    reset_handles();
    reset_memory(total, occupied);
}

static int index_of(const char *function) {
    int i = 0;
    while (functions[i].name != NULL && strcmp(functions[i].name, function) != 0) i++;
    if (functions[i].name == NULL) functions[i].name = function;
    return i;
}

// `function` must outlive the next reset. Its calls number `first` to `last` from now on return `status`.
void standin_fail(const char *function, int first, int last, int status) {
    int i = index_of(function);
    functions[i].first = functions[i].calls + first;
    functions[i].last = functions[i].calls + last;
    functions[i].status = status;
}

int standin_calls(const char *function) {
    for (int i = 0; i < FUNCTIONS && functions[i].name != NULL; i++)
        if (strcmp(functions[i].name, function) == 0) return functions[i].calls;
    return 0;
}

int enter(const char *function) {
    int i = index_of(function), call = ++functions[i].calls;
    if (lost) return lost;
    if (call < functions[i].first || call > functions[i].last) return SUCCESS;
    if (functions[i].status == ILLEGAL_ADDRESS) return lose_device();
    return functions[i].status;
}

// After such an error every call returns it again.
int lose_device(void) {
    return lost = ILLEGAL_ADDRESS;
}

void note_misuse(const char *function, const void *what) {
    misused += (size_t)snprintf(misuse + misused, sizeof misuse - misused, "%s of unknown %p\n", function, what);
    if (misused >= sizeof misuse) misused = sizeof misuse - 1;
}

void say(const char *format, ...) {
    va_list values;
    va_start(values, format);
    reported += (size_t)vsnprintf(report + reported, sizeof report - reported, format, values);
    va_end(values);
    if (reported >= sizeof report) reported = sizeof report - 1;
}

// A line for each allocation and handle that is alive, and for each free or destroy of what was not.
const char *standin_report(void) {
    reported = 0, report[0] = 0;
    list_memory();
    list_handles();
    say("%s", misuse);
    return report;
}

int cudaGetDeviceCount(int *count) {
    int status = enter("cudaGetDeviceCount");
    if (status) return status;
    *count = devices;
    return SUCCESS;
}

int cudaGetDevice(int *device) {
    int status = enter("cudaGetDevice");
    if (status) return status;
    *device = 0;
    return SUCCESS;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    int status = enter("cudaDeviceGetAttribute");
    if (status) return status;
    if (device < 0 || device >= devices) return INVALID_DEVICE;
    if (attribute != MAJOR && attribute != MINOR) return INVALID_VALUE;
    *value = attribute == MAJOR ? major : minor;
    return SUCCESS;
}
