/* The timed loops of run.py. Each prints one JSON object; the time is taken inside, without the start of the process.
 *
 *   loops lstat DIR             every path below DIR, after one untimed round
 *   loops read DIR THREADS      every regular file below DIR, finding them included
 *   loops random FILE N SEED    N reads of 4 KiB
 *   loops sequential FILE
 *   loops write FILE            the first byte written to FILE
 *   loops create DIR N          N small files;  loops unlink DIR N  the same away again
 *   loops mount TYPE SOURCE DIR mount(2), read-only: EROFS needs no loop device then
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { READ_SIZE = 128 << 10, PAGE = 4096, MAX_THREADS = 64 };

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static char **paths;
static size_t path_count;
static int only_files;

static int collect(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)ftw;
	if (only_files && !(flag == FTW_F && S_ISREG(st->st_mode)))
		return 0;
	if ((path_count & (path_count + 1)) == 0) /* full: 0, 1, 3, 7 … */
		paths = realloc(paths, 2 * (path_count + 1) * sizeof *paths);
	if (!paths || !(paths[path_count++] = strdup(path)))
		err(1, "memory");
	return 0;
}

static void walk(const char *dir)
{
	if (chdir(dir) || nftw(".", collect, 64, FTW_PHYS))
		err(1, "%s", dir);
}

static void lstat_all(const char *dir)
{
	struct stat st;
	size_t errors = 0;
	walk(dir);
	double start = now();
	for (int round = 0; round < 2; round++)
		for (size_t i = 0; i < path_count; i++)
			errors += lstat(paths[i], &st) != 0;
	double us = (now() - start) * 1e6 / 2 / (double)path_count;
	printf("{\"us\": %.4f, \"entries\": %zu, \"errors\": %zu}\n", us, path_count, errors / 2);
}

static atomic_size_t next_path, bytes_read, read_errors;

static void *read_some(void *unused)
{
	char *buffer = aligned_alloc(PAGE, READ_SIZE);
	size_t i;
	while ((i = next_path++) < path_count) {
		int fd = open(paths[i], O_RDONLY | O_NOFOLLOW);
		ssize_t n = -1;
		while (fd >= 0 && (n = read(fd, buffer, READ_SIZE)) > 0)
			bytes_read += (size_t)n;
		read_errors += n < 0;
		if (fd >= 0)
			close(fd);
	}
	free(buffer);
	return unused;
}

static void read_all(const char *dir, int threads)
{
	pthread_t thread[MAX_THREADS];
	double start = now();
	only_files = 1;
	walk(dir);
	if (threads < 1 || threads > MAX_THREADS)
		errx(2, "1 to %d threads", MAX_THREADS);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, read_some, NULL))
			errx(1, "no thread");
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	double s = now() - start;
	printf("{\"s\": %.6f, \"files\": %zu, \"bytes\": %zu, \"errors\": %zu}\n", s, path_count, (size_t)bytes_read, (size_t)read_errors);
}

static int open_file(const char *file, int flags)
{
	int fd = open(file, flags, 0644);
	if (fd < 0)
		err(1, "%s", file);
	return fd;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void read_randomly(const char *file, size_t n, long seed)
{
	char buffer[PAGE];
	int fd = open_file(file, O_RDONLY);
	off_t blocks = lseek(fd, 0, SEEK_END) / PAGE;
	double *took = calloc(n, sizeof *took);
	if (!took || !n || blocks < 1)
		errx(1, "%s: too short, or no memory", file);
	srand48(seed);
	double start = now();
	for (size_t i = 0; i < n; i++) {
		double begin = now();
		if (pread(fd, buffer, PAGE, lrand48() % blocks * PAGE) != PAGE)
			err(1, "%s", file);
		took[i] = now() - begin;
	}
	double s = now() - start;
	qsort(took, n, sizeof *took, ascending);
	printf("{\"iops\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", (double)n / s, took[n / 2] * 1e6, took[n * 99 / 100] * 1e6);
}

static void read_sequentially(const char *file)
{
	static char buffer[READ_SIZE];
	size_t bytes = 0;
	ssize_t n;
	double start = now();
	int fd = open_file(file, O_RDONLY);
	while ((n = read(fd, buffer, sizeof buffer)) > 0)
		bytes += (size_t)n;
	if (n < 0)
		err(1, "%s", file);
	double s = now() - start;
	printf("{\"mbps\": %.1f, \"bytes\": %zu}\n", (double)bytes / 1e6 / s, bytes);
}

static void first_write(const char *file)
{
	double start = now();
	int fd = open_file(file, O_RDWR);
	if (pwrite(fd, "x", 1, 1 << 20) != 1 || close(fd))
		err(1, "%s", file);
	printf("{\"s\": %.6f}\n", now() - start);
}

static void create_or_unlink(const char *dir, int n, int create)
{
	char name[32] = "";
	if ((create && mkdir(dir, 0755)) || chdir(dir))
		err(1, "%s", dir);
	double start = now();
	for (int i = 0; i < n; i++) {
		snprintf(name, sizeof name, "file-%06d", i);
		if (create) {
			int fd = open_file(name, O_CREAT | O_EXCL | O_WRONLY);
			if (write(fd, name, sizeof name) != sizeof name || close(fd))
				err(1, "%s", name);
		} else if (unlink(name)) {
			err(1, "%s", name);
		}
	}
	printf("{\"s\": %.6f}\n", now() - start);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	if (argc == 3 && !strcmp(what, "lstat"))
		lstat_all(argv[2]);
	else if (argc == 4 && !strcmp(what, "read"))
		read_all(argv[2], atoi(argv[3]));
	else if (argc == 5 && !strcmp(what, "random"))
		read_randomly(argv[2], (size_t)atol(argv[3]), atol(argv[4]));
	else if (argc == 3 && !strcmp(what, "sequential"))
		read_sequentially(argv[2]);
	else if (argc == 3 && !strcmp(what, "write"))
		first_write(argv[2]);
	else if (argc == 4 && (!strcmp(what, "create") || !strcmp(what, "unlink")))
		create_or_unlink(argv[2], atoi(argv[3]), *what == 'c');
	else if (argc == 5 && !strcmp(what, "mount")) {
		if (mount(argv[3], argv[4], argv[2], MS_RDONLY, NULL))
			err(1, "mount %s", argv[3]);
	} else
		errx(2, "see the head of loops.c");
	return 0;
}
