// A pretended GPU for ONNX Runtime's CUDA provider: its memory is the host's, and kernels are not launched.
// Preloaded, it stands before libcudart and cuBLAS. What "runs" on it computes nothing; what ONNX Runtime decides on
// the host, it decides as on a GPU of the compute capability in PRETEND_CAPABILITY (90 for 9.0).
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>
#include "memory.h"
#undef cudaGetDeviceProperties

// what scripts.gpu.pretend reads: allocations so far, bytes that are allocated, work that was launched, waits
long pretended_mallocs, pretended_bytes, pretended_launches, pretended_graph_launches, pretended_waits;

static int capability(void) { const char *text = getenv("PRETEND_CAPABILITY"); return text ? atoi(text) : 90; }

cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13010; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "pretended");
  p->major = capability() / 10, p->minor = capability() % 10;
  p->totalGlobalMem = 80ull << 30, p->l2CacheSize = 50 << 20, p->totalConstMem = 65536;
  p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 231424, p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->warpSize = 32, p->reservedSharedMemPerBlock = 1024;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->multiProcessorCount = 132;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->concurrentKernels = p->unifiedAddressing = p->memoryPoolsSupported = 1, p->asyncEngineCount = 3;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 231424; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    default: *value = 1;
  }
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = *total = 80ull << 30; return cudaSuccess; }

// memory
cudaError_t cudaMalloc(void **p, size_t n) {
  *p = map_memory(n);
  pretended_mallocs++, pretended_bytes += n;
  return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMallocHost(void **p, size_t n) { *p = map_memory(n); return *p ? cudaSuccess : cudaErrorMemoryAllocation; }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return cudaMallocHost(p, n); }
cudaError_t cudaMallocFromPoolAsync(void **p, size_t n, cudaMemPool_t pool, cudaStream_t s) { return cudaMalloc(p, n); }
cudaError_t cudaFree(void *p) { pretended_bytes -= size_of_memory(p); unmap_memory(p); return cudaSuccess; }
cudaError_t cudaFreeHost(void *p) { unmap_memory(p); return cudaSuccess; }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return cudaFree(p); }
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
  memmove(to, from, n);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
  return cudaMemcpy(to, from, n, kind);
}
cudaError_t cudaMemset(void *p, int value, size_t n) { memset(p, value, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) { return cudaMemset(p, value, n); }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}

// streams, events and kernels; what else is called on them only succeeds (succeeds.c)
static int new_handle(void **handle) { *handle = calloc(1, 4096); return 0; }
cudaError_t cudaStreamCreate(cudaStream_t *s) { return new_handle((void **)s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return new_handle((void **)s); }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return new_handle((void **)e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return new_handle((void **)e); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024, a->binaryVersion = a->ptxVersion = capability();
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned x) {
  *n = 1;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data) { f(data); return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { pretended_waits++; return cudaSuccess; }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) {
  pretended_launches++;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) {
  return cudaLaunchKernel(f, g, b, a, n, s);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
  pretended_launches++;
  return cudaSuccess;
}
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) {
  return cudaLaunchKernel(f, g, b, a, n, s);
}
int __cudaGetKernel(void **kernel, const void *f) { *kernel = (void *)f; return 0; }

// captured graphs, which are empty
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) { return new_handle((void **)graph); }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
  return new_handle((void **)executable);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t s) { pretended_graph_launches++; return cudaSuccess; }

// cuBLAS
static int product(void) { pretended_launches++; return 0; }
#define PRODUCT(name) int name() { return product(); }
PRODUCT(cublasGemmEx) PRODUCT(cublasSgemm_v2) PRODUCT(cublasGemmStridedBatchedEx) PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasGemmBatchedEx) PRODUCT(cublasSgemmBatched) PRODUCT(cublasLtMatmul)
int cublasCreate_v2(void **handle) { return new_handle(handle); }
int cublasLtCreate(void **handle) { return new_handle(handle); }
int cublasLtMatmulDescCreate(void **handle) { return new_handle(handle); }
int cublasLtMatrixLayoutCreate(void **handle) { return new_handle(handle); }
int cublasLtMatmulPreferenceCreate(void **handle) { return new_handle(handle); }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *y, void *p, int n, void *found, int *count) {
  memset(found, 0, 96), *count = 1;
  return 0;
}
