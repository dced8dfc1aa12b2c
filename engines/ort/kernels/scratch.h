/* Memory for a step's intermediate values, of which one piece is kept for the next layer: new pages would be cleared.
 *
 * The piece belongs to the process, not to a session: it is freed when a layer asks for less than a quarter of it.
 */
#ifndef MEGREZ_SCRATCH_H
#define MEGREZ_SCRATCH_H

#include <stddef.h>

/* On a cache line of its own; NULL if there is no memory. From any thread. */
void *megrez_scratch_take(size_t bytes);
void megrez_scratch_return(void *taken);

#endif
