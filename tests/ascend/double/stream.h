// Streams and events from inside.
#pragma once
#include "double.h"
#include <chrono>

namespace dbl {

struct Stream {
    void *handle = nullptr;
    std::shared_ptr<Context> context;
    std::deque<Task> queue;
    uint64_t enqueued = 0, done = 0;
    int error = OK;
    bool lazy = true, running = false, stop = false, dropped = false;
    // A query of so many enqueued tasks was answered "not yet".
    bool asked = false;
    uint64_t asked_at = 0;
    // Of other streams, how many tasks are done before what is enqueued here from now on.
    std::map<const void *, uint64_t> behind;
    std::thread worker;
};

// A place on a stream: behind its n-th task.
struct Point {
    std::shared_ptr<Stream> stream;
    uint64_t n = 0;
    bool asked = false;
    // What was done before the record.
    std::map<const void *, uint64_t> behind;
    std::chrono::steady_clock::time_point at;
};

enum class EventKind { Plain, WithFlag, Ex };

struct Event {
    uint32_t flags = 0;
    EventKind kind = EventKind::Plain;
    int device = 0;
    // Of the last record; a wait keeps the point of its time.
    std::shared_ptr<Point> point;
};

std::shared_ptr<Stream> new_stream(const std::shared_ptr<Context> &context);
// Runs or awaits the first n tasks; then all of them. Not OK: the stream's error.
int run_locked(Stream &stream, uint64_t n, Lock &lock);
int drain(const std::shared_ptr<Stream> &stream, Lock &lock);
// Whether the first n tasks are done. The first question about pending work of a lazy stream is answered with no, the next one
// runs it; `asked` remembers.
int query(Stream &stream, uint64_t n, bool *asked, bool *done, Lock &lock);
void event_leaks(std::string &out);
void event_reset();

} // namespace dbl
