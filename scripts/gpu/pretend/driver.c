// A pretended driver for the runtime's own calls (backends/gpu/driver.py): its memory is the host's, and whatever is
// asked for is done at once. A captured graph is empty.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "memory.h"

typedef unsigned long long Address;

static int capability(void) { const char *text = getenv("PRETEND_CAPABILITY"); return text ? atoi(text) : 90; }
static int new_handle(void **handle) { *handle = calloc(1, 64); return 0; }

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "pretended", size); return 0; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? capability() / 10 : attribute == 76 ? capability() % 10 : 1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return new_handle(context); }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuMemAlloc_v2(Address *p, size_t n) { *p = (Address)map_memory(n); return *p ? 0 : 2; }
int cuMemFree_v2(Address p) { unmap_memory((void *)p); return 0; }
int cuMemsetD8Async(Address p, unsigned char value, size_t n, void *s) { memset((void *)p, value, n); return 0; }
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { *free_bytes = *total = 80ull << 30; return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned flags) { *p = map_memory(n); return *p ? 0 : 2; }
int cuMemFreeHost(void *p) { unmap_memory(p); return 0; }
int cuMemcpyHtoDAsync_v2(Address to, void *from, size_t n, void *s) { memmove((void *)to, from, n); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t n, void *s) { memmove(to, (void *)from, n); return 0; }
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, void *s) { memmove((void *)to, (void *)from, n); return 0; }
int cuStreamCreate(void **stream, unsigned flags) { return new_handle(stream); }
int cuStreamDestroy_v2(void *stream) { free(stream); return 0; }
int cuStreamSynchronize(void *stream) { return 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { return 0; }
int cuStreamEndCapture(void *stream, void **graph) { return new_handle(graph); }
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) { return new_handle(executable); }
int cuGraphLaunch(void *executable, void *stream) { return 0; }
int cuGraphDestroy(void *graph) { free(graph); return 0; }
int cuGraphExecDestroy(void *executable) { free(executable); return 0; }
int cuGetErrorString(int code, const char **text) { *text = "pretended"; return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
