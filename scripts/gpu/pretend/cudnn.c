// A pretended cuDNN that says yes to everything. SYMBOLS(S) is given by pretend.py: what ONNX Runtime looks up.
#include <stdlib.h>
#include <string.h>

size_t cudnnGetVersion(void) { return 92801; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { return status ? "pretended" : "ok"; }
void cudnnGetLastErrorString(char *text, size_t n) { if (n) text[0] = 0; }
int cudnnCreate(void **handle) { *handle = calloc(1, 4096); return 0; }
int cudnnBackendCreateDescriptor(int type, void **descriptor) { *descriptor = calloc(1, 4096); return 0; }
int cudnnGetStream(void *handle, void **stream) { *stream = 0; return 0; }
int cudnnBackendGetAttribute(void *d, int name, int type, long n, long *count, void *values) {
  if (count) *count = 1;
  if (values && n > 0 && type != 15) memset(values, 0, 8);
  return 0;
}
#define S(name) __attribute__((weak)) int name() { return 0; }
SYMBOLS(S)
