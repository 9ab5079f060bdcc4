/* The functions of string.h: two are instructions of WebAssembly. */
#include <string.h>

void *memcpy(void *to, const void *from, size_t count) {
    return __builtin_memcpy(to, from, count);
}

void *memset(void *to, int value, size_t count) {
    return __builtin_memset(to, value, count);
}

int memcmp(const void *a, const void *b, size_t count) {
    const unsigned char *x = a, *y = b;
    for (; count && *x == *y; count--) {
        x++;
        y++;
    }
    return count ? *x - *y : 0;
}
