// What a token costs a host that uses the C++ wrapper's dispatcher: the twin of cost.c.
#include "cost.h"

#include "../../bindings/cpp/yinian.hpp"

#include <atomic>
#include <array>
#include <semaphore.h>

namespace {

struct Stream {
  uint64_t records = 0, text_bytes = 0;
  uint32_t tokens = 0;
};

yinian::Request request(uint32_t max_tokens) {
  return yinian::Request::text("hello").max_tokens(max_tokens).flags(YN_REQ_IGNORE_EOS).output(YN_OUT_TEXT);
}

void tokens() {
  const auto engine = yinian::Engine::open(COST_STEPS_CONFIG);
  std::array<Stream, COST_STREAMS> streams;
  sem_t ended;
  sem_init(&ended, 0, 0);
  uint64_t poller_ns = 0;
  const uint64_t began = cost_process_ns();
  {
    const auto dispatcher = yinian::Dispatcher::start(engine);
    std::size_t left = streams.size();
    for (Stream& stream : streams) {
      dispatcher.submit(request(COST_TOKENS), [&](const yinian::Event& event) {
        if (event.is_output()) {
          stream.records++;
          stream.text_bytes += event.text().size();
        } else if (event.is_done()) {
          stream.tokens = event.raw().completion_tokens;
          if (--left > 0) return;
          // Of the dispatcher's thread, which began with this.
          poller_ns = cost_thread_ns();
          sem_post(&ended);
        }
      });
    }
    sem_wait(&ended);
  }
  const uint64_t took = cost_process_ns() - began;
  uint64_t counted = 0, records = 0;
  for (const Stream& stream : streams) {
    counted += stream.tokens;
    records += stream.records;
    COST_CHECK(stream.text_bytes == COST_TOKENS);
  }
  cost_print_tokens(counted, records, took, poller_ns);
  sem_destroy(&ended);
}

void wakeups() {
  const auto engine = yinian::Engine::open(COST_PING_CONFIG);
  const auto dispatcher = yinian::Dispatcher::start(engine);
  std::array<uint64_t, COST_PINGS> took{};
  std::atomic<uint64_t> came_ns{0};
  for (uint64_t& ns : took) {
    cost_pause();
    came_ns = 0;
    const uint64_t began = cost_now_ns();
    dispatcher.submit(request(1), [&](std::string_view) {
      if (came_ns == 0) came_ns = cost_now_ns();
    });
    while (came_ns == 0) cost_pause();
    ns = came_ns - began;
  }
  cost_print_wakeups(took.data(), took.size());
}

}  // namespace

int main() {
  tokens();
  wakeups();
}
