/* Threads, and how they take tasks. */

/* Takes tasks until there are none left. */
static void work(void *of) {
    job_t *job = of;
    worker_t s = {0};
    for (;;) {
        const int64_t task = atomic_fetch_add(&job->next, 1);
        if (task >= job->tasks)
            break;
        if (!s.memory && worker_open(&s, job)) {
            atomic_store(&job->failed, 1);
            break;
        }
        job->run(&s, task);
    }
    free(s.memory);
}

/* ------------------------------------------------------------------------------- threads */

/*
 * Threads come from the OpenMP runtime that torch has loaded, where its entry point is known:
 * after a parallel operation that runtime's threads spin for some milliseconds, waiting for the
 * next one, and any other thread would have to fight them for the processors.
 */
typedef void (*parallel_t)(void (*)(void *), void *, unsigned threads, unsigned flags);
static _Atomic(parallel_t) parallel;

/* Elsewhere, and in a forked child, where OpenMP's threads are gone without its knowing it, they
 * are a pool of our own. One job at a time has them; a second caller meanwhile works alone. */
static pthread_mutex_t pool_user = PTHREAD_MUTEX_INITIALIZER; /* held by the caller they serve */
static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static pthread_cond_t pool_wake = PTHREAD_COND_INITIALIZER;
static pthread_cond_t pool_idle = PTHREAD_COND_INITIALIZER;
static job_t *pool_job;
static int pool_size, pool_wanted, pool_busy;

static void *pool_thread(void *unused) {
    (void)unused;
    pthread_mutex_lock(&pool_lock);
    for (;;) {
        while (!pool_job || pool_wanted == 0)
            pthread_cond_wait(&pool_wake, &pool_lock);
        job_t *job = pool_job;
        pool_wanted--;
        pool_busy++;
        pthread_mutex_unlock(&pool_lock);
        work(job);
        pthread_mutex_lock(&pool_lock);
        if (--pool_busy == 0)
            pthread_cond_signal(&pool_idle);
    }
    return NULL;
}

/* A child has none of its parent's threads, and the locks as they happened to be. */
static void pool_forked(void) {
    pthread_mutex_init(&pool_user, NULL);
    pthread_mutex_init(&pool_lock, NULL);
    pthread_cond_init(&pool_wake, NULL);
    pthread_cond_init(&pool_idle, NULL);
    pool_job = NULL;
    pool_size = pool_wanted = pool_busy = 0;
    parallel = NULL;
}

static void watch_fork(void) { pthread_atfork(NULL, NULL, pool_forked); }

static pthread_once_t watching_fork = PTHREAD_ONCE_INIT;

static void pool_grow(int64_t size) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals stay with the program's threads */
    while (pool_size < size) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, pool_thread, NULL))
            break; /* fewer threads, same numbers */
        pthread_detach(thread);
        pool_size++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void run_job(job_t *job, void (*run_task)(const worker_t *, int64_t), int64_t tasks,
                    int64_t threads) {
    job->run = run_task;
    job->tasks = tasks;
    job->next = 0;
    pthread_once(&watching_fork, watch_fork);
    const parallel_t run = threads > 1 ? parallel : NULL;
    if (run) {
        run(work, job, (unsigned)threads, 0);
        return;
    }
    if (threads < 2 || pthread_mutex_trylock(&pool_user)) {
        work(job);
        return;
    }
    pthread_mutex_lock(&pool_lock);
    pool_grow(threads - 1);
    pool_job = job;
    pool_wanted = (int)threads - 1;
    pthread_cond_broadcast(&pool_wake);
    pthread_mutex_unlock(&pool_lock);
    work(job);
    pthread_mutex_lock(&pool_lock);
    pool_job = NULL; /* who has not woken by now is not needed */
    while (pool_busy)
        pthread_cond_wait(&pool_idle, &pool_lock);
    pthread_mutex_unlock(&pool_lock);
    pthread_mutex_unlock(&pool_user);
}
