/* The Python that answers: found, loaded with dlopen and started on first use; knows nothing of models. */
#ifndef MEGREZ_PYTHON_H
#define MEGREZ_PYTHON_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* What we call of CPython; nothing is linked, so that the library loads without a Python. */
#define MEGREZ_PYTHON_FUNCTIONS(X)                                                                                     \
    X(Py_IsInitialized) X(Py_GetVersion) X(Py_PreInitialize) X(PyPreConfig_InitIsolatedConfig)                         \
    X(PyConfig_InitIsolatedConfig) X(PyConfig_SetBytesString) X(PyConfig_Clear) X(Py_InitializeFromConfig)             \
    X(PyStatus_Exception) X(PyEval_SaveThread) X(PyGILState_Ensure) X(PyGILState_Release) X(PyImport_ImportModule)     \
    X(PyObject_GetAttrString) X(PyObject_CallObject) X(Py_VaBuildValue) X(PyErr_Fetch) X(PyErr_Restore)                \
    X(PyErr_NormalizeException) X(PyErr_Clear) X(PyErr_SetInterrupt) X(PyObject_Str) X(PyUnicode_AsUTF8AndSize)        \
    X(PyTuple_GetItem) X(PyLong_AsLongLong) X(PyFloat_AsDouble) X(PyBytes_AsStringAndSize) X(Py_DecRef)                \
    X(PySys_GetObject) X(PyUnicode_DecodeFSDefault) X(PyList_Append) X(PyBytes_FromStringAndSize)

typedef struct {
#define MEGREZ_FIELD(name) __typeof__(&name) name;
    MEGREZ_PYTHON_FUNCTIONS(MEGREZ_FIELD)
#undef MEGREZ_FIELD
} megrez_python_functions;

extern megrez_python_functions megrez_py;

enum { MEGREZ_MESSAGE_SIZE = 2048 };

typedef enum {
    MEGREZ_PYTHON_RUNS,
    MEGREZ_PYTHON_NOT_STARTED,
    MEGREZ_PYTHON_FAILED,
    MEGREZ_PYTHON_FORKED
} megrez_python_state;

/* Whether Python can be called now; with `start`, after loading and starting it if need be. message: of
 * MEGREZ_MESSAGE_SIZE bytes, written where it failed. */
megrez_python_state megrez_python_ready(bool start, char *message);
/* Whether this library started Python, so that nobody else ends it. */
bool megrez_python_is_ours(void);
/* With the GIL: adds the folder that holds the package `megrez` of this library to sys.path; whether there is one. */
bool megrez_python_add_own_packages(void);

#endif
