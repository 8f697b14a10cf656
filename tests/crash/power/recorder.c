/* Records what a program does to a queue's files and to its Unix sockets, and makes chosen operations fail.
 *
 * Loaded with LD_PRELOAD. RECORDER_FOLDER is the queue's folder, RECORDER_LOG the file that records are appended to,
 * RECORDER_CONTROL a file of `rule`s (recording.py writes them while the program runs). The database is `queue.db` in that
 * folder. A failing sync does not reach the real file, as after a real one Linux marks the pages clean and forgets them.
 *
 * Order is what counts: a record of a send is written before the bytes leave, one of a finished sync after it returned, and one
 * of a write together with it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 4096
#define LOG_FD 4000

enum kind { START = 1, CREATE, WRITE, TRUNCATE, SYNC_BEGIN, SYNC, SYNC_FAILED, UNLINK, SEND, RECV, FAULT };
enum file { NONE, DATABASE, WAL, JOURNAL, FOLDER, LOCK, SOCKET, OTHER };
enum operation { ON_SYNC, ON_WRITE, ON_READ, ON_TRUNCATE, OPERATIONS };
enum action { NOTHING, FAIL_ONCE, FAIL_ALWAYS, DIE };

struct record {
    uint32_t kind, file;
    int32_t pid, fd;
    int64_t offset;
    uint64_t length;
};

struct rule {
    int32_t action, countdown; /* acts when the countdown reaches 0 */
};

static enum file files[FDS];
static int log_fd = -1;
static char folder[PATH_MAX];
static struct rule (*rules)[OPERATIONS]; /* by enum file */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void append(enum kind kind, enum file file, int fd, int64_t offset, const void *bytes, size_t length) {
    struct record record = {kind, file, getpid(), fd, offset, length};
    struct iovec parts[2] = {{&record, sizeof record}, {(void *)bytes, bytes ? length : 0}};
    ssize_t size = (ssize_t)(sizeof record + (bytes ? length : 0));
    if (log_fd >= 0 && REAL(writev)(log_fd, parts, 2) != size)
        abort();
}

static void append_alone(enum kind kind, enum file file, int fd, int64_t offset, const void *bytes, size_t length) {
    pthread_mutex_lock(&order);
    append(kind, file, fd, offset, bytes, length);
    pthread_mutex_unlock(&order);
}

/* Whether this operation has to fail; may not return. The caller holds `order`. */
static int fails(enum file file, enum operation operation) {
    if (!rules || file == NONE || file > FOLDER)
        return 0;
    struct rule *rule = &rules[file][operation];
    if (rule->action == NOTHING || --rule->countdown > 0)
        return 0;
    append(FAULT, file, -1, operation, NULL, 0);
    if (rule->action == DIE) {
        rule->action = NOTHING;
        kill(getpid(), SIGKILL);
        pause();
    }
    if (rule->action == FAIL_ONCE)
        rule->action = NOTHING;
    return 1;
}

static enum file file_of(const char *path) {
    char whole[PATH_MAX];
    size_t length = strlen(folder);
    if (log_fd < 0 || !path)
        return OTHER;
    if (path[0] != '/') {
        if (!getcwd(whole, sizeof whole / 2))
            return OTHER;
        strcat(whole, "/");
        strncat(whole, path, sizeof whole / 2 - 1);
        path = whole;
    }
    if (strncmp(path, folder, length) != 0)
        return OTHER;
    const char *rest = path + length;
    if (*rest == '\0' || strcmp(rest, "/") == 0)
        return FOLDER;
    if (strcmp(rest, "/queue.db") == 0)
        return DATABASE;
    if (strcmp(rest, "/queue.db-wal") == 0)
        return WAL;
    if (strcmp(rest, "/queue.db-journal") == 0)
        return JOURNAL;
    if (strcmp(rest, "/queue.db.lock") == 0)
        return LOCK;
    return OTHER;
}

static enum file file_at(int fd) { return fd >= 0 && fd < FDS && files[fd] < SOCKET ? files[fd] : NONE; }

static int is_unix_socket(int fd) {
    if (fd < 0 || fd >= FDS || log_fd < 0)
        return 0;
    if (files[fd] == NONE) {
        int domain = 0, type = 0;
        socklen_t size = sizeof domain;
        int known = getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 &&
                    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
        files[fd] = known && domain == AF_UNIX && type == SOCK_STREAM ? SOCKET : OTHER;
    }
    return files[fd] == SOCKET;
}

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("RECORDER_LOG"), *control = getenv("RECORDER_CONTROL"), *where = getenv("RECORDER_FOLDER");
    if (!log || !control || !where)
        return;
    strncpy(folder, where, sizeof folder - 1);
    int opened = REAL(open)(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    log_fd = fcntl(opened, F_DUPFD_CLOEXEC, LOG_FD);
    if (log_fd < 0)
        log_fd = fcntl(opened, F_DUPFD_CLOEXEC, 500);
    REAL(close)(opened);
    int controlled = REAL(open)(control, O_RDWR | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof(struct rule) * OPERATIONS * OTHER, PROT_READ | PROT_WRITE, MAP_SHARED, controlled, 0);
    if (log_fd < 0 || mapped == MAP_FAILED)
        abort();
    rules = mapped;
    REAL(close)(controlled);
    append_alone(START, NONE, -1, 0, NULL, 0);
}

static int opened(int fd, const char *path, int flags, int existed) {
    if (fd < 0 || fd >= FDS)
        return fd;
    files[fd] = file_of(path);
    if (file_at(fd) != NONE && files[fd] != FOLDER) {
        if (!existed)
            append_alone(CREATE, files[fd], fd, 0, NULL, 0);
        else if (flags & O_TRUNC)
            append_alone(TRUNCATE, files[fd], fd, 0, NULL, 0);
    }
    return fd;
}

#define OPEN(name, call)                                                                                                       \
    mode_t mode = 0;                                                                                                           \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                                       \
        va_list rest;                                                                                                          \
        va_start(rest, flags);                                                                                                 \
        mode = va_arg(rest, mode_t);                                                                                           \
        va_end(rest);                                                                                                          \
    }                                                                                                                          \
    int saved = errno, existed = access(path, F_OK) == 0;                                                                      \
    errno = saved;                                                                                                             \
    return opened(call, path, flags, existed);

int open(const char *path, int flags, ...) { OPEN(open, REAL(open)(path, flags, mode)) }
int open64(const char *path, int flags, ...) { OPEN(open64, REAL(open64)(path, flags, mode)) }
int openat(int at, const char *path, int flags, ...) { OPEN(openat, REAL(openat)(at, path, flags, mode)) }
int openat64(int at, const char *path, int flags, ...) { OPEN(openat64, REAL(openat64)(at, path, flags, mode)) }

int close(int fd) {
    if (fd >= 0 && fd == log_fd)
        return 0;
    if (fd >= 0 && fd < FDS)
        files[fd] = NONE;
    return REAL(close)(fd);
}

int unlink(const char *path) {
    pthread_mutex_lock(&order);
    int result = REAL(unlink)(path);
    enum file file = file_of(path);
    if (result == 0 && file != OTHER)
        append(UNLINK, file, -1, 0, NULL, 0);
    pthread_mutex_unlock(&order);
    return result;
}

static ssize_t wrote(enum file file, int fd, const void *bytes, size_t length, int64_t offset,
                     ssize_t (*write_it)(int, const void *, size_t, off_t)) {
    pthread_mutex_lock(&order);
    ssize_t result = -1;
    if (fails(file, ON_WRITE)) {
        errno = EIO;
    } else {
        result = write_it(fd, bytes, length, offset);
        if (result > 0)
            append(WRITE, file, fd, offset, bytes, (size_t)result);
    }
    int saved = errno;
    pthread_mutex_unlock(&order);
    errno = saved;
    return result;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    enum file file = file_at(fd);
    if (file == NONE)
        return REAL(pwrite)(fd, bytes, length, offset);
    return wrote(file, fd, bytes, length, offset, REAL(pwrite));
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    enum file file = file_at(fd);
    if (file == NONE)
        return REAL(pwrite64)(fd, bytes, length, offset);
    return wrote(file, fd, bytes, length, offset, REAL(pwrite64));
}

/* A write without an offset to one of the queue's files is not foreseen: better no test than a wrong one. Answers leave by
 * send; and Python's signal handler writes, whatever it interrupts: here the lock must not be taken. */
ssize_t write(int fd, const void *bytes, size_t length) {
    if (file_at(fd) != NONE)
        abort();
    return REAL(write)(fd, bytes, length);
}

ssize_t pread(int fd, void *bytes, size_t length, off_t offset) {
    pthread_mutex_lock(&order);
    int failed = fails(file_at(fd), ON_READ);
    pthread_mutex_unlock(&order);
    if (failed) {
        errno = EIO;
        return -1;
    }
    return REAL(pread)(fd, bytes, length, offset);
}

ssize_t pread64(int fd, void *bytes, size_t length, off64_t offset) { return pread(fd, bytes, length, offset); }

static int truncated(int fd, int64_t size) {
    enum file file = file_at(fd);
    pthread_mutex_lock(&order);
    int result = -1;
    if (fails(file, ON_TRUNCATE))
        errno = EIO;
    else if ((result = REAL(ftruncate)(fd, size)) == 0 && file != NONE)
        append(TRUNCATE, file, fd, size, NULL, 0);
    int saved = errno;
    pthread_mutex_unlock(&order);
    errno = saved;
    return result;
}

int ftruncate(int fd, off_t size) { return truncated(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }

/* The real sync runs outside the lock: a send while it lasts has to be seen before its end. */
static int synced(int fd, int (*sync_it)(int)) {
    enum file file = file_at(fd);
    if (file == NONE)
        return sync_it(fd);
    pthread_mutex_lock(&order);
    append(SYNC_BEGIN, file, fd, 0, NULL, 0);
    int failed = fails(file, ON_SYNC);
    pthread_mutex_unlock(&order);
    int result = failed ? -1 : sync_it(fd);
    append_alone(result == 0 ? SYNC : SYNC_FAILED, file, fd, 0, NULL, 0);
    if (failed)
        errno = EIO;
    return result;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

ssize_t send(int fd, const void *bytes, size_t length, int flags) {
    if (is_unix_socket(fd))
        append_alone(SEND, SOCKET, fd, 0, bytes, length);
    return REAL(send)(fd, bytes, length, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (is_unix_socket(fd)) {
        pthread_mutex_lock(&order);
        for (size_t part = 0; part < message->msg_iovlen; part++)
            append(SEND, SOCKET, fd, 0, message->msg_iov[part].iov_base, message->msg_iov[part].iov_len);
        pthread_mutex_unlock(&order);
    }
    return REAL(sendmsg)(fd, message, flags);
}

ssize_t recv(int fd, void *bytes, size_t length, int flags) {
    ssize_t result = REAL(recv)(fd, bytes, length, flags);
    if (result > 0 && is_unix_socket(fd))
        append_alone(RECV, SOCKET, fd, 0, bytes, (size_t)result);
    return result;
}
