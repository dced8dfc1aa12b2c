/* Memory in huge pages for copies of weights, which every token reads: small pages cost a walk of the page tables each.
 *
 * Weights are copied where GLIBC_TUNABLES has glibc.malloc.hugetlb=1, as runtime/huge_pages.py sets it.
 */
#ifndef MEGREZ_HUGE_PAGES_H
#define MEGREZ_HUGE_PAGES_H

#include <stdbool.h>
#include <stddef.h>

bool megrez_wants_huge_pages(void);
/* On a cache line of its own; *owner is to be released. NULL if there is no memory. From any thread. */
void *megrez_take_huge_pages(size_t bytes, void **owner);
void megrez_release_huge_pages(void *owner);
/* Unmaps the pages of what was copied, if a file is mapped there: they stay in the system's cache. */
void megrez_forget_source(const void *from, size_t bytes);

#endif
