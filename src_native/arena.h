/* Large arrays on memory that is used again, because the C library returns it to the system at once
   and fresh pages cost about as much as the arithmetic done on them. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* empty(shape, dtype): an uninitialised C-contiguous array. Its memory is free again when the last
   array that refers to it is gone. */
PyObject *arena_empty(PyObject *module, PyObject *args);

/* held(): bytes in use by arrays, and bytes kept for the next ones. */
PyObject *arena_held(PyObject *module, PyObject *none);

/* release(): return what is kept to the system. */
PyObject *arena_release(PyObject *module, PyObject *none);

int arena_init(void);
