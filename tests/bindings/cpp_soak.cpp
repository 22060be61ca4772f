// A thousand streams at a time over the C++ wrapper's dispatchers: cancelled, refused by their handlers, thrown out of, late,
// read slowly, and closed under traffic. Every accepted request ends once, and nothing is left behind.
//   cpp_soak [SECONDS]
#include "../../bindings/cpp/test/test.hpp"

#include <cstring>
#include <dirent.h>
#include <malloc.h>
#include <mutex>
#include <random>
#include <unistd.h>

using yinian::Dispatcher, yinian::Engine, yinian::Event, yinian::Finish, yinian::Request, yinian::Status;
using Random = std::mt19937;

namespace {

constexpr int streams = 1000, submitters = 4, long_tokens = 20000;
enum class Way { reads_all, refuses, throws, late, is_cancelled, has_choices, count };

struct Tally {
  std::atomic<long> accepted{0}, ended{0}, handlers{0}, records{0}, exceptions{0};
  std::atomic<long> by_finish[8] = {};
};
Tally total;
std::string expected;  // what every prompt here is continued with

int random_below(Random& random, int n) { return std::uniform_int_distribution<int>(0, n - 1)(random); }

// The handler of a request; how many there are is counted.
class Reader {
 public:
  Reader(Way way, int patience) : way_(way), patience_(patience) { total.handlers++; }
  Reader(const Reader&) = delete;
  Reader(Reader&& o) noexcept : way_(o.way_), patience_(o.patience_) { total.handlers++; }
  ~Reader() { total.handlers--; }

  bool operator()(const Event& event) {
    CHECK(!ended_);
    total.records++;
    if (event.is_done()) {
      ended_ = true;
      CHECK(event.status() == Status::ok);
      CHECK(event.finish() != Finish::length || way_ == Way::has_choices || text_.size() == event.raw().completion_tokens);
      total.by_finish[static_cast<int>(event.finish())]++;
      total.ended++;
      return true;
    }
    CHECK(!refused_);
    if (event.choice() == 0) text_ += event.text();
    CHECK(text_.size() <= expected.size() && expected.compare(0, text_.size(), text_) == 0);
    if (patience_-- > 0) return true;
    refused_ = way_ == Way::refuses || way_ == Way::throws;
    if (way_ == Way::throws) throw std::runtime_error("enough");
    return !refused_;
  }

 private:
  Way way_;
  int patience_;
  bool ended_ = false, refused_ = false;
  std::string text_;
};

// One engine with two dispatchers: one with a thread, one that a host reads now and then.
class Round {
 public:
  explicit Round(unsigned seed)
      : seed_(seed), engine_(Engine::open(R"({"model": "mock:words,delay_us=100", "log_level": "off", "max_num_seqs": 256,
                                              "max_waiting": 600, "max_unread_bytes": 4096, "max_model_len": 32768})")),
        fast_(Dispatcher::start(engine_, options())), slow_(Dispatcher::attach(engine_, options())) {}

  void run() {
    Random random(seed_);
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < submitters; t++) threads.emplace_back([this, t] { submit(seed_ * 10 + t); });
    std::thread canceller([this] { cancel_some(); }), host([this] { read_slowly(); });
    const int end = random_below(random, 4);
    if (end == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(random_below(random, 700)));
      fast_.close();
      slow_.close();
    } else if (end == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(random_below(random, 700)));
      engine_.close();
    }
    for (auto& thread : threads) thread.join();
    stop_ = true;
    canceller.join();
    host.join();
    if (end == 2) until([this] { return fast_.size() == 0; });
    fast_.close();
    slow_.close();
    CHECK(fast_.size() + slow_.size() == 0);
    if (end != 1) wait_idle(engine_);
  }

 private:
  static yinian::DispatcherOptions options() {
    yinian::DispatcherOptions options;
    options.on_exception = [](std::exception_ptr, yn_request_id) { total.exceptions++; };
    return options;
  }

  void submit(unsigned seed) {
    Random random(seed);
    for (int i = 0; i < streams / submitters; i++) {
      const Way way = static_cast<Way>(random_below(random, static_cast<int>(Way::count)));
      const bool is_long = way == Way::refuses || way == Way::throws || way == Way::late || way == Way::is_cancelled;
      auto request = endless("hello").max_tokens(is_long ? long_tokens : 1 + uint32_t(random_below(random, 300)));
      if (way == Way::late) request.timeout_ms(1 + uint32_t(random_below(random, 300)));
      if (way == Way::has_choices) request.n(3);
      const Dispatcher& dispatcher = random_below(random, 10) == 0 ? slow_ : fast_;
      if (&dispatcher == &slow_) request.logprobs(20);  // which soon comes to max_unread_bytes
      for (;;) {
        const auto id = dispatcher.try_submit(request, Reader(way, random_below(random, 40)));
        if (id) {
          total.accepted++;
          if (way == Way::is_cancelled) remember(*id);
          break;
        }
        if (id.error().status() != Status::busy) {
          CHECK(id.error().status() == Status::shutdown || id.error().status() == Status::bad_handle);
          return;
        }
        std::this_thread::sleep_for(std::chrono::microseconds(500));
      }
    }
  }

  void remember(yn_request_id id) {
    const std::lock_guard<std::mutex> held(lock_);
    ids_.push_back(id);
  }
  // All in the end, at random times.
  void cancel_some() {
    Random random(seed_);
    for (;;) {
      const bool is_last = stop_;
      std::vector<yn_request_id> ids;
      {
        const std::lock_guard<std::mutex> held(lock_);
        ids.swap(ids_);
      }
      for (const auto id : ids) fast_.cancel(id);
      if (is_last) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(random_below(random, 20)));
    }
  }

  void read_slowly() {
    Random random(seed_);
    while (!stop_) {
      (void)slow_.try_dispatch(1);
      std::this_thread::sleep_for(std::chrono::milliseconds(random_below(random, 60)));
    }
  }

  const unsigned seed_;
  const Engine engine_;
  const Dispatcher fast_, slow_;
  std::atomic<bool> stop_{false};
  std::mutex lock_;
  std::vector<yn_request_id> ids_;
};

int entries(const char* path) {
  DIR* folder = opendir(path);
  CHECK(folder != nullptr);
  int n = 0;
  while (readdir(folder) != nullptr) n++;
  closedir(folder);
  return n;
}

struct Memory {
  long heap_kib = 0, resident_kib = 0;

  static Memory now() {
    malloc_trim(0);
    const auto heap = mallinfo2();
    long pages = 0;
    FILE* file = std::fopen("/proc/self/statm", "r");
    CHECK(file != nullptr && std::fscanf(file, "%*d %ld", &pages) == 1);
    std::fclose(file);
    return {static_cast<long>((heap.uordblks + heap.hblkhd) / 1024), pages * sysconf(_SC_PAGESIZE) / 1024};
  }
};

}  // namespace

int main(int argc, char** argv) {
  mallopt(M_ARENA_MAX, 2);  // many arenas grow for long without a leak
  expected = Engine::open(R"({"model": "mock:words", "max_model_len": 32768})").generate(endless("hello").max_tokens(long_tokens)).text();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(argc > 1 ? std::atoi(argv[1]) : 20);
  const int files = entries("/proc/self/fd");
  Memory warm;
  unsigned rounds = 0;
  for (; rounds < 6 || std::chrono::steady_clock::now() < end; rounds++) {
    Round(rounds + 1).run();
    if (total.accepted != total.ended || total.handlers != 0) {
      std::fprintf(stderr, "round %u: %ld accepted, %ld ended, %ld handlers left\n", rounds + 1, total.accepted.load(),
                   total.ended.load(), total.handlers.load());
      return 1;
    }
    if (rounds == 3) warm = Memory::now();
  }
  CHECK(entries("/proc/self/fd") == files);
  until([] { return entries("/proc/self/task") == 3; });  // ".", "..", this thread
  for (const auto finish : {Finish::length, Finish::cancelled, Finish::deadline, Finish::overrun}) CHECK(total.by_finish[static_cast<int>(finish)] > 0);
  CHECK(total.exceptions > 0 && total.accepted > 100 * long(rounds));
  const Memory last = Memory::now();
  std::printf("%u rounds, %ld requests, %ld records, %ld exceptions; by finish:", rounds, total.accepted.load(), total.records.load(),
              total.exceptions.load());
  for (const auto& n : total.by_finish) std::printf(" %ld", n.load());
  std::printf("\nKiB of the heap in use and resident: %ld and %ld after 4 rounds, %ld and %ld at the end\n", warm.heap_kib,
              warm.resident_kib, last.heap_kib, last.resident_kib);
#if !defined(__SANITIZE_ADDRESS__)
  // What is in use is flat; what the allocator keeps for it varies with the largest round so far.
  CHECK(last.heap_kib < warm.heap_kib + 512 && last.resident_kib < warm.resident_kib + 16384);
#endif
  std::puts("ok");
}
