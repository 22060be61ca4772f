// The dispatcher of the C++ wrapper: compiled with and without exceptions, and for the thread sanitizer.
#include "test.hpp"

#include <mutex>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

using yinian::Dispatcher, yinian::DispatcherOptions, yinian::Engine, yinian::Event, yinian::Finish, yinian::Request, yinian::Status;

static const char* slow = R"({"model": "mock:words,delay_us=1000", "log_level": "off"})";

static Dispatcher start(const Engine& engine, DispatcherOptions options = {}) {
  auto made = Dispatcher::try_start(engine, std::move(options));
  CHECK(made);
  return *std::move(made);
}

static Dispatcher attach(const Engine& engine) {
  auto made = Dispatcher::try_attach(engine);
  CHECK(made);
  return *std::move(made);
}

// What the handler of one request has seen.
struct Seen {
  std::atomic<int> outputs{0}, dones{0}, late{0};
  std::atomic<Finish> finish{Finish::none};
  std::atomic<Status> status{Status::ok};
  std::string text;

  void operator()(const Event& e) {
    if (dones > 0) late++;
    if (e.is_output()) outputs++, text += e.text();
    if (e.is_done()) finish = e.finish(), status = e.status(), dones++;
  }
  auto handler() {
    return [this](const Event& e) { (*this)(e); };
  }
};

static void threads_submit_what_one_thread_serves() {
  const Engine engine = open(R"({"model": "mock:words"})");
  const Dispatcher dispatcher = start(engine);
  std::vector<Seen> seen(200);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      for (std::size_t i = t; i < seen.size(); i += 4) CHECK(dispatcher.try_submit(short_request(int(i)), seen[i].handler()));
    });
  }
  for (auto& thread : threads) thread.join();
  until([&] { return dispatcher.size() == 0; });
  for (std::size_t i = 0; i < seen.size(); i++) {
    CHECK(seen[i].dones == 1 && seen[i].late == 0 && seen[i].finish == Finish::length && seen[i].text.size() == 40 + i);
    if (i % 20 == 0) CHECK(seen[i].text == engine.try_generate(short_request(int(i)))->text());
  }
  std::size_t letters = 0;
  const auto refused = dispatcher.try_submit(Request::text("x").max_tokens(0), [&](std::string_view s) { letters += s.size(); });
  CHECK(!refused && refused.error().status() == Status::invalid && letters == 0 && dispatcher.size() == 0);
  // What is found later comes with the DONE.
  Seen late;
  CHECK(dispatcher.try_submit(Request::tokens({1, 99999}), late.handler()));
  until([&] { return late.dones == 1; });
  CHECK(late.status == Status::invalid);
}

static void a_host_loop_serves() {
  const Engine engine = open(R"({"model": "mock:words"})");
  const Dispatcher dispatcher = attach(engine);
  const auto fd = dispatcher.try_fd();
  const int loop = epoll_create1(EPOLL_CLOEXEC);
  epoll_event watched{};
  watched.events = EPOLLIN;
  CHECK(fd && epoll_ctl(loop, EPOLL_CTL_ADD, *fd, &watched) == 0);
  const auto nothing = dispatcher.try_dispatch();
  CHECK(nothing && *nothing == 0);
  std::vector<Seen> seen(60);
  std::atomic<int> done{0};
  // Thirty of another thread; the handler of each submits one more.
  std::thread other([&] {
    for (int i = 0; i < 30; i++) {
      const auto follow = [&, i](const Event& e) {
        seen[i](e);
        if (e.is_done()) {
          done++;
          const auto again = dispatcher.try_dispatch();
          CHECK(!again && again.error().status() == Status::invalid);
          CHECK(dispatcher.try_submit(short_request(30 + i), [&, i](const Event& last) {
            seen[30 + i](last);
            done += last.is_done();
          }));
        }
      };
      CHECK(dispatcher.try_submit(short_request(i), follow));
    }
  });
  std::size_t records = 0;
  while (done < 60) {
    CHECK(epoll_wait(loop, &watched, 1, 10000) == 1);
    const auto n = dispatcher.try_dispatch();
    CHECK(n);
    records += *n;
  }
  other.join();
  std::size_t counted = 0;
  for (std::size_t i = 0; i < 60; i++) {
    CHECK(seen[i].dones == 1 && seen[i].text.size() == 40 + i);
    counted += std::size_t(seen[i].outputs + seen[i].dones);
  }
  CHECK(records == counted && dispatcher.size() == 0);
  close(loop);
  close(*fd);
  const Dispatcher threaded = start(engine);
  CHECK(threaded.try_dispatch().error().status() == Status::invalid);
}

static void handlers_end_their_requests() {
  const Engine engine = open(slow);
  const Dispatcher dispatcher = start(engine);
  Seen refuses, cancels;
  CHECK(dispatcher.try_submit(endless("hello"), [&](const Event& e) {
    refuses(e);
    return refuses.outputs < 3;
  }));
  CHECK(dispatcher.try_submit(endless("hello"), [&](const Event& e) {
    cancels(e);
    dispatcher.cancel(e.request_id());
  }));
  Seen outside, deadline;
  const auto id = dispatcher.try_submit(endless("hello"), outside.handler());
  CHECK(dispatcher.try_submit(endless("hello").timeout_ms(30), deadline.handler()));
  until([&] { return outside.outputs > 2; });
  dispatcher.cancel(*id);
  dispatcher.cancel(12345678);
  until([&] { return dispatcher.size() == 0; });
  CHECK(refuses.outputs == 3 && refuses.finish == Finish::cancelled && cancels.finish == Finish::cancelled);
  CHECK(outside.finish == Finish::cancelled && deadline.finish == Finish::deadline);
  CHECK(refuses.dones + cancels.dones + outside.dones + deadline.dones == 4);
  wait_idle(engine);
}

// Requests are handed in until that is refused; what was accepted ends once.
template <class F>
static void under_traffic(const Engine& engine, const Dispatcher& dispatcher, F end) {
  std::vector<std::vector<Seen>> all;
  for (int t = 0; t < 3; t++) all.emplace_back(3000);
  std::atomic<int> accepted{0}, busy{0};
  std::vector<std::thread> threads;
  for (auto& seen : all) {
    threads.emplace_back([&] {
      for (Seen& one : seen) {
        const auto id = dispatcher.try_submit(endless("hello"), one.handler());
        if (!id) {
          one.late = -1;
          const Status status = id.error().status();
          if (status == Status::shutdown || status == Status::bad_handle) return;
          CHECK(status == Status::busy);
          busy++;
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        } else {
          accepted++;
        }
      }
    });
  }
  until([&] { return accepted > 100; });
  end();
  for (auto& thread : threads) thread.join();
  until([&] { return dispatcher.size() == 0; });
  int dones = 0;
  for (auto& seen : all) {
    for (Seen& one : seen) {
      CHECK(one.dones <= 1 && one.late <= 0 && (one.dones == 0 || one.finish == Finish::cancelled));
      dones += one.dones;
    }
  }
  CHECK(dones == accepted);
  (void)engine;
}

static void closing_under_traffic_ends_all_once() {
  const std::string config = R"({"model": "mock:words,delay_us=1000", "log_level": "off", "max_num_seqs": 64, "max_waiting": 500})";
  {
    const Engine engine = open(config);
    const Dispatcher dispatcher = start(engine);
    under_traffic(engine, dispatcher, [&] { dispatcher.close(); });
    dispatcher.close();
    wait_idle(engine);
    CHECK(dispatcher.try_submit(endless("late"), [](const Event&) { CHECK(!"called"); }).error().status() == Status::shutdown);
    Seen other;
    Dispatcher next = start(engine);
    CHECK(next.try_submit(short_request(1), other.handler()));
    until([&] { return other.dones == 1; });
    next = start(engine);
  }
  {
    const Engine engine = open(config);
    const Dispatcher dispatcher = start(engine);
    under_traffic(engine, dispatcher, [&] { engine.close(); });
  }
  {
    const Engine engine = open(config);
    const Dispatcher dispatcher = attach(engine);
    std::atomic<bool> on{true};
    std::thread loop([&] {
      while (on) (void)dispatcher.try_dispatch(5);
    });
    under_traffic(engine, dispatcher, [&] { dispatcher.close(); });
    on = false;
    loop.join();
  }
}

static void it_may_be_closed_and_destroyed_by_a_handler() {
  const Engine engine = open(slow);
  for (const bool threaded : {true, false}) {
    for (const bool destroys : {true, false}) {
      auto dispatcher = std::make_unique<Dispatcher>(threaded ? start(engine) : attach(engine));
      std::vector<Seen> seen(20);
      std::atomic<int> outputs{0};
      for (Seen& one : seen) {
        CHECK(dispatcher->try_submit(endless("hello"), [&](const Event& e) {
          one(e);
          if (!e.is_output() || ++outputs != 50) return;
          if (destroys) dispatcher.reset();
          else dispatcher->close();
        }));
      }
      if (threaded) {
        for (Seen& one : seen) until([&] { return one.dones == 1; });
      } else {
        const Dispatcher& loop = *dispatcher;
        for (bool on = true; on;) {
          on = static_cast<bool>(loop.try_dispatch(100)) && outputs < 50;
        }
        if (!destroys) dispatcher->close();
      }
      for (Seen& one : seen) CHECK(one.dones == 1 && one.late == 0);
      dispatcher.reset();
      wait_idle(engine);
    }
  }
  Dispatcher moved = start(engine);
  const Dispatcher to = std::move(moved);
  CHECK(moved.size() == 0 && moved.try_fd().error().status() == Status::bad_handle);  // NOLINT: what is left is defined
  moved.close();
}

static void a_failed_engine_ends_all() {
  const Engine engine = open(R"({"model": "mock:words,hang_step=20", "watchdog_ms": 50, "log_level": "off"})");
  const Dispatcher dispatcher = start(engine);
  std::vector<Seen> seen(20);
  for (Seen& one : seen) CHECK(dispatcher.try_submit(endless("hello"), one.handler()));
  until([&] { return dispatcher.size() == 0; });
  for (Seen& one : seen) CHECK(one.dones == 1 && one.status == Status::device);
}

static void log_lines_come_to_the_thread() {
  const Engine engine = open(R"({"model": "mock:words,fail_step=3"})");
  std::atomic<int> lines{0};
  DispatcherOptions options;
  options.log_level = yinian::LogLevel::warn;
  options.on_log = [&](const Event& e) { lines += e.is_log() && !e.text().empty(); };
  {
    const Dispatcher dispatcher = start(engine, options);
    Seen seen;
    CHECK(dispatcher.try_submit(short_request(1), seen.handler()));
    until([&] { return seen.dones == 1 && lines > 0; });
  }
  CHECK(yinian::try_log_off());
}

#if !defined(__SANITIZE_THREAD__)
static void a_forked_child_is_told() {
  const Engine engine = open(slow);
  const Dispatcher loop = attach(engine), threaded = start(engine);
  Seen seen;
  CHECK(loop.try_submit(endless("hello"), seen.handler()));
  const pid_t child = fork();
  if (child == 0) {
    const bool told = loop.try_dispatch().error().status() == Status::forked && seen.dones == 1 && seen.status == Status::forked;
    threaded.close();  // returns
    _exit(told && !threaded.try_submit(endless("x"), seen.handler()) ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  loop.close();
  CHECK(seen.dones == 1 && seen.finish == Finish::cancelled);
}
#endif

#if defined(__cpp_exceptions)
static void exceptions_end_their_own_request() {
  const Engine engine = open(slow);
  std::atomic<int> reported{0};
  DispatcherOptions options;
  options.on_exception = [&](std::exception_ptr thrown, yn_request_id id) {
    CHECK(id != 0);
    try {
      std::rethrow_exception(thrown);
    } catch (int n) {
      reported += n;
    }
    throw 1;  // goes no further either
  };
  const Dispatcher dispatcher = start(engine, options);
  Seen throws, other;
  CHECK(dispatcher.try_submit(endless("hello"), [&](const Event& e) {
    throws(e);
    throw e.is_done() ? 1 : 10;
  }));
  CHECK(dispatcher.try_submit(short_request(1), other.handler()));
  until([&] { return dispatcher.size() == 0; });
  CHECK(throws.outputs == 1 && throws.dones == 1 && throws.finish == Finish::cancelled && reported == 11);
  CHECK(other.finish == Finish::length && other.text.size() == 41);
  try {
    dispatcher.submit(Request::text("x").max_tokens(0), [](std::string_view) {});
    CHECK(!"accepted");
  } catch (const yinian::Error& e) {
    CHECK(e.status() == Status::invalid);
  }
}
#endif

void dispatcher_tests() {
  threads_submit_what_one_thread_serves();
  a_host_loop_serves();
  handlers_end_their_requests();
  closing_under_traffic_ends_all_once();
  it_may_be_closed_and_destroyed_by_a_handler();
  a_failed_engine_ends_all();
  log_lines_come_to_the_thread();
#if !defined(__SANITIZE_THREAD__)
  a_forked_child_is_told();
#endif
#if defined(__cpp_exceptions)
  exceptions_end_their_own_request();
#endif
}

#if defined(DISPATCHER_ALONE)
int main() {
  dispatcher_tests();
  std::puts("ok");
}
#endif
