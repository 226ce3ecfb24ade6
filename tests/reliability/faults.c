/* Faults of a disk, between a process and libc: LD_PRELOAD it, then call faults_arm.
 *
 * It counts writes, flushes, truncations, renames and removals of files below one folder. At the k-th it
 *   mode 1  ends the process as a power cut would, half of a write done, what was not flushed cut off the file's end;
 *   mode 2  fails that call and every later one (EIO, or ENOSPC for writes), until a file named "healed" is in the folder;
 *   mode 3  fails every flush from then on.
 * The count so far stands in a file named "count" in the folder, when the process asks for it by faults_count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define FILES 4096

static char folder[PATH_MAX];
static char healed[PATH_MAX + 8];
static size_t folder_length;
static int mode, failure;
static long at, seen;
static off_t flushed[FILES];

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

void faults_arm(const char *where, int how, long when, int error) {
    snprintf(folder, sizeof folder, "%s", where);
    snprintf(healed, sizeof healed, "%s/healed", where);
    folder_length = strlen(folder);
    mode = how; at = when; failure = error; seen = 0;
    for (int fd = 0; fd < FILES; fd++) flushed[fd] = -1;
}

long faults_count(void) { return seen; }

static int ours(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder_length || fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    size_t end = strlen(path);
    /* The index of the WAL is rebuilt from the WAL; it promises nothing. */
    if (end > 4 && !strcmp(path + end - 4, "-shm")) return 0;
    return !strncmp(path, folder, folder_length);
}

static int ours_by_name(const char *path) {
    return folder_length && path && !strncmp(path, folder, folder_length);
}

/* 1: the call has its turn to go wrong. */
static int turn(void) { return mode && ++seen >= at; }

static int broken(int error) {
    if (access(healed, F_OK) == 0) return 0;
    errno = error;
    return 1;
}

static void die(int fd) {
    if (fd >= 0 && fd < FILES && flushed[fd] >= 0) {
        struct stat now;
        if (!fstat(fd, &now) && now.st_size > flushed[fd]) {
            REAL(int, "ftruncate64", int, off_t);
            if (real(fd, flushed[fd])) _exit(99);
        }
    }
    kill(getpid(), SIGKILL);
    pause();
}

static void first_sight(int fd) {
    struct stat now;
    if (fd >= 0 && fd < FILES && flushed[fd] < 0 && !fstat(fd, &now)) flushed[fd] = now.st_size;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t where) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    if (ours(fd)) {
        first_sight(fd);
        if (turn()) {
            if (mode == 1) { if (real(fd, data, size / 2, where) < 0) _exit(98); die((at & 1) ? fd : -1); }
            if (mode == 2 && broken(failure)) return -1;
        }
    }
    return real(fd, data, size, where);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t where) { return pwrite64(fd, data, size, where); }

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (fd > 2 && ours(fd)) {
        first_sight(fd);
        if (turn()) {
            if (mode == 1) { if (real(fd, data, size / 2) < 0) _exit(98); die((at & 1) ? fd : -1); }
            if (mode == 2 && broken(failure)) return -1;
        }
    }
    return real(fd, data, size);
}

static int flush(int fd, int (*real)(int)) {
    if (ours(fd)) {
        if (turn()) {
            if (mode == 1) die((at & 1) ? fd : -1);
            if ((mode == 2 || mode == 3) && broken(EIO)) return -1;
        }
        struct stat now;
        int done = real(fd);
        if (!done && fd < FILES && !fstat(fd, &now)) flushed[fd] = now.st_size;
        return done;
    }
    return real(fd);
}
int fsync(int fd) { REAL(int, "fsync", int); return flush(fd, real); }
int fdatasync(int fd) { REAL(int, "fdatasync", int); return flush(fd, real); }

int ftruncate64(int fd, off_t size) {
    REAL(int, "ftruncate64", int, off_t);
    if (ours(fd) && turn()) {
        if (mode == 1) die(-1);
        if (mode == 2 && broken(EIO)) return -1;
    }
    return real(fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (ours_by_name(to) && turn()) {
        if (mode == 1) die(-1);
        if (mode == 2 && broken(EIO)) return -1;
    }
    return real(from, to);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (ours_by_name(path) && turn()) {
        if (mode == 1) die(-1);
        if (mode == 2 && broken(EIO)) return -1;
    }
    return real(path);
}
