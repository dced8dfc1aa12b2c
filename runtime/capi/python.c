/* Finds, loads and starts Python. */
#define _GNU_SOURCE 1
#include "python.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* build_ext.py defines these three for the Python that it builds for:
 * MEGREZ_LIBPYTHON, the file name; MEGREZ_LIBPYTHON_FOLDER; MEGREZ_PYTHON_PROGRAM, the program. */
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define VERSION TEXT(PY_MAJOR_VERSION) "." TEXT(PY_MINOR_VERSION)
#define STDLIB "/lib/python" VERSION "/os.py"
#define PACKAGES "/lib/python" VERSION "/site-packages"
#define SETTING "MEGREZ_PYTHON"

megrez_python_functions megrez_py;

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
/* The process that loaded Python; 0 until then. */
static atomic_int owner;
static bool is_ours, has_failed;
static char failure[MEGREZ_MESSAGE_SIZE];

/* message may be cut: paths can be longer. */
static bool refuse(char *message, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, MEGREZ_MESSAGE_SIZE, format, values);
    va_end(values);
    return false;
}

bool megrez_python_is_ours(void) { return is_ours; }

/* Cuts the last part of a path; whether something is left of it. */
static bool cut(char *path) {
    char *slash = strrchr(path, '/');
    if (slash == NULL || slash == path) return false;
    *slash = 0;
    return true;
}

/* The paths that are longer than PATH_MAX name no file. */
static bool join(char *out, const char *folder, const char *name) {
    return snprintf(out, PATH_MAX, "%s%s", folder, name) < PATH_MAX;
}

static bool own_folder(char *out) {
    Dl_info info;
    return dladdr((void *)&megrez_python_ready, &info) && info.dli_fname && realpath(info.dli_fname, out) && cut(out);
}

/* The value of `home` in pyvenv.cfg of the folder, which is the bin folder of the Python that made the environment. */
static bool read_home(const char *folder, char *out) {
    char path[PATH_MAX], line[PATH_MAX];
    FILE *file = join(path, folder, "/pyvenv.cfg") ? fopen(path, "re") : NULL;
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        char *value = strchr(line, '=');
        found = value && sscanf(line, "%s", path) == 1 && (strcmp(path, "home") == 0 || strncmp(path, "home=", 5) == 0);
        if (!found) continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\r\n")] = 0;
        strcpy(out, value);
    }
    if (file) fclose(file);
    return found;
}

/* The prefix of the Python behind a program: its standard library is in PREFIX/lib. */
static bool base_of(const char *program, char *out) {
    char folder[PATH_MAX];
    if (!join(folder, program, "") || !cut(folder) || !cut(folder)) return false;
    if (read_home(folder, out)) return cut(out);
    return realpath(program, out) && cut(out) && cut(out);
}

static bool holds(const char *base, const char *name) {
    char path[PATH_MAX];
    return join(path, base, name) && access(path, R_OK) == 0;
}

static void *load_from(const char *folder, const char *between) {
    char path[PATH_MAX], name[PATH_MAX];
    if (!join(name, between, "/" MEGREZ_LIBPYTHON) || !join(path, folder, name)) return NULL;
    return access(path, R_OK) == 0 ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
}

/* The library of the Python at `base`. Modules find its functions in the global scope. */
static void *load_library(const char *base) {
    void *library = load_from(base, "/lib");
    if (!library) library = load_from(base, "/lib64");
    if (!library) library = load_from(MEGREZ_LIBPYTHON_FOLDER, "");
    return library ? library : dlopen(MEGREZ_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL);
}

/* A Python's program in PREFIX/bin. */
static bool program_of(const char *prefix, char *out) {
    static const char *const names[] = {"/bin/python" VERSION, "/bin/python3", "/bin/python"};
    for (size_t at = 0; at < sizeof names / sizeof *names; at++)
        if (join(out, prefix, names[at]) && access(out, X_OK) == 0) return true;
    return false;
}

/* The program of the environment that this library is installed in: PREFIX/lib/pythonX.Y/site-packages/megrez/...; or
 * of the folder that `megrez bundle-runtime` wrote, copied without its links: PREFIX/lib. */
static bool installed_program(char *out) {
    char prefix[PATH_MAX];
    if (!own_folder(prefix) || !cut(prefix)) return false;
    if (holds(prefix, PACKAGES "/megrez/runtime/capi/host.py") && program_of(prefix, out)) return true;
    for (int part = 0; part < 5; part++)
        if (!cut(prefix)) return false;
    return program_of(prefix, out);
}

/* The program to run as, and the prefix of its Python; false with a message where there is none. */
static bool find_program(char *program, char *base, char *message) {
    const char *asked = getenv(SETTING);
    if (asked && *asked) {
        if (!join(program, asked, "") || access(program, X_OK) != 0) {
            return refuse(message, SETTING " is %s, which is no program: set it to the python" VERSION
                          " that has megrez-compile", asked);
        }
        if (base_of(program, base) && holds(base, STDLIB)) return true;
        return refuse(message, SETTING " is %s, which is no Python " VERSION ": libmegrez was built for that version; "
                      "set it to a python" VERSION " that has megrez-compile", asked);
    }
    if (installed_program(program) && base_of(program, base) && holds(base, STDLIB)) return true;
    strcpy(program, MEGREZ_PYTHON_PROGRAM);
    if (base_of(program, base) && holds(base, STDLIB)) return true;
    return refuse(message, "no Python " VERSION " was found beside libmegrez nor at %s: set " SETTING " to the python"
                  VERSION " that has megrez-compile", program);
}

static bool take_functions(void *library, char *message) {
    const char *missing = NULL;
#define MEGREZ_LOAD(name)                                                                                              \
    *(void **)&megrez_py.name = dlsym(library, #name);                                                                 \
    if (!megrez_py.name) missing = #name;
    MEGREZ_PYTHON_FUNCTIONS(MEGREZ_LOAD)
#undef MEGREZ_LOAD
    const char *version = megrez_py.Py_GetVersion ? megrez_py.Py_GetVersion() : "of an unknown version";
    size_t length = strlen(VERSION);
    if (missing || strncmp(version, VERSION, length) != 0 || (version[length] >= '0' && version[length] <= '9')) {
        return refuse(message, "this process has Python %.*s and libmegrez was built for Python " VERSION ": install "
                      "megrez-compile for the former", (int)strcspn(version, " "), version);
    }
    return true;
}

/* Starts Python without touching the process's signals, locale, streams or environment. */
static bool start_python(const char *program, char *message) {
    PyPreConfig before;
    megrez_py.PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    PyStatus status = megrez_py.Py_PreInitialize(&before);
    if (!megrez_py.PyStatus_Exception(status)) {
        PyConfig config;
        megrez_py.PyConfig_InitIsolatedConfig(&config);
        config.install_signal_handlers = 0;
        config.pathconfig_warnings = 0;
        status = megrez_py.PyConfig_SetBytesString(&config, &config.program_name, program);
        if (!megrez_py.PyStatus_Exception(status)) status = megrez_py.Py_InitializeFromConfig(&config);
        megrez_py.PyConfig_Clear(&config);
    }
    if (!megrez_py.PyStatus_Exception(status)) {
        megrez_py.PyEval_SaveThread();
        return true;
    }
    /* What a start that failed leaves behind cannot be used, nor tried again. */
    has_failed = true;
    refuse(failure, "Python did not start as %s (%s): set " SETTING " to the python" VERSION " that has megrez-compile",
           program, status.err_msg ? status.err_msg : "it exited");
    strcpy(message, failure);
    return false;
}

static bool load_python(char *message) {
    char program[PATH_MAX], base[PATH_MAX];
    /* A process that is linked with Python has one already, whether it was started or not. */
    bool is_linked = dlsym(RTLD_DEFAULT, "Py_IsInitialized") != NULL;
    if (is_linked && !take_functions(RTLD_DEFAULT, message)) return false;
    if (is_linked && megrez_py.Py_IsInitialized()) return true;
    if (!find_program(program, base, message)) return false;
    void *library = is_linked ? RTLD_DEFAULT : load_library(base);
    if (!is_linked && !library) {
        return refuse(message, "the Python of %s has no " MEGREZ_LIBPYTHON ": install its shared library (libpython"
                      VERSION "), or set " SETTING " to one that has it", program);
    }
    if (!take_functions(library, message)) return false;
    if (megrez_py.Py_IsInitialized()) return true;
    is_ours = start_python(program, message);
    return is_ours;
}

megrez_python_state megrez_python_ready(bool start, char *message) {
    int process = atomic_load(&owner);
    if (process == 0 && start) {
        pthread_mutex_lock(&starting);
        process = atomic_load(&owner);
        bool loaded = process != 0;
        if (!loaded && has_failed) strcpy(message, failure);
        if (!loaded && !has_failed) loaded = load_python(message);
        if (loaded && process == 0) atomic_store(&owner, process = (int)getpid());
        pthread_mutex_unlock(&starting);
        if (!loaded) return MEGREZ_PYTHON_FAILED;
    }
    if (process == 0) return MEGREZ_PYTHON_NOT_STARTED;
    return process == (int)getpid() ? MEGREZ_PYTHON_RUNS : MEGREZ_PYTHON_FORKED;
}

bool megrez_python_add_own_packages(void) {
    char folder[PATH_MAX];
    if (!own_folder(folder)) return false;
    for (int part = 0; part < 3; part++)
        if (!cut(folder)) return false;
    if (!holds(folder, "/megrez/runtime/capi/host.py")) return false;
    PyObject *paths = megrez_py.PySys_GetObject("path"), *path = megrez_py.PyUnicode_DecodeFSDefault(folder);
    bool added = paths && path && megrez_py.PyList_Append(paths, path) == 0;
    if (path) megrez_py.Py_DecRef(path);
    megrez_py.PyErr_Clear();
    return added;
}
