/* Writes down what a process does to the files of one folder, in order, to replay power cuts from.

   DISK_FOLDER: the folder. DISK_JOURNAL: gets one entry for each call: kind, length of the path,
   offset, length of the data (little endian: u8 u16 u64 u32), path, data. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

static int inside(const char *path) {
    const char *folder = getenv("DISK_FOLDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

static void all(const void *data, size_t length) {
    const char *at = data;
    while (length) {
        ssize_t done = REAL(write)(journal, at, length);
        if (done <= 0) abort();
        at += done;
        length -= done;
    }
}

static void note(char kind, const char *path, uint64_t offset, const void *data, uint32_t length) {
    if (journal < 0) journal = open(getenv("DISK_JOURNAL"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    uint16_t name = strlen(path);
    unsigned char head[15];
    head[0] = kind;
    memcpy(head + 1, &name, 2);
    memcpy(head + 3, &offset, 8);
    memcpy(head + 11, &length, 4);
    all(head, sizeof head);
    all(path, name);
    all(data, length);
}

#define NOTED(call, kind, fd, offset, data, length)                        \
    char path[4096];                                                       \
    if (!path_of(fd, path)) return call;                                   \
    pthread_mutex_lock(&lock);                                             \
    __typeof__(call) done = call;                                          \
    if (done >= 0) note(kind, path, offset, data, length);                 \
    pthread_mutex_unlock(&lock);                                           \
    return done;

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    NOTED(REAL(pwrite64)(fd, data, size, at), 'W', fd, at, data, done)
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }
ssize_t write(int fd, const void *data, size_t size) {
    NOTED(REAL(write)(fd, data, size), 'W', fd, lseek(fd, 0, SEEK_CUR) - done, data, done)
}
int ftruncate64(int fd, off64_t size) { NOTED(REAL(ftruncate64)(fd, size), 'T', fd, size, "", 0) }
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int fsync(int fd) { NOTED(REAL(fsync)(fd), 'S', fd, 0, "", 0) }
int fdatasync(int fd) { NOTED(REAL(fdatasync)(fd), 'S', fd, 0, "", 0) }

int unlink(const char *path) {
    if (!inside(path)) return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    int done = REAL(unlink)(path);
    if (done == 0) note('U', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int rename(const char *from, const char *to) {
    if (!inside(from)) return REAL(rename)(from, to);
    pthread_mutex_lock(&lock);
    int done = REAL(rename)(from, to);
    if (done == 0) note('R', from, 0, to, strlen(to));
    pthread_mutex_unlock(&lock);
    return done;
}
