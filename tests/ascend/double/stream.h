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
    std::thread worker;
};

// A place on a stream: behind its n-th task.
struct Point {
    std::shared_ptr<Stream> stream;
    uint64_t n = 0;
    bool asked = false;
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
// Runs or awaits all that was enqueued. Not OK: the stream's error.
int drain(const std::shared_ptr<Stream> &stream, Lock &lock);

} // namespace dbl
