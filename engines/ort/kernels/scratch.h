/* Memory for a step's intermediate values, of which one piece is kept for the next layer: new pages would be cleared. */
#ifndef MEGREZ_SCRATCH_H
#define MEGREZ_SCRATCH_H

#include <stddef.h>

/* On a cache line of its own; NULL if there is no memory. From any thread. */
void *megrez_scratch_take(size_t bytes);
void megrez_scratch_return(void *taken);

#endif
