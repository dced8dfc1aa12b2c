/* A parallel loop over several phases, each divided into pieces: threads are started once for all of them. */
#ifndef MEGREZ_PHASES_H
#define MEGREZ_PHASES_H

#include "ort_abi.h"

enum { MEGREZ_MOST_PHASES = 12 };

typedef struct {
    void (*run)(void *work, int64_t piece);
    int64_t pieces;
} megrez_phase;

/* Runs the phases in order on ONNX Runtime's threads; a phase begins when all pieces of the one before are done. */
ort_status *megrez_run_phases(
    const ort_api *api, const ort_context *context, const megrez_phase *phases, size_t count, void *work
);

#endif
