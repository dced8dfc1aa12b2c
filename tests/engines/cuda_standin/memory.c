// Device and pinned memory. A device address is reserved and not readable: the host cannot follow it, as on a GPU.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "standin.h"

enum { GARBAGE = 0xA5 };

typedef struct Block {
    struct Block *next;
    char *address;
    char *bytes;  // where they are: elsewhere for device memory
    size_t size;
    bool device;
} Block;

static Block *blocks;
static size_t total, occupied;

static Block *find(const void *address) {
    for (Block *block = blocks; block != NULL; block = block->next)
        if ((const char *)address >= block->address && (const char *)address < block->address + block->size) return block;
    return NULL;
}

static size_t free_bytes(void) {
    size_t used = occupied;
    for (Block *block = blocks; block != NULL; block = block->next) used += block->device ? block->size : 0;
    return used < total ? total - used : 0;
}

static int allocate(void **address, size_t size, bool device) {
    if (is_capturing()) return invalidate_captures(CAPTURE_UNSUPPORTED);
    if (address == NULL) return INVALID_VALUE;
    *address = NULL;
    if (size == 0) return SUCCESS;
    if (device && size > free_bytes()) return MEMORY_ALLOCATION;
    int protection = device ? PROT_NONE : PROT_READ | PROT_WRITE;
    void *mapped = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return MEMORY_ALLOCATION;
    Block *block = malloc(sizeof *block);
    *block = (Block){blocks, mapped, device ? malloc(size) : mapped, size, device};
    memset(block->bytes, GARBAGE, size);
    blocks = block;
    *address = mapped;
    return SUCCESS;
}

static void unlink_block(Block **link) {
    Block *block = *link;
    *link = block->next;
    munmap(block->address, block->size);
    if (block->device) free(block->bytes);
    free(block);
}

void reset_memory(size_t all, size_t others) {
    while (blocks != NULL) unlink_block(&blocks);
    total = all, occupied = others;
}

static int release(const char *function, void *address, bool device) {
    if (is_capturing()) return invalidate_captures(CAPTURE_UNSUPPORTED);
    if (address == NULL) return SUCCESS;
    int status = finish_all();
    if (status) return status;
    for (Block **link = &blocks; *link != NULL; link = &(*link)->next) {
        if ((*link)->address != address || (*link)->device != device) continue;
        unlink_block(link);
        return SUCCESS;
    }
    note_misuse(function, address);
    return INVALID_VALUE;
}

// Where `size` bytes at `address` can be read here; NULL where they are not of that side, or end too early.
static char *reach(const void *address, size_t size, bool device) {
    Block *block = find(address);
    if (block == NULL) return device ? NULL : (char *)address;
    size_t offset = (size_t)((const char *)address - block->address);
    return block->device == device && size <= block->size - offset ? block->bytes + offset : NULL;
}

void *standin_view(const void *address, size_t size) {
    return reach(address, size, true);
}

bool is_pinned(const void *address) {
    Block *block = find(address);
    return block != NULL && !block->device;
}

// The bytes from the first to the last of a copy's rows.
size_t span(const Operation *copy, size_t pitch) {
    return (copy->height - 1) * pitch + copy->width;
}

static char *target(const Operation *copy) {
    bool device = copy->kind == HOST_TO_DEVICE || copy->kind == DEVICE_TO_DEVICE;
    return reach(copy->to, span(copy, copy->to_pitch), device);
}

static char *source(const Operation *copy) {
    bool device = copy->kind == DEVICE_TO_HOST || copy->kind == DEVICE_TO_DEVICE;
    return copy->staged != NULL ? copy->staged : reach(copy->from, span(copy, copy->from_pitch), device);
}

int check_copy(const Operation *copy) {
    if (copy->kind < HOST_TO_HOST || copy->kind > DEVICE_TO_DEVICE) return INVALID_MEMCPY_DIRECTION;
    if (copy->to_pitch < copy->width || copy->from_pitch < copy->width) return INVALID_PITCH;
    return target(copy) == NULL || source(copy) == NULL ? INVALID_VALUE : SUCCESS;
}

// Memory may have been freed since the copy was queued or recorded.
int run_copy(const Operation *copy) {
    char *to = target(copy), *from = source(copy);
    if (to == NULL || from == NULL) return lose_device();
    for (size_t row = 0; row < copy->height; row++)
        memmove(to + row * copy->to_pitch, from + row * copy->from_pitch, copy->width);
    return SUCCESS;
}

void list_memory(void) {
    for (Block *block = blocks; block != NULL; block = block->next)
        say("%s memory, %zu bytes\n", block->device ? "device" : "pinned", block->size);
}

int cudaMalloc(void **address, size_t size) {
    int status = enter("cudaMalloc");
    return status ? status : allocate(address, size, true);
}

int cudaFree(void *address) {
    int status = enter("cudaFree");
    return status ? status : release("cudaFree", address, true);
}

int cudaHostAlloc(void **address, size_t size, unsigned int flags) {
    int status = enter("cudaHostAlloc");
    if (status) return status;
    return flags > 7 ? INVALID_VALUE : allocate(address, size, false);
}

int cudaFreeHost(void *address) {
    int status = enter("cudaFreeHost");
    return status ? status : release("cudaFreeHost", address, false);
}

// On the legacy default stream, which waits for all others.
int cudaMemset(void *address, int value, size_t size) {
    int status = enter("cudaMemset");
    if (status) return status;
    if (is_capturing()) return invalidate_captures(CAPTURE_IMPLICIT);
    if ((status = finish_all())) return status;
    char *bytes = reach(address, size, true);
    if (bytes == NULL) return INVALID_VALUE;
    memset(bytes, value, size);
    return SUCCESS;
}

int cudaMemGetInfo(size_t *available, size_t *all) {
    int status = enter("cudaMemGetInfo");
    if (status) return status;
    *available = free_bytes(), *all = total;
    return SUCCESS;
}
