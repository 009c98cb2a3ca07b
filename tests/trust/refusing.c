/* Loaded before the C library (LD_PRELOAD): refuses a call that touches files, or that asks for memory, as a full disk,
 * a broken one or a full memory does. Only calls of the thread that asked for it are counted and refused.
 *
 *     refuse(kinds, at, onwards)   refuse the call with the number `at`, from 0, and with `onwards` all that follow and
 *                                  take room; -1 refuses none. Kinds: FILES for files, MEMORY for memory.
 *     allow()                      refuse nothing any more; how many calls there were.
 *     refused()                    the name of the first call that was refused, or "".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES = 1, MEMORY = 2 };

static struct {
    int kinds, onwards;
    long at, count;
    pthread_t thread;
    const char *name;
} state;

void refuse(int kinds, long at, int onwards) {
    state.onwards = onwards;
    state.at = at;
    state.count = 0;
    state.name = "";
    state.thread = pthread_self();
    state.kinds = kinds;
}

long allow(void) {
    state.kinds = 0;
    return state.count;
}

const char *refused(void) { return state.name ? state.name : ""; }

/* Whether this call is to fail; what gives room back, or reads, does so only by its own number. */
static int fails(int kind, const char *name, int takes_room) {
    if (!(state.kinds & kind) || !pthread_equal(pthread_self(), state.thread))
        return 0;
    long number = state.count++;
    if (state.at < 0 || number < state.at || (number > state.at && !(state.onwards && takes_room)))
        return 0;
    if (!*state.name)
        state.name = name;
    return 1;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) \
        real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define CALL(result, name, types, arguments, code, room, failed) \
    result name types { \
        REAL(result, name, UNPACK types); \
        if (fails(FILES, #name, room)) { \
            errno = code; \
            return failed; \
        } \
        return real arguments; \
    }
#define UNPACK(...) __VA_ARGS__

CALL(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), ENOSPC, 1, -1)
CALL(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), ENOSPC, 1, -1)
CALL(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size), EIO, 0, -1)
CALL(int, fsync, (int fd), (fd), EIO, 1, -1)
CALL(int, flock, (int fd, int how), (fd, how), ENOLCK, 0, -1)
CALL(int, fchmod, (int fd, mode_t mode), (fd, mode), EPERM, 0, -1)
CALL(int, chmod, (const char *path, mode_t mode), (path, mode), EPERM, 0, -1)
CALL(int, ftruncate64, (int fd, off64_t size), (fd, size), ENOSPC, 1, -1)
CALL(off64_t, lseek64, (int fd, off64_t to, int from), (fd, to, from), EIO, 0, -1)
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), ENOSPC, 1, -1)
CALL(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), EIO, 0, -1)
CALL(int, rename, (const char *from, const char *to), (from, to), EIO, 0, -1)
CALL(int, unlink, (const char *path), (path), EIO, 0, -1)
CALL(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), EIO, 0, -1)
CALL(int, rmdir, (const char *path), (path), EIO, 0, -1)
CALL(int, stat64, (const char *path, struct stat64 *found), (path, found), EIO, 0, -1)
CALL(int, lstat64, (const char *path, struct stat64 *found), (path, found), EIO, 0, -1)
CALL(int, fstat64, (int fd, struct stat64 *found), (fd, found), EIO, 0, -1)
CALL(int, access, (const char *path, int how), (path, how), EACCES, 0, -1)
CALL(DIR *, opendir, (const char *path), (path), EIO, 0, NULL)
CALL(DIR *, fdopendir, (int fd), (fd), EIO, 0, NULL)

/* A file that is opened to be read takes no room. */
static int opens(const char *name, int flags) {
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    if (!fails(FILES, name, writes))
        return 1;
    errno = writes ? ENOSPC : EIO;
    return 0;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return opens(#name, flags) ? real(path, flags, mode) : -1; \
    }
OPEN(open)
OPEN(open64)

int openat64(int folder, const char *path, int flags, ...) {
    REAL(int, openat64, int, const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opens("openat64", flags) ? real(folder, path, flags, mode) : -1;
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t from) {
    REAL(void *, mmap64, void *, size_t, int, int, int, off64_t);
    if (fd >= 0 && fails(FILES, "mmap64", 0)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(at, size, protection, flags, fd, from);
}

/* What torch takes the memory of its tensors with. */
int posix_memalign(void **found, size_t alignment, size_t size) {
    REAL(int, posix_memalign, void **, size_t, size_t);
    return fails(MEMORY, "posix_memalign", 1) ? ENOMEM : real(found, alignment, size);
}
