/* status.h - what every core function returns.
 *
 * The core reports errors by value: it never prints, aborts, sets errno or
 * unwinds. The binding that called it turns the status into a Python
 * exception, because only the binding knows the caller's names for things.
 * Checklist: a status added here needs a line in raise_status (py_common.h).
 */
#ifndef BON_STATUS_H
#define BON_STATUS_H

typedef enum {
    BON_OK = 0,
    BON_ERR_DOMAIN,      /* an argument lies where the function is undefined */
    BON_ERR_NOT_FINITE,  /* an input is NaN or infinite */
    BON_ERR_MEMORY,      /* an allocation failed or a byte count overflows */
    BON_ERR_IO,          /* a file could not be opened, read or mapped */
    BON_ERR_FORMAT,      /* a file's content breaks its format */
    BON_ERR_BACKEND,     /* oneDNN refused or failed */
    BON_ERR_INTERRUPTED, /* the caller's poll asked to stop; nothing is lost */
    BON_ERR_FULL         /* the budget (slots, cache blocks) is used up */
} bon_status;

/* A status that nobody looks at is a bug: make the compiler say so. */
#if defined(__GNUC__)
#define BON_MUST_CHECK __attribute__((warn_unused_result))
#else
#define BON_MUST_CHECK
#endif

/* Asked by long core functions between two matrix products, on the calling
 * thread: a true answer makes them return BON_ERR_INTERRUPTED soon. NULL or a
 * NULL function never stops. The core does not know what stands behind it. */
typedef struct {
    int (*stop)(void *arg);
    void *arg;
} bon_poll;

static inline int bon_should_stop(const bon_poll *poll)
{
    return poll && poll->stop && poll->stop(poll->arg);
}

#endif /* BON_STATUS_H */
