#include "arena.h"
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fastrnn_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define SMALL (1 << 16)      /* bytes; smaller blocks are kept by the C library itself */
#define LINE 64              /* a cache line, and the widest vector */
#define HUGE_PAGE (2 << 20)
#define MOST_FREE 256        /* blocks */
#define TRACE_DOMAIN 0x66726e6e    /* of tracemalloc */

/* The base of the arrays on a block; when it is collected, the block is free again. */
typedef struct {
    PyObject_HEAD
    void *memory;
    size_t size;
} block_t;

/* Guarded by the GIL. What is in use and kept is at most twice what was ever in use at once. */
static struct {
    void *memory;
    size_t size;
} spare[MOST_FREE];
static int spares;
static size_t used, kept, most_used;

static void *system_take(size_t size) {
    size_t align = size >= HUGE_PAGE ? HUGE_PAGE : LINE;
#ifdef _WIN32
    void *memory = _aligned_malloc(size, align);
#else
    void *memory = 0;
    if (posix_memalign(&memory, align, size)) memory = 0;
#endif
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (memory && size >= HUGE_PAGE) madvise(memory, size, MADV_HUGEPAGE);
#endif
    if (memory) PyTraceMalloc_Track(TRACE_DOMAIN, (uintptr_t)memory, size);
    return memory;
}

static void system_give(void *memory) {
    PyTraceMalloc_Untrack(TRACE_DOMAIN, (uintptr_t)memory);
#ifdef _WIN32
    _aligned_free(memory);
#else
    free(memory);
#endif
}

static void remove_spare(int i) { /* they stay in the order in which they were given */
    kept -= spare[i].size;
    memmove(spare + i, spare + i + 1, (--spares - i) * sizeof *spare);
}

static void drop(int i) {
    void *memory = spare[i].memory;
    remove_spare(i);
    system_give(memory);
}

/* A block of at least `size` bytes: the smallest spare one that is not much too large, as a small
   array that lives long would occupy it. */
static void *take(size_t *size) {
    size_t step = LINE;
    while (step * 32 <= *size) step *= 2;
    *size = (*size + step - 1) / step * step; /* few different sizes, at most 1/16 more */
    int best = -1;
    for (int i = 0; i < spares; i++)
        if (spare[i].size >= *size && spare[i].size <= *size + *size / 2 &&
            (best < 0 || spare[i].size < spare[best].size))
            best = i;
    void *memory;
    if (best >= 0) {
        memory = spare[best].memory;
        *size = spare[best].size;
        remove_spare(best);
    } else {
        memory = system_take(*size);
    }
    if (memory && (used += *size) > most_used) most_used = used;
    return memory;
}

static void give(void *memory, size_t size) {
    used -= size;
    /* The one that was given first has waited longest. */
    while (spares && (spares == MOST_FREE || used + kept + size > 2 * most_used)) drop(0);
    spare[spares].memory = memory;
    spare[spares++].size = size;
    kept += size;
}

static void block_dealloc(PyObject *self) {
    give(((block_t *)self)->memory, ((block_t *)self)->size);
    PyObject_Free(self);
}

static PyTypeObject block_type = {
    PyVarObject_HEAD_INIT(0, 0).tp_name = "fastrnn._native.Block",
    .tp_basicsize = sizeof(block_t),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = block_dealloc,
};

PyObject *arena_empty(PyObject *module, PyObject *args) {
    PyArray_Descr *dtype = 0;
    PyArray_Dims shape = {0, 0};
    PyObject *out = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "O&O&", PyArray_IntpConverter, &shape, PyArray_DescrConverter,
                          &dtype))
        goto end;
    size_t size = PyDataType_ELSIZE(dtype);
    for (int i = 0; i < shape.len; i++) {
        if (shape.ptr[i] < 0 || (shape.ptr[i] && size > PY_SSIZE_T_MAX / (size_t)shape.ptr[i])) {
            PyErr_SetString(PyExc_ValueError, "shape must be sizes of an array that fits memory");
            goto end;
        }
        size *= shape.ptr[i];
    }
    if (size < SMALL || PyDataType_REFCHK(dtype)) {
        Py_INCREF(dtype); /* which NewFromDescr takes */
        out = PyArray_NewFromDescr(&PyArray_Type, dtype, shape.len, shape.ptr, 0, 0, 0, 0);
        goto end;
    }
    block_t *block = PyObject_New(block_t, &block_type);
    if (!block) goto end;
    block->size = size;
    block->memory = take(&block->size);
    if (!block->memory) {
        PyObject_Free(block);
        PyErr_NoMemory();
        goto end;
    }
    Py_INCREF(dtype);
    out = PyArray_NewFromDescr(&PyArray_Type, dtype, shape.len, shape.ptr, 0, block->memory,
                               NPY_ARRAY_CARRAY, 0);
    if (!out) Py_DECREF(block);
    else if (PyArray_SetBaseObject((PyArrayObject *)out, (PyObject *)block)) Py_CLEAR(out);
end:
    Py_XDECREF(dtype);
    PyDimMem_FREE(shape.ptr);
    return out;
}

PyObject *arena_held(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    return Py_BuildValue("nn", (Py_ssize_t)used, (Py_ssize_t)kept);
}

PyObject *arena_release(PyObject *module, PyObject *none) {
    (void)module, (void)none;
    while (spares) drop(spares - 1);
    most_used = used;
    Py_RETURN_NONE;
}

int arena_init(void) { return PyType_Ready(&block_type); }
