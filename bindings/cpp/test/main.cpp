// The throwing half of the C++ wrapper, and the main function of all its tests.
#include "test.hpp"

#include <cstdlib>

#if defined(__cpp_exceptions)
#include <thread>

static void errors_are_thrown_with_the_librarys_message() {
  try {
    auto engine = yinian::Engine::open(R"({"model": "mock:words", "mod\u00e9l🦊": 1})");
    CHECK(!"opened");
  } catch (const yinian::Error& e) {
    CHECK(e.status() == yinian::Status::invalid);
    CHECK(std::string(e.what()).find("mod\u00e9l🦊") != std::string::npos);
  }
  try {
    auto engine = yinian::Engine::open(R"({"model": "/no/such/model"})");
    CHECK(!"opened");
  } catch (const std::exception& e) {
    CHECK(dynamic_cast<const yinian::Error&>(e).status() == yinian::Status::not_found);
    CHECK(std::string(e.what()).find("/no/such/model") != std::string::npos);
  }
}

static void a_callback_that_throws_cancels_its_request() {
  auto engine = yinian::Engine::open(R"({"model": "mock:words,delay_us=1000"})");
  bool thrown = false;
  try {
    engine.stream(endless("hello"), [](std::string_view) { throw 7; });
  } catch (int seven) {
    thrown = seven == 7;
  }
  CHECK(thrown);
  wait_idle(engine);
  until([&] { return engine.stats().finished == 1; });
}

static void fifty_streams_at_once_say_what_one_says() {
  const auto engine = yinian::Engine::open(R"({"model": "mock:words"})");
  std::vector<std::string> alone, together(50);
  for (int i = 0; i < 50; i++) alone.push_back(engine.generate(short_request(i)).text());
  std::vector<std::thread> threads;
  for (int i = 0; i < 50; i++) {
    threads.emplace_back([&, i] {
      const auto end = engine.stream(short_request(i), [&](std::string_view s) { together[i].append(s); });
      CHECK(end.finish == yinian::Finish::length);
    });
  }
  for (auto& t : threads) t.join();
  CHECK(alone == together);
}

static void closing_under_traffic_ends_every_stream() {
  const auto engine = yinian::Engine::open(R"({"model": "mock:words,delay_us=1000", "max_num_seqs": 8})");
  std::atomic<int> first{0}, cancelled{0}, refused{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 20; i++) {
    threads.emplace_back([&] {
      bool counted = false;
      auto end = engine.try_stream(endless("hello"), [&](std::string_view) { first += !std::exchange(counted, true); });
      if (end) cancelled += end->finish == yinian::Finish::cancelled;
      else refused += end.error().status() == yinian::Status::shutdown || end.error().status() == yinian::Status::bad_handle;
    });
  }
  while (first < 8) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  engine.close();
  engine.close();
  for (auto& t : threads) t.join();
  CHECK(cancelled + refused == 20 && cancelled >= 8);
  yinian::Events events;
  auto polled = engine.try_poll(events);
  while (polled) polled = engine.try_poll(events);
  CHECK(polled.error().status() == yinian::Status::shutdown);
  const auto late = engine.try_stream(endless("late"), [](std::string_view) {});
  CHECK(!late && late.error().status() == yinian::Status::bad_handle);
}

static void throwing_tests() {
  errors_are_thrown_with_the_librarys_message();
  a_callback_that_throws_cancels_its_request();
  fifty_streams_at_once_say_what_one_says();
  closing_under_traffic_ends_every_stream();
}
#else
static void throwing_tests() {}
#endif

int main() {
  nothrow_tests();
  wide_tests();
  dispatcher_tests();
  throwing_tests();
  std::puts("ok");
}
