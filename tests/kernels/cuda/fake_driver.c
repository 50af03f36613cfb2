/* A libcuda.so.1 for machines without a GPU: two devices that have memory and run no kernel, and the
   products of cuBLAS.

   What the host does is done for real, through NVIDIA's own bindings: memory is the host's, copies
   are made at once, and what is queued is reported to a function of the test (see dry_run.py). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_SUPPORTED = 801, NOT_CAPTURED = 900, DEVICES = 2 };
typedef int result;
typedef uint64_t pointer;

/* ``(what, stream or device, a number, kernel parameters)`` of each operation. */
typedef void (*listener)(const char *, uint64_t, uint64_t, void **);
static listener report_to;
static uint64_t memory_left = (uint64_t)1 << 40;
static uint64_t capturing; /* the stream that is being captured */
static int clusters = 16;  /* resident at once */
static int most_blocks = 2;
static int pinned; /* whether the host's memory is */
static result failure; /* of the next cuStreamSynchronize */
static _Thread_local uintptr_t context; /* 1 + the device's number */

void fake_listen(listener f) { report_to = f; }
void fake_memory(uint64_t bytes) { memory_left = bytes; }
void fake_capture(uint64_t stream) { capturing = stream; }
void fake_failure(result error) { failure = error; }
void fake_pinned(int all) { pinned = all; }
void fake_room(int blocks, int of_clusters) { most_blocks = blocks, clusters = of_clusters; }

static void report(const char *what, uint64_t where, uint64_t number, void **values) {
    if (report_to)
        report_to(what, where, number, values);
}

/* Devices and contexts. */
result cuInit(unsigned flags) { return OK; }
result cuDriverGetVersion(int *version) { return *version = 13000, OK; }
result cuDeviceGetCount(int *count) { return *count = DEVICES, OK; }
result cuDeviceGet(int *device, int number) { return *device = number, OK; }
result cuDeviceGetName(char *name, int size, int device) { return snprintf(name, size, "none"), OK; }
result cuDeviceGetUuid(char *uuid, int device) { return memset(uuid, device, 16), OK; }
result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 16: return *value = 132, OK;        /* multiprocessors */
    case 75: return *value = 9, OK;          /* compute capability, major */
    case 76: return *value = 0, OK;          /* and minor */
    case 97: return *value = 227 << 10, OK;  /* shared memory per block, if asked for */
    default: return *value = 1, OK;
    }
}
result cuDevicePrimaryCtxRetain(uintptr_t *c, int device) { return *c = device + 1, OK; }
result cuDevicePrimaryCtxRelease(int device) { return OK; }
result cuCtxGetCurrent(uintptr_t *c) { return *c = context, OK; }
result cuCtxSetCurrent(uintptr_t c) { return context = c, OK; }
result cuCtxPushCurrent(uintptr_t c) { return context = c, OK; }
result cuCtxPopCurrent(uintptr_t *c) { return *c = context, context = 0, OK; }
result cuCtxGetDevice(int *device) { return context ? (*device = (int)context - 1, OK) : 201; }
result cuCtxGetId(uintptr_t c, uint64_t *id) { return *id = c, OK; }

/* Memory: a block begins with its size and its device. */
typedef struct { uint64_t size, device; } head;
result cuMemAlloc(pointer *out, size_t size) {
    if (capturing)
        return NOT_CAPTURED;
    head *block = size <= memory_left ? malloc(sizeof(head) + size) : NULL;
    if (!block)
        return OUT_OF_MEMORY;
    memory_left -= size;
    *block = (head){size, context - 1};
    memset(block + 1, 0x7f, size); /* large numbers, should anything be read before it is written */
    *out = (pointer)(block + 1);
    report("alloc", context - 1, size, NULL);
    return OK;
}
result cuMemFree(pointer p) {
    head *block = (head *)p - 1;
    memory_left += block->size;
    report("free", block->device, block->size, NULL);
    free(block);
    return OK;
}
result cuMemGetInfo(size_t *left, size_t *total) {
    return *left = memory_left, *total = (size_t)1 << 40, OK;
}
result cuPointerGetAttribute(void *out, int attribute, pointer p) {
    if (!p || (attribute == 2 /* memory type */ && !pinned))
        return INVALID;
    if (attribute == 2)
        return *(unsigned *)out = 1, OK;
    *(int *)out = (int)((head *)p - 1)->device;
    return OK;
}
static result copy(pointer to, pointer from, size_t size, uint64_t stream) {
    memcpy((void *)to, (void *)from, size);
    report("copy", stream, size, NULL);
    return OK;
}
result cuMemcpyHtoDAsync(pointer to, void *from, size_t n, uint64_t s) {
    return capturing == s ? NOT_CAPTURED : copy(to, (pointer)from, n, s);
}
result cuMemcpyDtoHAsync(void *to, pointer from, size_t n, uint64_t s) {
    return capturing == s ? NOT_CAPTURED : copy((pointer)to, from, n, s);
}
result cuMemcpyDtoDAsync(pointer to, pointer from, size_t n, uint64_t s) { return copy(to, from, n, s); }
result cuMemsetD8Async(pointer to, unsigned char value, size_t size, uint64_t stream) {
    memset((void *)to, value, size);
    report("clear", stream, size, NULL);
    return OK;
}

/* Streams and events. */
result cuStreamIsCapturing(uint64_t stream, int *status) { return *status = stream == capturing, OK; }
result cuStreamSynchronize(uint64_t stream) {
    result error = failure;
    return failure = OK, report("wait", stream, 0, NULL), capturing == stream ? NOT_CAPTURED : error;
}
result cuEventCreate(uintptr_t *event, unsigned flags) { return *event = 1, OK; }
result cuEventSynchronize(uintptr_t event) { return OK; }
result cuEventElapsedTime(float *ms, uintptr_t a, uintptr_t b) { return *ms = 1, OK; }
result cuEventDestroy(uintptr_t event) { return OK; }
result cuEventRecord(uintptr_t event, uint64_t stream) { return report("record", stream, 0, NULL), OK; }
result cuStreamWaitEvent(uint64_t stream, uintptr_t event, unsigned flags) {
    return report("after", stream, 0, NULL), capturing == stream ? NOT_CAPTURED : OK;
}

/* Kernels: what is loaded is known by the name of its entry. */
result cuLibraryLoadData(char **library, const void *code, void *o, void *v, unsigned n, void *lo, void *lv, unsigned ln) {
    return *library = "", OK;
}
result cuLibraryUnload(char *library) { return OK; }
result cuLibraryGetKernel(char **kernel, char *library, const char *name) { return *kernel = strdup(name), OK; }
result cuKernelSetAttribute(int attribute, int value, char *kernel, int device) { return OK; }
result cuKernelGetAttribute(int *value, int attribute, char *kernel, int device) { return *value = 0, OK; }
result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, char *kernel, int block, size_t shared) {
    return *count = most_blocks, OK;
}
typedef struct {
    unsigned grid[3], block[3], shared;
    uint64_t stream;
    void *attributes;
    unsigned count;
} config;
result cuOccupancyMaxActiveClusters(int *count, char *kernel, config *c) { return *count = clusters, OK; }
static result launch(char *kernel, unsigned x, unsigned y, unsigned block, unsigned shared, uint64_t stream, void **values) {
    if (!x || !y || y > 65535 || !block || block > 1024 || shared > 227 << 10)
        return INVALID;
    report(kernel, stream, (uint64_t)x * y, values);
    return OK;
}
result cuLaunchKernel(char *kernel, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, uint64_t stream, void **values, void **extra) {
    return launch(kernel, x, y, bx, shared, stream, values);
}
result cuLaunchCooperativeKernel(char *kernel, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, uint64_t stream, void **values) {
    /* All blocks must be resident at once. */
    return x * y > 132u * most_blocks ? 720 : launch(kernel, x, y, bx, shared, stream, values);
}
typedef struct {
    int id, unused;
    unsigned size[14];
} attribute;
result cuLaunchKernelEx(config *c, char *kernel, void **values, void **extra) {
    const attribute *a = c->attributes;
    if (c->count != 1 || a->id != 4 /* clusters */ || c->grid[0] % a->size[0])
        return INVALID;
    return launch(kernel, c->grid[0], c->grid[1], c->block[0], c->shared, c->stream, values);
}

static result not_supported(void) { return NOT_SUPPORTED; }
result cuGetErrorName(result error, const char **name) { return *name = "CUDA_ERROR", OK; }
result cuGetErrorString(result error, const char **text) { return *text = "an error", OK; }
result cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, void *found) {
    Dl_info here;
    dladdr((void *)cuInit, &here);
    void *self = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *out = self ? dlsym(self, name) : NULL;
    if (!*out)
        *out = (void *)not_supported;
    if (found)
        *(int *)found = 0;
    return OK;
}
result cuGetProcAddress(const char *name, void **out, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, out, version, flags, NULL);
}

/* cuBLAS, as its manual has it: columns one after the other, C = alpha op(A) op(B) + beta C. */
int cublasCreate_v2(uintptr_t *handle) { return *handle = 1, OK; }
int cublasSetStream_v2(uintptr_t handle, uint64_t stream) { return report("blas", stream, 0, NULL), OK; }
int cublasSetWorkspace_v2(uintptr_t handle, pointer work, size_t size) { return OK; }
int cublasGemmEx(uintptr_t handle, int ta, int tb, int m, int n, int k, const void *alpha,
                 const void *a, int a_kind, int lda, const void *b, int b_kind, int ldb,
                 const void *beta, void *c, int c_kind, int ldc, int compute, int algorithm) {
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m || a_kind != b_kind || a_kind != c_kind)
        return 7;
    if (compute != (a_kind ? 70 : 68) && compute != (a_kind ? 70 : 77))
        return 15;
#define MULTIPLY(T)                                                                               \
    for (int j = 0; j < n; j++)                                                                   \
        for (int i = 0; i < m; i++) {                                                             \
            T sum = 0, *to = (T *)c + j * (size_t)ldc + i;                                        \
            for (int p = 0; p < k; p++)                                                           \
                sum += ((const T *)a)[ta ? i * (size_t)lda + p : p * (size_t)lda + i] *           \
                       ((const T *)b)[tb ? p * (size_t)ldb + j : j * (size_t)ldb + p];            \
            *to = *(const T *)alpha * sum + (*(const T *)beta ? *(const T *)beta * *to : 0);      \
        }
    if (a_kind)
        MULTIPLY(double)
    else
        MULTIPLY(float)
    return OK;
}
