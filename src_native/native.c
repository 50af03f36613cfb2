/* The extension: compiled kernels as Python objects, and programs of them that run on the team. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <structmember.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fastrnn_ARRAY_API
#include <numpy/arrayobject.h>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "arena.h"
#include "team.h"

/* kernels.h, made by setup.py, has a line K(isa, symbol, "name", "signature") for each precompiled
   kernel. */
#define K(isa, symbol, name, signature) \
    void fastrnn_##symbol(const int64_t *, int64_t, int64_t, void *);
#include "kernels.h"
#undef K
static const struct {
    const char *isa, *name, *signature;
    entry_t entry;
} PRECOMPILED[] = {
#define K(isa, symbol, name, signature) {#isa, name, signature, fastrnn_##symbol},
#include "kernels.h"
#undef K
    {0, 0, 0, 0}};

/* Kernel(name, signature, address, owner): what is at the address takes its arguments in slots.

   The signature, see kernels/signature.py, has a letter for each number (q int64, i int32, Q uint64, I
   uint32, H uint16, h int16, b int8, ? bool, f float32, d float64), a letter and the number of axes for an
   array, and parentheses around what comes in a tuple. A number takes one slot; an array its address
   and its sizes. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    entry_t entry;
    PyObject *name, *owner; /* the owner keeps the machine code alive; None if it is ours */
    char *signature;
    int slots;
} kernel_t;

static int type_of(char letter) {
    switch (letter) {
    case 'q': return NPY_INT64;
    case 'i': return NPY_INT32;
    case 'Q': return NPY_UINT64;
    case 'I': return NPY_UINT32;
    case 'H': return NPY_UINT16;
    case 'h': return NPY_INT16;
    case 'b': return NPY_INT8;
    case '?': return NPY_BOOL;
    case 'f': return NPY_FLOAT32;
    default: return NPY_FLOAT64;
    }
}

static int fill_number(char letter, PyObject *o, int64_t *slot) {
    if (letter == 'f' || letter == 'd') {
        double value = PyFloat_AsDouble(o);
        float single = (float)value;
        if (value == -1.0 && PyErr_Occurred()) return -1;
        *slot = 0;
        if (letter == 'f') memcpy(slot, &single, sizeof single);
        else memcpy(slot, &value, sizeof value);
    } else if (letter == 'Q') {
        PyObject *index = PyNumber_Index(o); /* an int or one of NumPy's */
        *slot = index ? (int64_t)PyLong_AsUnsignedLongLong(index) : -1;
        Py_XDECREF(index);
    } else if (letter == '?') {
        *slot = PyObject_IsTrue(o);
    } else {
        *slot = PyLong_AsLongLong(o);
    }
    return *slot == -1 && PyErr_Occurred() ? -1 : 0;
}

static int fill_array(const kernel_t *k, char letter, int axes, PyObject *o, int64_t *slots) {
    PyArrayObject *a = (PyArrayObject *)o;
    int type = type_of(letter);
    if (!PyArray_Check(o) || PyArray_NDIM(a) != axes || !PyArray_IS_C_CONTIGUOUS(a) ||
        (PyArray_TYPE(a) != type && !PyArray_EquivTypenums(PyArray_TYPE(a), type)) ||
        !PyArray_ISNOTSWAPPED(a) || !PyArray_ISALIGNED(a)) {
        PyErr_Format(PyExc_TypeError, "%U: expected a C-contiguous array '%c%d', got %R", k->name,
                     letter, axes, (PyObject *)Py_TYPE(o));
        return -1;
    }
    slots[0] = (int64_t)(intptr_t)PyArray_DATA(a);
    for (int i = 0; i < axes; i++) slots[1 + i] = PyArray_DIM(a, i);
    return 0;
}

/* The items as slots, up to the end of the signature or of a tuple in it; where that is, or NULL
   with an exception. */
static const char *fill(const kernel_t *k, const char *s, PyObject *const *items, Py_ssize_t n,
                        int64_t **slots) {
    Py_ssize_t i = 0;
    while (*s && *s != ')') {
        if (i == n) break;
        PyObject *o = items[i++];
        if (*s == '(') {
            if (!PyTuple_Check(o)) {
                PyErr_Format(PyExc_TypeError, "%U: expected a tuple, got %R", k->name,
                             (PyObject *)Py_TYPE(o));
                return 0;
            }
            s = fill(k, s + 1, ((PyTupleObject *)o)->ob_item, PyTuple_GET_SIZE(o), slots);
            if (!s) return 0;
            s++;
        } else if (s[1] >= '1' && s[1] <= '9') {
            int axes = s[1] - '0';
            if (fill_array(k, *s, axes, o, *slots)) return 0;
            *slots += 1 + axes;
            s += 2;
        } else {
            if (fill_number(*s, o, *slots)) return 0;
            *slots += 1;
            s++;
        }
    }
    if (i != n || (*s && *s != ')')) {
        PyErr_Format(PyExc_TypeError, "%U: arguments do not fit the signature %s", k->name,
                     k->signature);
        return 0;
    }
    return s;
}

static int fill_all(const kernel_t *k, PyObject *const *items, Py_ssize_t n, int64_t *slots) {
    return fill(k, k->signature, items, n, &slots) ? 0 : -1;
}

static int count_slots(const char *s) {
    int count = 0;
    for (; *s; s++)
        if (*s >= '1' && *s <= '9') count += *s - '0';
        else if (*s != '(' && *s != ')') count++;
    return count;
}

static int is_signature(const char *s) {
    int depth = 0;
    for (const char *at = s; *at; at++) {
        if (*at == '(') depth++;
        else if (*at == ')' && --depth < 0) return 0;
        else if (*at >= '1' && *at <= '9' && (at == s || !strchr("qiQIHhb?fd", at[-1]))) return 0;
        else if (!strchr("()123456789qiQIHhb?fd", *at)) return 0;
    }
    return depth == 0;
}

#define MOST_SLOTS 256

/* kernel(*arguments) or kernel(*arguments, first, last): now, on this thread. */
static PyObject *kernel_call(PyObject *self, PyObject *const *args, size_t flags, PyObject *names) {
    const kernel_t *k = (kernel_t *)self;
    Py_ssize_t n = PyVectorcall_NARGS(flags), declared = 0;
    int64_t slots[MOST_SLOTS], first = 0, last = 0;
    int depth = 0;
    if (names && PyTuple_GET_SIZE(names)) {
        PyErr_Format(PyExc_TypeError, "%U takes no keyword arguments", k->name);
        return 0;
    }
    for (const char *s = k->signature; *s; s++) {
        if (*s == ')') depth--;
        else if (!depth && !(*s >= '1' && *s <= '9')) declared++;
        if (*s == '(') depth++;
    }
    if (n == declared + 2) {
        n -= 2;
        first = PyLong_AsLongLong(args[n]);
        last = PyLong_AsLongLong(args[n + 1]);
        if (PyErr_Occurred()) return 0;
    }
    if (fill_all(k, args, n, slots)) return 0;
    Py_BEGIN_ALLOW_THREADS
    call_entry(k->entry, slots, first, last);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyTypeObject kernel_type;

static PyObject *new_kernel(PyObject *name, const char *signature, entry_t entry, PyObject *owner) {
    if (!is_signature(signature) || count_slots(signature) > MOST_SLOTS) {
        PyErr_Format(PyExc_ValueError, "%U: bad signature %s", name, signature);
        return 0;
    }
    kernel_t *k = PyObject_New(kernel_t, &kernel_type);
    if (!k) return 0;
    k->call = kernel_call;
    k->entry = entry;
    k->name = Py_NewRef(name);
    k->owner = Py_NewRef(owner);
    k->slots = count_slots(signature);
    k->signature = PyMem_Malloc(strlen(signature) + 1);
    if (!k->signature) {
        Py_DECREF(k);
        return PyErr_NoMemory();
    }
    strcpy(k->signature, signature);
    return (PyObject *)k;
}

static PyObject *kernel_new(PyTypeObject *type, PyObject *args, PyObject *options) {
    PyObject *name, *owner;
    const char *signature;
    unsigned long long address;
    (void)type, (void)options;
    if (!PyArg_ParseTuple(args, "UsKO", &name, &signature, &address, &owner)) return 0;
    return new_kernel(name, signature, (entry_t)(uintptr_t)address, owner);
}

static void kernel_dealloc(PyObject *self) {
    kernel_t *k = (kernel_t *)self;
    Py_XDECREF(k->name);
    Py_XDECREF(k->owner);
    PyMem_Free(k->signature);
    PyObject_Free(self);
}

static PyObject *kernel_repr(PyObject *self) {
    const kernel_t *k = (kernel_t *)self;
    return PyUnicode_FromFormat("<kernel %U(%s)%s>", k->name, k->signature,
                                k->owner == Py_None ? "" : ", compiled at run time");
}

static PyMemberDef kernel_members[] = {
    {"name", T_OBJECT, offsetof(kernel_t, name), READONLY, 0},
    {"owner", T_OBJECT, offsetof(kernel_t, owner), READONLY, 0},
    {"signature", T_STRING, offsetof(kernel_t, signature), READONLY, 0},
    {0}};

static PyTypeObject kernel_type = {
    PyVarObject_HEAD_INIT(0, 0).tp_name = "fastrnn._native.Kernel",
    .tp_basicsize = sizeof(kernel_t),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(kernel_t, call),
    .tp_call = PyVectorcall_Call,
    .tp_new = kernel_new,
    .tp_dealloc = kernel_dealloc,
    .tp_repr = kernel_repr,
    .tp_members = kernel_members,
};

/* precompiled(isa, name): the kernel, or None. */
static PyObject *precompiled(PyObject *module, PyObject *args) {
    const char *isa;
    PyObject *name;
    (void)module;
    if (!PyArg_ParseTuple(args, "sU", &isa, &name)) return 0;
    for (int i = 0; PRECOMPILED[i].isa; i++)
        if (!strcmp(PRECOMPILED[i].isa, isa) &&
            !PyUnicode_CompareWithASCIIString(name, PRECOMPILED[i].name))
            return new_kernel(name, PRECOMPILED[i].signature, PRECOMPILED[i].entry, Py_None);
    Py_RETURN_NONE;
}

/* names(isa): of its precompiled kernels. */
static PyObject *names(PyObject *module, PyObject *isa) {
    PyObject *out = PyList_New(0);
    (void)module;
    for (int i = 0; out && PRECOMPILED[i].isa; i++) {
        if (PyUnicode_CompareWithASCIIString(isa, PRECOMPILED[i].isa)) continue;
        PyObject *name = PyUnicode_FromString(PRECOMPILED[i].name);
        if (!name || PyList_Append(out, name)) Py_CLEAR(out);
        Py_XDECREF(name);
    }
    return out;
}

#if defined(__x86_64__) && defined(__GNUC__)
/* Whether the CPU has the tile instructions for bfloat16, and Linux lets this process use them: it
   must be asked, once and before their first use. */
static int may_use_amx(void) {
#ifdef __linux__
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return 0; /* AMX-BF16 and AMX-TILE */
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    return 0;
#endif
}
#endif

/* supports(isa): whether this CPU can run it. */
static PyObject *supports(PyObject *module, PyObject *isa) {
    int yes = !PyUnicode_CompareWithASCIIString(isa, "generic");
    (void)module;
#if defined(__x86_64__) && defined(__GNUC__)
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (!PyUnicode_CompareWithASCIIString(isa, "avx2")) yes = avx2;
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512cd");
    if (!PyUnicode_CompareWithASCIIString(isa, "avx512")) yes = avx512;
    int bf16 = avx512 && __builtin_cpu_supports("avx512bf16") &&
               __builtin_cpu_supports("avx512vnni");
    if (!PyUnicode_CompareWithASCIIString(isa, "avx512_bf16")) yes = bf16;
    if (!PyUnicode_CompareWithASCIIString(isa, "amx")) yes = bf16 && may_use_amx();
#endif
    return PyBool_FromLong(yes);
}

/* A program: phases one after the other, each a sequence of items. An item is a task (kernel,
   arguments, first, last); or a job (kernel, arguments, items, cost, group), whose range(items) is
   divided by the cost: a thread that starts late or runs slowly then does fewer pieces. A piece is
   a number of groups of items or, if there are more pieces than groups, an equal part of one. */
typedef struct {
    char *memory;
    phase_t *phases;
    Py_ssize_t count;
} program_t;

/* `threads` and the least cost of a piece, for jobs. */
typedef struct {
    int64_t threads, min_work;
} division_t;

typedef struct {
    const kernel_t *kernel;
    PyObject *arguments;
    int64_t first, last, pieces;
} item_t;

static int read_item(item_t *item, PyObject *given, division_t by) {
    Py_ssize_t n = PyTuple_Check(given) ? PyTuple_GET_SIZE(given) : 0;
    PyObject **field = ((PyTupleObject *)given)->ob_item;
    if ((n != 4 && n != 5) || !Py_IS_TYPE(field[0], &kernel_type) || !PyTuple_Check(field[1])) {
        PyErr_SetString(PyExc_TypeError, "expected a task (kernel, arguments, first, last) or a "
                                         "job (kernel, arguments, items, cost, group)");
        return -1;
    }
    item->kernel = (kernel_t *)field[0];
    item->arguments = field[1];
    item->pieces = 1;
    if (n == 4) {
        item->first = PyLong_AsLongLong(field[2]);
        item->last = PyLong_AsLongLong(field[3]);
    } else {
        double pieces = PyFloat_AsDouble(field[3]) / (double)by.min_work;
        int64_t group = PyLong_AsLongLong(field[4]);
        item->first = 0;
        item->last = PyLong_AsLongLong(field[2]);
        if (by.threads > 1 && pieces >= 2 && item->last > 1) {
            item->pieces = pieces < 4 * by.threads ? (int64_t)pieces : 4 * by.threads;
            if (item->pieces > item->last) item->pieces = item->last;
            if (group > 1 && group <= item->last) {
                int64_t groups = item->last / group;
                item->pieces = groups * (item->pieces > groups ? item->pieces / groups : 1);
            }
        }
    }
    return PyErr_Occurred() ? -1 : 0;
}

static int count_tasks(PyObject *phases, division_t by, int64_t *tasks, int64_t *slots) {
    item_t item;
    for (Py_ssize_t p = 0; p < PyList_GET_SIZE(phases); p++) {
        PyObject *phase = PyList_GET_ITEM(phases, p);
        if (!PyList_Check(phase)) {
            PyErr_SetString(PyExc_TypeError, "a phase must be a list");
            return -1;
        }
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(phase); i++) {
            if (read_item(&item, PyList_GET_ITEM(phase, i), by)) return -1;
            *tasks += item.pieces;
            *slots += item.kernel->slots;
        }
    }
    return 0;
}

static int make_program(program_t *program, PyObject *phases, division_t by) {
    int64_t tasks = 0, slot_count = 0;
    item_t item;
    program->memory = 0;
    if (count_tasks(phases, by, &tasks, &slot_count)) return -1;
    program->count = PyList_GET_SIZE(phases);
    program->memory = PyMem_RawMalloc(program->count * sizeof(phase_t) + tasks * sizeof(task_t) +
                                      slot_count * sizeof(int64_t) + 64);
    if (!program->memory) return PyErr_NoMemory(), -1;
    program->phases = (phase_t *)(((uintptr_t)program->memory + 63) / 64 * 64);
    task_t *task = (task_t *)(program->phases + program->count);
    int64_t *slots = (int64_t *)(task + tasks);
    for (Py_ssize_t p = 0; p < program->count; p++) {
        PyObject *phase = PyList_GET_ITEM(phases, p);
        program->phases[p].tasks = task;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(phase); i++) {
            if (read_item(&item, PyList_GET_ITEM(phase, i), by) ||
                fill_all(item.kernel, ((PyTupleObject *)item.arguments)->ob_item,
                         PyTuple_GET_SIZE(item.arguments), slots))
                return -1;
            int64_t size = item.last - item.first;
            for (int64_t j = 0; j < item.pieces; j++)
                *task++ = (task_t){item.kernel->entry, slots, item.first + size * j / item.pieces,
                                   item.first + size * (j + 1) / item.pieces};
            slots += item.kernel->slots;
        }
        program->phases[p].count = task - program->phases[p].tasks;
    }
    return 0;
}

/* Notice once that PyTorch was imported. */
static void look_for_torch(void) {
    static int found;
    PyObject *modules = PyImport_GetModuleDict();
    if (!found && modules && PyDict_GetItemString(modules, "torch._C")) {
        found = 1;
        team_use_openmp();
    }
}

static int run_program(program_t *program, int threads, int together) {
    for (Py_ssize_t p = 0; p < program->count; p++) {
        phase_t *phase = program->phases + p;
        atomic_init(&phase->next, 0);
        atomic_init(&phase->done, 0);
        atomic_init(&phase->ended, 0);
        atomic_init(&phase->sleepers, 0);
    }
    return team_run(program->phases, program->count, threads, together);
}

static PyObject *cannot_start(int threads) {
    return PyErr_Format(PyExc_RuntimeError, "cannot start %d threads", threads);
}

/* run(program, threads, min_work, together): without the GIL from the first task to the last. */
static PyObject *run(PyObject *module, PyObject *args) {
    int threads, together, failed;
    long long min_work;
    PyObject *phases;
    program_t program;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!iLp", &PyList_Type, &phases, &threads, &min_work, &together))
        return 0;
    look_for_torch();
    if (make_program(&program, phases, (division_t){threads, min_work})) {
        PyMem_RawFree(program.memory);
        return 0;
    }
    Py_BEGIN_ALLOW_THREADS
    failed = run_program(&program, threads, together);
    Py_END_ALLOW_THREADS
    PyMem_RawFree(program.memory);
    if (failed) return cannot_start(threads);
    Py_RETURN_NONE;
}

/* Plan(program, threads, min_work, together, long, x, y, initial, final): a program that is kept, for inputs
   of one shape. x [N, I], y [N, O], and the states before and after it, [L, B, H] each, are arrays
   that the program refers to. `long`: worth releasing the GIL.

   plan(x, state, unbatched) copies its arguments there, runs, and returns copies of the results:
   (y, state), a state of several arrays as a tuple. It returns None for arguments that are not
   plain arrays of the right type and size or hold a number that is not finite, or while another
   thread is in it: then the caller takes the way that checks and explains. */
#define MOST_STATES 4
typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    program_t program;
    PyObject *kept; /* whatever the program refers to */
    PyArrayObject *x, *y, *initial[MOST_STATES], *final[MOST_STATES];
    int states, threads, together, is_long, busy;
} plan_t;

/* Whether all numbers are finite; copies them. */
static int copy_finite(PyArrayObject *to, PyArrayObject *from) {
    Py_ssize_t n = PyArray_SIZE(to);
    uint64_t infinite = 0;
    if (PyArray_ITEMSIZE(to) == 4) {
        const uint32_t *source = PyArray_DATA(from);
        uint32_t *target = PyArray_DATA(to), found = 0;
        for (Py_ssize_t i = 0; i < n; i++) {
            uint32_t bits = source[i];
            found |= (bits & 0x7f800000u) == 0x7f800000u;
            target[i] = bits;
        }
        infinite = found;
    } else {
        const uint64_t *source = PyArray_DATA(from);
        uint64_t *target = PyArray_DATA(to);
        for (Py_ssize_t i = 0; i < n; i++) {
            uint64_t bits = source[i];
            infinite |= (bits & 0x7ff0000000000000u) == 0x7ff0000000000000u;
            target[i] = bits;
        }
    }
    return !infinite;
}

static int is_plain(PyObject *o, PyArrayObject *like, int axes) {
    PyArrayObject *a = (PyArrayObject *)o;
    return Py_IS_TYPE(o, &PyArray_Type) && PyArray_TYPE(a) == PyArray_TYPE(like) &&
           PyArray_IS_C_CONTIGUOUS(a) && PyArray_ISNOTSWAPPED(a) && PyArray_ISALIGNED(a) &&
           PyArray_SIZE(a) == PyArray_SIZE(like) &&
           (axes ? PyArray_NDIM(a) == axes : PyArray_NDIM(a) > 0) &&
           PyArray_DIM(a, PyArray_NDIM(a) - 1) == PyArray_DIM(like, PyArray_NDIM(like) - 1);
}

static PyObject *copy_out(PyArrayObject *from, int axes, const npy_intp *sizes) {
    PyObject *out = PyArray_SimpleNew(axes, sizes, PyArray_TYPE(from));
    if (out) memcpy(PyArray_DATA((PyArrayObject *)out), PyArray_DATA(from), PyArray_NBYTES(from));
    return out;
}

static int plan_inputs(plan_t *p, PyObject *x, PyObject *state, int unbatched) {
    int axes = unbatched ? 2 : 3;
    if (!is_plain(x, p->x, 0) || !copy_finite(p->x, (PyArrayObject *)x)) return 0;
    for (int i = 0; i < p->states; i++) {
        PyArrayObject *to = p->initial[i];
        if (state == Py_None) {
            memset(PyArray_DATA(to), 0, PyArray_NBYTES(to));
            continue;
        }
        PyObject *part = state;
        if (p->states > 1) {
            if (!PyTuple_Check(state) || PyTuple_GET_SIZE(state) != p->states) return 0;
            part = PyTuple_GET_ITEM(state, i);
        }
        if (!is_plain(part, to, axes) ||
            PyArray_DIM((PyArrayObject *)part, 0) != PyArray_DIM(to, 0) ||
            !copy_finite(to, (PyArrayObject *)part))
            return 0;
    }
    return 1;
}

static PyObject *plan_outputs(plan_t *p, int axes, const npy_intp *sizes, int unbatched) {
    PyObject *y = copy_out(p->y, axes, sizes), *state = p->states > 1 ? PyTuple_New(p->states) : 0;
    for (int i = 0; i < p->states; i++) {
        npy_intp *d = PyArray_DIMS(p->final[i]), flat[2] = {d[0], d[2]};
        PyObject *part = unbatched ? copy_out(p->final[i], 2, flat) : copy_out(p->final[i], 3, d);
        if (p->states > 1 && state && part) PyTuple_SET_ITEM(state, i, part);
        else if (p->states > 1) Py_XDECREF(part);
        else state = part;
        if (!part) Py_CLEAR(state);
    }
    PyObject *out = y && state ? PyTuple_Pack(2, y, state) : 0;
    Py_XDECREF(y);
    Py_XDECREF(state);
    return out;
}

static PyObject *plan_call(PyObject *self, PyObject *const *args, size_t flags, PyObject *names) {
    plan_t *p = (plan_t *)self;
    int failed;
    if (PyVectorcall_NARGS(flags) != 3 || (names && PyTuple_GET_SIZE(names))) {
        PyErr_SetString(PyExc_TypeError, "plan(x, state, unbatched)");
        return 0;
    }
    int unbatched = args[2] == Py_True;
    /* Set until the results are copied: an allocation may run other Python code. */
    if (p->busy) Py_RETURN_NONE;
    p->busy = 1;
    if (!plan_inputs(p, args[0], args[1], unbatched)) {
        p->busy = 0;
        Py_RETURN_NONE;
    }
    /* Read now, as the caller's array may get another shape while the GIL is released. */
    npy_intp sizes[NPY_MAXDIMS];
    int axes = PyArray_NDIM((PyArrayObject *)args[0]);
    memcpy(sizes, PyArray_DIMS((PyArrayObject *)args[0]), axes * sizeof *sizes);
    sizes[axes - 1] = PyArray_DIM(p->y, 1);
    if (p->is_long) {
        look_for_torch();
        Py_BEGIN_ALLOW_THREADS
        failed = run_program(&p->program, p->threads, p->together);
        Py_END_ALLOW_THREADS
    } else {
        failed = run_program(&p->program, p->threads, p->together);
    }
    PyObject *out = failed ? cannot_start(p->threads) : plan_outputs(p, axes, sizes, unbatched);
    p->busy = 0;
    return out;
}

static void plan_dealloc(PyObject *self) {
    plan_t *p = (plan_t *)self;
    PyMem_RawFree(p->program.memory);
    Py_XDECREF(p->kept);
    PyObject_Free(self);
}

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *options) {
    PyObject *phases, *initial, *final, *x, *y;
    int threads, together, is_long;
    long long min_work;
    (void)options;
    if (!PyArg_ParseTuple(args, "O!iLppO!O!O!O!", &PyList_Type, &phases, &threads, &min_work,
                          &together, &is_long, &PyArray_Type, &x, &PyArray_Type, &y,
                          &PyTuple_Type, &initial, &PyTuple_Type, &final))
        return 0;
    if (PyTuple_GET_SIZE(initial) > MOST_STATES ||
        PyTuple_GET_SIZE(initial) != PyTuple_GET_SIZE(final)) {
        PyErr_SetString(PyExc_ValueError, "initial and final must be tuples of up to 4 arrays");
        return 0;
    }
    plan_t *p = PyObject_New(plan_t, type);
    if (!p) return 0;
    p->call = plan_call;
    p->kept = Py_NewRef(args);
    p->x = (PyArrayObject *)x;
    p->y = (PyArrayObject *)y;
    p->states = (int)PyTuple_GET_SIZE(initial);
    for (int i = 0; i < p->states; i++) {
        p->initial[i] = (PyArrayObject *)PyTuple_GET_ITEM(initial, i);
        p->final[i] = (PyArrayObject *)PyTuple_GET_ITEM(final, i);
    }
    p->threads = threads;
    p->together = together;
    p->is_long = is_long;
    p->busy = 0;
    if (make_program(&p->program, phases, (division_t){threads, min_work})) Py_CLEAR(p);
    return (PyObject *)p;
}

static PyTypeObject plan_type = {
    PyVarObject_HEAD_INIT(0, 0).tp_name = "fastrnn._native.Plan",
    .tp_basicsize = sizeof(plan_t),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(plan_t, call),
    .tp_call = PyVectorcall_Call,
    .tp_new = plan_new,
    .tp_dealloc = plan_dealloc,
};

static PyMethodDef methods[] = {
    {"precompiled", precompiled, METH_VARARGS, 0},
    {"names", names, METH_O, 0},
    {"supports", supports, METH_O, 0},
    {"run", run, METH_VARARGS, 0},
    {"empty", arena_empty, METH_VARARGS, 0},
    {"held", arena_held, METH_NOARGS, 0},
    {"release", arena_release, METH_NOARGS, 0},
    {0}};

static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_native", 0, -1, methods,
                                        0, 0, 0, 0};

PyMODINIT_FUNC PyInit__native(void) {
    import_array();
    team_init();
    PyObject *module = PyModule_Create(&module_definition);
    if (module && (PyType_Ready(&kernel_type) || PyType_Ready(&plan_type) || arena_init() ||
                   PyModule_AddObjectRef(module, "Kernel", (PyObject *)&kernel_type) ||
                   PyModule_AddObjectRef(module, "Plan", (PyObject *)&plan_type)))
        Py_CLEAR(module);
    return module;
}
