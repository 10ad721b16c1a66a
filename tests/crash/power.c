// SPDX-License-Identifier: Apache-2.0
/*
 * Preloaded into a broker, keeps beside it what a disk would still have after a power cut: of each file below
 * POWER_ROOT what had been written when fsync or fdatasync was last called on it, and of each directory the names that
 * it had at its last fsync. power.py, which prepares that copy and puts it in the place of the files after the process
 * was killed, says how it is laid out.
 *
 *   POWER_MIRROR/data/ID      the synced content of a file
 *   POWER_MIRROR/names/INODE  "ID NAME" per file that the directory of that inode had when it was synced
 *   POWER_MIRROR/ids          "INODE ID" per file that was created, "INODE -" per file that was removed
 *
 * With POWER_SYNCS=0 the disk says that it has synced, and has not.
 *
 * Everything happens before the call returns that it belongs to, so what is told to others never runs ahead of the copy.
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
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define BUCKETS 1024

struct range {
	off_t start, end;
};

struct file {
	ino_t inode;
	char id[48];
	struct range *ranges;
	size_t count, room;
	struct file *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct file *files[BUCKETS];
static const char *root, *mirror;
static size_t root_length;
static int ids = -1, lies;
static unsigned created;

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void fail(const char *what)
{
	dprintf(2, "power: %s: %s\n", what, strerror(errno));
	abort();
}

static int opened(const char *path, int flags)
{
	REAL(open64);
	return real(path, flags | O_CLOEXEC, 0644);
}

__attribute__((constructor)) static void begin(void)
{
	char path[4096];

	root = getenv("POWER_ROOT");
	mirror = getenv("POWER_MIRROR");
	if (!root || !mirror)
		return;
	root_length = strlen(root);
	lies = getenv("POWER_SYNCS") && !strcmp(getenv("POWER_SYNCS"), "0");
	snprintf(path, sizeof path, "%s/ids", mirror);
	ids = opened(path, O_WRONLY | O_APPEND | O_CREAT);
	if (ids < 0)
		fail(path);
}

/* Whether a path is that of the root or below it. */
static int below(const char *path)
{
	return root && mirror && !strncmp(path, root, root_length) && (!path[root_length] || path[root_length] == '/');
}

/* The path of a descriptor, if it is below the root. */
static int path_of(int fd, char *path, size_t size)
{
	char link[64];
	ssize_t length;

	if (!root)
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, size - 1);
	if (length < 0)
		return 0;
	path[length] = 0;
	return below(path);
}

static struct file **place(ino_t inode)
{
	struct file **at = &files[inode % BUCKETS];

	while (*at && (*at)->inode != inode)
		at = &(*at)->next;
	return at;
}

/* The file of an inode, entered if it was not known. */
static struct file *enter(ino_t inode, int is_new)
{
	struct file **at = place(inode);

	if (!*at) {
		*at = calloc(1, sizeof **at);
		if (!*at)
			fail("calloc");
		(*at)->inode = inode;
		if (is_new) {
			snprintf((*at)->id, sizeof (*at)->id, "%lu.%u", (unsigned long)inode, ++created);
			dprintf(ids, "%lu %s\n", (unsigned long)inode, (*at)->id);
		} else {
			snprintf((*at)->id, sizeof (*at)->id, "%lu", (unsigned long)inode);
		}
	}
	return *at;
}

/* A name has gone; with the last one the file, or a directory. */
static void removed(const struct stat *was)
{
	struct file **at, *file;

	if (S_ISDIR(was->st_mode)) {
		char path[4096];
		REAL(unlink);

		snprintf(path, sizeof path, "%s/names/%lu", mirror, (unsigned long)was->st_ino);
		real(path);
	}
	if (!S_ISREG(was->st_mode) || was->st_nlink > 1)
		return;
	pthread_mutex_lock(&lock);
	dprintf(ids, "%lu -\n", (unsigned long)was->st_ino);
	at = place(was->st_ino);
	file = *at;
	if (file) {
		*at = file->next;
		free(file->ranges);
		free(file);
	}
	pthread_mutex_unlock(&lock);
}

static void see(int fd, int is_new)
{
	char path[4096];
	struct stat now;

	if (fd < 0 || !path_of(fd, path, sizeof path) || fstat(fd, &now) || !S_ISREG(now.st_mode))
		return;
	pthread_mutex_lock(&lock);
	enter(now.st_ino, is_new);
	pthread_mutex_unlock(&lock);
}

/* Bytes from start to end are not what the copy has. */
static void changed(int fd, off_t start, off_t end)
{
	struct stat now;
	struct file *file;

	if (!root || start >= end || fstat(fd, &now) || !S_ISREG(now.st_mode))
		return;
	pthread_mutex_lock(&lock);
	file = *place(now.st_ino);
	if (file) {
		struct range *last = file->count ? &file->ranges[file->count - 1] : NULL;

		if (last && last->end == start) {
			last->end = end;
		} else {
			if (file->count == file->room) {
				file->room = file->room ? 2 * file->room : 16;
				file->ranges = realloc(file->ranges, file->room * sizeof *file->ranges);
				if (!file->ranges)
					fail("realloc");
			}
			file->ranges[file->count++] = (struct range){start, end};
		}
	}
	pthread_mutex_unlock(&lock);
}

static void copy(int from, int to, struct range range)
{
	static char buffer[1 << 16];
	REAL(pwrite64);

	while (range.start < range.end) {
		size_t wanted = range.end - range.start;
		ssize_t got = pread(from, buffer, wanted < sizeof buffer ? wanted : sizeof buffer, range.start);

		if (got < 0)
			fail("read");
		if (!got)
			return;
		if (real(to, buffer, got, range.start) != got)
			fail("write");
		range.start += got;
	}
}

static void sync_file(const struct stat *now, const char *from)
{
	char path[4096];
	struct file *file;

	pthread_mutex_lock(&lock);
	file = *place(now->st_ino);
	if (file) {
		REAL(ftruncate64);
		struct stat size;
		/* the caller's descriptor may be for writing only */
		int source = opened(from, O_RDONLY), to;

		snprintf(path, sizeof path, "%s/data/%s", mirror, file->id);
		to = opened(path, O_WRONLY | O_CREAT);
		if (source < 0 || to < 0)
			fail(path);
		for (size_t at = 0; at < file->count; at++)
			copy(source, to, file->ranges[at]);
		if (fstat(source, &size) || real(to, size.st_size))
			fail(path);
		file->count = 0;
		close(source);
		close(to);
	}
	pthread_mutex_unlock(&lock);
}

static void sync_directory(int fd, const char *path, const struct stat *of)
{
	char new[4096], final[4096];
	struct dirent *entry;
	DIR *directory;
	int out;
	REAL(rename);

	pthread_mutex_lock(&lock);
	snprintf(new, sizeof new, "%s/names.new", mirror);
	out = opened(new, O_WRONLY | O_CREAT | O_TRUNC);
	directory = opendir(path);
	if (out < 0 || !directory)
		fail(path);
	while ((entry = readdir(directory))) {
		struct stat now;

		if (!fstatat(fd, entry->d_name, &now, AT_SYMLINK_NOFOLLOW) && S_ISREG(now.st_mode))
			dprintf(out, "%s %s\n", enter(now.st_ino, 0)->id, entry->d_name);
	}
	closedir(directory);
	close(out);
	snprintf(final, sizeof final, "%s/names/%lu", mirror, (unsigned long)of->st_ino);
	if (real(new, final))
		fail(final);
	pthread_mutex_unlock(&lock);
}

static int synced(int fd, int result)
{
	char path[4096];
	struct stat now;

	if (!result && !lies && path_of(fd, path, sizeof path) && !fstat(fd, &now)) {
		if (S_ISREG(now.st_mode))
			sync_file(&now, path);
		else if (S_ISDIR(now.st_mode))
			sync_directory(fd, path, &now);
	}
	return result;
}

int fsync(int fd)
{
	REAL(fsync);
	return synced(fd, real(fd));
}

int fdatasync(int fd)
{
	REAL(fdatasync);
	return synced(fd, real(fd));
}

#define OPEN(name)                                                  \
	int name(const char *path, int flags, ...)                  \
	{                                                           \
		REAL(name);                                         \
		struct stat before;                                 \
		mode_t mode = 0;                                    \
		int is_new, fd;                                     \
		if (flags & (O_CREAT | __O_TMPFILE)) {              \
			va_list more;                               \
			va_start(more, flags);                      \
			mode = va_arg(more, mode_t);                \
			va_end(more);                               \
		}                                                   \
		is_new = (flags & O_CREAT) && stat(path, &before);  \
		fd = real(path, flags, mode);                       \
		see(fd, is_new);                                    \
		if (fd >= 0 && (flags & O_TRUNC) && !is_new)        \
			changed(fd, 0, before.st_size);             \
		return fd;                                          \
	}

OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                 \
	int name(int at, const char *path, int flags, ...)                           \
	{                                                                            \
		REAL(name);                                                          \
		struct stat before;                                                  \
		mode_t mode = 0;                                                     \
		int is_new, fd;                                                      \
		if (flags & (O_CREAT | __O_TMPFILE)) {                               \
			va_list more;                                                \
			va_start(more, flags);                                       \
			mode = va_arg(more, mode_t);                                 \
			va_end(more);                                                \
		}                                                                    \
		is_new = (flags & O_CREAT) && fstatat(at, path, &before, 0);         \
		fd = real(at, path, flags, mode);                                    \
		see(fd, is_new);                                                     \
		if (fd >= 0 && (flags & O_TRUNC) && (flags & O_CREAT) && !is_new)    \
			changed(fd, 0, before.st_size);                              \
		return fd;                                                           \
	}

OPENAT(openat)
OPENAT(openat64)

#define PWRITE(name, offset_type)                                                     \
	ssize_t name(int fd, const void *bytes, size_t size, offset_type offset)      \
	{                                                                             \
		REAL(name);                                                           \
		ssize_t written = real(fd, bytes, size, offset);                      \
		changed(fd, offset, offset + written);                                \
		return written;                                                       \
	}

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

/* What a write at the file's own position has changed; the position, or in append mode the end, is where it ended. */
static ssize_t advanced(int fd, ssize_t written)
{
	off_t end;

	if (root && written > 0 && (end = lseek(fd, 0, SEEK_CUR)) >= written)
		changed(fd, end - written, end);
	return written;
}

ssize_t write(int fd, const void *bytes, size_t size)
{
	REAL(write);
	return advanced(fd, real(fd, bytes, size));
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	REAL(writev);
	return advanced(fd, real(fd, parts, count));
}

#define TRUNCATE(name, offset_type)                                          \
	int name(int fd, offset_type size)                                   \
	{                                                                    \
		REAL(name);                                                  \
		struct stat before;                                          \
		int result = fstat(fd, &before) ? -1 : real(fd, size);       \
		if (!result && before.st_size < size)                        \
			changed(fd, before.st_size, size);                   \
		else if (!result)                                            \
			changed(fd, size, before.st_size);                   \
		return result;                                               \
	}

TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

/* Nobody below needs it, and what it wrote would not be seen: callers go on with write. */
ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags)
{
	(void)in, (void)in_at, (void)out, (void)out_at, (void)size, (void)flags;
	errno = ENOSYS;
	return -1;
}

#define REMOVE(name)                                            \
	int name(const char *path)                              \
	{                                                       \
		REAL(name);                                     \
		struct stat was;                                \
		int known = !lstat(path, &was) && below(path);  \
		int result = real(path);                        \
		if (known && !result)                           \
			removed(&was);                          \
		return result;                                  \
	}

REMOVE(unlink)
REMOVE(rmdir)

int unlinkat(int at, const char *path, int flags)
{
	REAL(unlinkat);
	struct stat was;
	int known = root && !fstatat(at, path, &was, AT_SYMLINK_NOFOLLOW);
	int result = real(at, path, flags);

	if (known && !result)
		removed(&was);
	return result;
}

int rename(const char *from, const char *to)
{
	REAL(rename);
	struct stat was;
	int known = !lstat(to, &was) && below(to);
	int result = real(from, to);

	if (known && !result)
		removed(&was);
	return result;
}
