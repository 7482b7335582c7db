// Memory that is zero, begins on a page, and takes none of the machine's until it is written.
#include <sys/mman.h>

#define PAGE 4096

static void *map_memory(size_t n) {
  size_t *base = mmap(NULL, n + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return NULL;
  *base = n;
  return (char *)base + PAGE;
}

static size_t size_of_memory(void *p) { return p ? *(size_t *)((char *)p - PAGE) : 0; }

static void unmap_memory(void *p) {
  if (p) munmap((char *)p - PAGE, size_of_memory(p) + PAGE);
}
