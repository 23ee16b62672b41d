/* The wall clock of one service, moved by the seconds that a file holds: for LD_PRELOAD.
 *
 * The machine's clock belongs to the machine. Only CLOCK_REALTIME moves; waits and time-outs go by the monotonic clock,
 * as after a real step. No symbol newer than a node's libc may be needed: the system calls are made directly.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef OFFSET_FILE
#error "-DOFFSET_FILE=..."
#endif

static long offset_s(void) {
    char text[32] = "";
    int kept = errno, file = (int)syscall(SYS_openat, AT_FDCWD, OFFSET_FILE, O_RDONLY | O_CLOEXEC, 0);
    long seconds = 0;
    if (file >= 0) {
        if (syscall(SYS_read, file, text, sizeof text - 1) > 0) seconds = atol(text);
        syscall(SYS_close, file);
    }
    errno = kept;
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset_s();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return (time_t)-1;
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
