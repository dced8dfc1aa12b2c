/* Chunks of memory, each released when all that was taken from it is. */
#include "huge_pages.h"
#include "lines.h"

#if defined(__linux__) && defined(__GNUC__)

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, HUGE_PAGE = 2 << 20, CHUNK = 64 << 20 };

typedef struct {
    char *mapped, *next;
    size_t length;
    long taken;
} chunk;

static chunk *current;
static char locked;

static void lock(void) {
    while (__atomic_test_and_set(&locked, __ATOMIC_ACQUIRE)) sched_yield();
}

static void unlock(void) { __atomic_clear(&locked, __ATOMIC_RELEASE); }

bool megrez_wants_huge_pages(void) {
    const char *tunables = getenv("GLIBC_TUNABLES");
    return tunables && strstr(tunables, "glibc.malloc.hugetlb=1");
}

static chunk *new_chunk(size_t bytes) {
    chunk *made = malloc(sizeof *made);
    if (!made) return NULL;
    *made = (chunk){.length = megrez_rounded_up(bytes > CHUNK ? bytes : CHUNK, HUGE_PAGE) + HUGE_PAGE};
    made->mapped = mmap(NULL, made->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made->mapped == MAP_FAILED) {
        free(made);
        return NULL;
    }
    made->next = (char *)megrez_rounded_up((uintptr_t)made->mapped, HUGE_PAGE);
    madvise(made->next, made->length - HUGE_PAGE, MADV_HUGEPAGE);
    return made;
}

void *megrez_take_huge_pages(size_t bytes, void **owner) {
    bytes = megrez_on_lines(bytes);
    lock();
    if (!current || (size_t)(current->mapped + current->length - current->next) < bytes) current = new_chunk(bytes);
    char *found = current ? current->next : NULL;
    if (found) current->next += bytes, current->taken++;
    *owner = current;
    unlock();
    return found;
}

void megrez_release_huge_pages(void *owner) {
    chunk *from = owner;
    if (!from) return;
    lock();
    const bool unused = !--from->taken;
    if (unused && from == current) current = NULL;
    unlock();
    if (!unused) return;
    munmap(from->mapped, from->length);
    free(from);
}

/* Whether one mapping of a file has all of it: other memory would be lost. Constants that are mapped are not written. */
static bool is_mapped_file(uintptr_t first, uintptr_t end) {
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) return false;
    char line[512];
    unsigned long from = 0, to = 0, inode = 0;
    while (to <= first && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %*s %*x %*s %lu", &from, &to, &inode) != 3) inode = to = 0;
    fclose(maps);
    return from <= first && end <= to && inode;
}

void megrez_forget_source(const void *from, size_t bytes) {
    const uintptr_t first = megrez_rounded_up((uintptr_t)from, PAGE), end = ((uintptr_t)from + bytes) / PAGE * PAGE;
    if (first < end && is_mapped_file(first, end)) madvise((void *)first, end - first, MADV_DONTNEED);
}

#else

bool megrez_wants_huge_pages(void) { return false; }
void *megrez_take_huge_pages(size_t bytes, void **owner) { return (void)bytes, *owner = NULL, NULL; }
void megrez_release_huge_pages(void *owner) { (void)owner; }
void megrez_forget_source(const void *from, size_t bytes) { (void)from, (void)bytes; }

#endif
